"""How many bytes does an outer step cost, by codec?

    sudo .venv/bin/python -m bench.bytes          (some 5 minutes)

Four `waggle peer` processes with 10 M parameters, a few outer steps by each codec. Bytes are counted twice: by the
daemons, over libp2p streams and by purpose, and by the router of the emulated internet, IP packets with all that is
around them: encryption, acknowledgements, records of the DHT. Writes bench/results/bytes.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.calibrate import CalibrationError, checked
from bench.goodput import EVEN, names
from bench.internet import Internet, InternetError
from bench.paced_swarm import PacedSwarm, SwarmError, manifest
from bench.tables import Row, keep, one_line, say
from bench.utilisation import PARAMETERS, PEERS, one_peer
from peer.rounds.codec import CODECS

OUTER_STEPS = 3
INNER_STEPS = 4
STEP_SECONDS = 0.5
SECONDS = 120.0


def measure(internet: Internet, codec: str) -> Row:
    """Bytes per peer and outer step, sent: of rounds, of all streams, and on the wire."""
    rules: Row = {"inner_steps": INNER_STEPS, "codec": codec, "min_group_size": PEERS, "max_group_size": PEERS}
    with PacedSwarm(internet, manifest(**rules), [STEP_SECONDS] * PEERS) as swarm:
        swarm.commits_until(1, SECONDS)
        before = internet.counts()
        swarm.commits_until(1 + OUTER_STEPS, SECONDS)
        after = internet.counts()
        peers = [one_peer(peer, OUTER_STEPS) for peer in swarm.peers]
        each = OUTER_STEPS * PEERS
        streams = [sum(count for name, count in one["bytes"].items() if name.endswith("_sent")) for one in peers]
        row = {
            "codec": codec,
            "round_bytes": sum(one["bytes"]["round_sent"] for one in peers) / each,
            "stream_bytes": sum(streams) / each,
            "wire_bytes": sum(now["sent_bytes"] - then["sent_bytes"] for now, then in zip(after, before, strict=True))
            / each,
            "same_digest": swarm.agreed,
        }
        say(row)
        return row


def run(codecs: Sequence[str]) -> Row:
    """A row for each codec."""
    with Internet([EVEN] * PEERS) as internet:
        calibration = checked(internet)
        return {
            "calibration": calibration, "parameters": PARAMETERS, "peers": PEERS,
            "rows": [measure(internet, codec) for codec in codecs],
        }  # fmt: skip


def main() -> int:
    """Measures all codecs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", type=names, default=list(CODECS))
    parser.add_argument("--no-write", action="store_true", help="only print")
    arguments = parser.parse_args()
    with one_line("bench.bytes", InternetError, CalibrationError, SwarmError):
        found = run(arguments.codecs)
    if not arguments.no_write:
        keep("bytes", "all", found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
