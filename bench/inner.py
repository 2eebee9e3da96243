"""What does an inner step cost with each inner optimizer?

    .venv/bin/python -m bench.inner          (or --device cuda)

The models of two templates of `waggle run new`: seconds of forward and backward, and of the optimizer's step, medians;
on a CPU those of one thread, on a GPU from one synchronisation to the next. Writes bench/results/inner.json, one part
for each kind of device.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from bench.tables import Row, device_name, keep, say
from peer.data import open_stream
from peer.inner import inner_optimizer
from peer.tasks import TASKS, build_model
from swarm.manifest import Manifest
from waggle import author

OPTIMIZERS = ("adamw", "muon")
MODELS = ("demo", "text")
STEPS = 20


def clock(device: torch.device) -> float:
    """Seconds: of the CPU where it computes, else of the wall when the device has done all that it was told."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def measure(name: str, optimizer: str, device: torch.device) -> Row:
    """One row: medians over STEPS, after one that allocates."""
    text, _ = author.filled(name, name, author.Plan(2000, 20.0, 4, 1.0))
    manifest = Manifest.from_toml(text.replace('author = "@AUTHOR@"', ""))
    assert manifest.inner is not None
    data = manifest.data.model_copy(update={"source": "stdlib", "paths": ()})
    manifest = manifest.model_copy(
        update={"inner": manifest.inner.model_copy(update={"optimizer": optimizer}), "data": data}
    )
    torch.manual_seed(0)
    model = build_model(manifest).to(device)
    loss, stream = TASKS[manifest.task].loss, open_stream(manifest, "", data_shard="0/4")
    inner = inner_optimizer(model, manifest.inner)
    gradients, steps = [], []
    for _ in range(1 + STEPS):
        inner.zero_grad()
        tokens = next(stream).tokens
        began = clock(device)
        loss(model, tokens.to(device)).mean().backward()
        middle = clock(device)
        inner.step(1e-3)
        gradients.append(middle - began)
        steps.append(clock(device) - middle)
    parameters = sum(value.numel() for value in model.parameters())
    return {
        "model": name, "parameters": parameters, "tokens": data.batch_size * data.sequence_length,
        "optimizer": optimizer, "gradient_seconds": median(gradients[1:]), "step_seconds": median(steps[1:]),
    }  # fmt: skip


def main() -> None:
    """Measures all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(1)
    rows = []
    for name in MODELS:
        for optimizer in OPTIMIZERS:
            rows.append(measure(name, optimizer, device))
            say(rows[-1])
    keep("inner", device.type, {"device_name": device_name(device), "rows": rows})


if __name__ == "__main__":
    main()
