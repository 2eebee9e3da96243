"""Does a swarm learn what one process learns from the same examples?

    .venv/bin/python -m bench.learning --outer-steps 60

Runs three real peers (processes, libp2p on loopback) in gradients mode, then one process that reads the same three
shares of the data and applies the same optimizer to the mean gradient over their union. Writes the table to
docs/learning.md and the numbers to bench/results/learning.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from pathlib import Path

import httpx
import torch
from rich.console import Console

from bench.tables import machine
from peer.data import open_stream, validation_batches
from peer.layout import Layout, read_parameters
from peer.optimizers import outer_optimizer
from peer.rounds.gates import square_norm
from peer.state.store import Store
from peer.tasks import TASKS, build_model
from peer.training import Trainer
from swarm.manifest import Manifest
from waggle.demo import follow, start_swarm
from waggle.processes import Processes
from waggle.report import Report, read_journals

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "gradients.toml"
PEERS = 3


def run_swarm(outer_steps: int) -> Report:
    """Three peers to the end."""
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        stop = threading.Event()
        keys = Path(folder)
        children = start_swarm(processes, MANIFEST, keys, PEERS, outer_steps, stop)
        with httpx.Client(trust_env=False, timeout=1.0) as client:
            follow(processes, children, client, Console(stderr=True), stop)
        return read_journals(Manifest.load(MANIFEST), [child.folder for child in children])


def run_alone(outer_steps: int) -> dict[int, float]:
    """One process with the union of the peers' examples: validation loss by outer step."""
    manifest = Manifest.load(MANIFEST)
    model = build_model(manifest)
    optimizer = outer_optimizer(manifest.outer)
    store = Store(manifest.run_id, Layout.of(model), read_parameters(model), optimizer)
    loss, cpu = TASKS[manifest.task].loss, torch.device("cpu")
    streams = [open_stream(manifest, "alone", data_shard=f"{index}/{PEERS}") for index in range(PEERS)]
    trainers = [Trainer(manifest, model, loss, stream, cpu) for stream in streams]
    validation = validation_batches(manifest)
    parameters, slots = store.committed.parameters, dict(store.committed.slots)
    losses = {0: trainers[0].validate(validation)}
    for step in range(outer_steps):
        total, examples = torch.zeros_like(parameters, dtype=torch.float64), 0
        for trainer in trainers:
            trainer.load(parameters)
            while not trainer.done:
                trainer.inner_step()
            result = trainer.hand_in()
            total += result.contribution.double() * result.examples
            examples += result.examples
        mean = (total / examples).float()
        parameters, slots = optimizer.step(parameters, slots, mean, square_norm(mean), step)
        if (step + 1) % manifest.validation.every == 0 or step + 1 == outer_steps:
            trainers[0].load(parameters)
            losses[step + 1] = trainers[0].validate(validation)
    return losses


def main() -> None:
    """Runs both sides and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outer-steps", type=int, default=60)
    parser.add_argument("--write", action="store_true", help="replace docs/learning.md and bench/results/learning.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = run_swarm(arguments.outer_steps)
    alone = run_alone(arguments.outer_steps)
    rows = [
        {"outer_step": step, "swarm": sum(losses) / len(losses), "alone": alone[step]}
        for step, losses in sorted(report.validation.items())
    ]
    worst = abs(rows[-1]["swarm"] / rows[-1]["alone"] - 1)
    table = ["| outer step | three peers | one process | difference |", "|---:|---:|---:|---:|"]
    for row in rows:
        difference = row["swarm"] / row["alone"] - 1
        table.append(f"| {row['outer_step']} | {row['swarm']:.5f} | {row['alone']:.5f} | {difference:+.4%} |")
    print("\n".join(table))
    print(f"difference at the end: {worst:.4%}; digests agreed: {report.agreed}")
    if arguments.write:
        results = HERE / "results"
        results.mkdir(exist_ok=True)
        data = {"outer_steps": arguments.outer_steps, "agreed": report.agreed, "machine": machine(), "rows": rows}
        (results / "learning.json").write_text(json.dumps(data, indent=1) + "\n")
        (HERE.parent / "docs" / "learning.md").write_text(PAGE.format(table="\n".join(table), **data))


PAGE = """# Does a swarm learn what one process learns?

Three real peers in `gradients` mode against one process that is given the same examples and the same optimizer:
validation loss on the same held-out examples, {outer_steps} outer steps of 48 examples, one run, seed 0
({machine}). Digests equal on all peers at every outer step: {agreed}.

{table}

Made by `.venv/bin/python -m bench.learning --outer-steps {outer_steps} --write`, with the manifest
`bench/gradients.toml`; the numbers are in `bench/results/learning.json`.
"""


if __name__ == "__main__":
    main()
