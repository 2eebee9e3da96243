"""What does an inner step cost with each inner optimizer?

    .venv/bin/python -m bench.inner

The models of two templates of `waggle run new`, on one thread: CPU seconds of forward and backward, and of the
optimizer's step, medians. Writes bench/results/inner.json.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from bench.tables import Row, keep, say
from peer.data import open_stream
from peer.inner import inner_optimizer
from peer.tasks import TASKS, build_model
from swarm.manifest import Manifest
from waggle import author

OPTIMIZERS = ("adamw", "muon")
MODELS = ("demo", "text")
STEPS = 20


def measure(name: str, optimizer: str) -> Row:
    """One row: medians over STEPS, after one that allocates."""
    text, _ = author.filled(name, name, author.Plan(2000, 20.0, 4, 1.0))
    manifest = Manifest.from_toml(text.replace('author = "@AUTHOR@"', ""))
    assert manifest.inner is not None
    data = manifest.data.model_copy(update={"source": "stdlib", "paths": ()})
    manifest = manifest.model_copy(
        update={"inner": manifest.inner.model_copy(update={"optimizer": optimizer}), "data": data}
    )
    torch.manual_seed(0)
    model, loss, stream = build_model(manifest), TASKS[manifest.task].loss, open_stream(manifest, "", data_shard="0/4")
    inner = inner_optimizer(model, manifest.inner)
    gradients, steps = [], []
    for _ in range(1 + STEPS):
        inner.zero_grad()
        began = time.process_time()
        loss(model, next(stream).tokens).mean().backward()
        middle = time.process_time()
        inner.step(1e-3)
        gradients.append(middle - began)
        steps.append(time.process_time() - middle)
    parameters = sum(value.numel() for value in model.parameters())
    return {
        "model": name, "parameters": parameters, "tokens": data.batch_size * data.sequence_length,
        "optimizer": optimizer, "gradient_seconds": median(gradients[1:]), "step_seconds": median(steps[1:]),
    }  # fmt: skip


def main() -> None:
    """Measures all."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in MODELS:
        for optimizer in OPTIMIZERS:
            rows.append(measure(name, optimizer))
            say(rows[-1])
    keep("inner", "cpu", {"rows": rows})


if __name__ == "__main__":
    main()
