"""What every program of a swarm agrees on: identity, network, records, manifest, history. Knows nothing of training."""
