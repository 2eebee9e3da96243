"""A training loop without a swarm, for bench/overhead.py: the same model, data, optimizer and settings as a peer's.

python -m bench.bare_loop RUN.toml STEPS DEVICE          prints one JSON line: examples, seconds
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from peer.data import Prefetcher, open_stream
from peer.inner import inner_optimizer
from peer.optimizers import learning_rate
from peer.tasks import TASKS, build_model
from peer.training import limit_threads
from swarm.manifest import Manifest

WARM_STEPS = 10


def main() -> None:
    """Trains for so many steps after the warm ones."""
    limit_threads(1)
    manifest = Manifest.load(Path(sys.argv[1]))
    assert manifest.inner is not None, "it is the loop of mode updates"
    device = torch.device(sys.argv[3])
    model = build_model(manifest).to(device)
    loss_of, optimizer = TASKS[manifest.task].loss, inner_optimizer(model, manifest.inner)
    batches = Prefetcher(open_stream(manifest, "bare", data_shard="0/1"))
    torch.manual_seed(0)
    model.train()
    examples, total, began = 0, 0.0, 0.0
    for step in range(WARM_STEPS + int(sys.argv[2])):
        if step == WARM_STEPS:
            examples, began = 0, time.monotonic()
        tokens = next(batches).tokens.to(device)
        loss = loss_of(model, tokens)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if manifest.inner.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), manifest.inner.clip_norm)
        optimizer.step(learning_rate(manifest.inner, step))
        examples, total = examples + len(tokens), total + float(loss.detach())
    print(json.dumps({"examples": examples, "seconds": time.monotonic() - began}), flush=True)
    batches.close()


if __name__ == "__main__":
    main()
