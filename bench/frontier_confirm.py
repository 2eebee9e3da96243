"""Do real peers learn what bench/frontier.py says? Some of its cells, run by four `waggle peer` processes on loopback.

    .venv/bin/python -m bench.frontier_confirm                    # all of bench/frontier_arms.py's CONFIRMED
    .venv/bin/python -m bench.frontier_confirm --steps 300 --cell "updates 10 fp32"

Same manifest, same shares of the data, the same number of inner steps. Writes what they came to into
bench/results/frontier.json beside the simulated losses.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from pathlib import Path

import httpx
from rich.console import Console

from bench.frontier import RESULTS
from bench.frontier_arms import CONFIRMED, FAMILIES, SHORT, Arm, runs_of
from bench.frontier_data import FILE
from bench.frontier_data import write as write_examples
from bench.tables import Row, say
from swarm.files import write_bytes
from swarm.manifest import Manifest
from waggle.demo import follow, start_swarm
from waggle.processes import Processes
from waggle.report import read_journals

PEERS = 4


def run_swarm(path: Path, outer_steps: int) -> Row:
    """Four real peers to the end: the validation loss there, the bytes that a peer sent, whether digests agreed."""
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        stop = threading.Event()
        children = start_swarm(processes, path, Path(folder), PEERS, outer_steps, stop)
        with httpx.Client(trust_env=False, timeout=1.0) as client:
            follow(processes, children, client, Console(stderr=True, quiet=True), stop)
        report = read_journals(Manifest.load(path), [child.folder for child in children])
        losses = report.validation[max(report.validation)]
        return {"loss": sum(losses) / len(losses), "outer_steps": report.outer_steps, "agreed": report.agreed}


def simulated(results: Row, arm: Arm, steps: int) -> float | None:
    """The loss of the same arm and seed in one process."""
    found = [run["losses"] for run in runs_of(results, arm) if run["seed"] == 0 and str(steps) in run["losses"]]
    return float(found[0][str(steps)]) if found else None


def main() -> None:
    """Runs the cells one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CONFIRMED.values(), action="append", help="only this one; repeat it for more")
    parser.add_argument("--steps", type=int, default=SHORT, help="inner steps, of which the simulator kept the loss")
    arguments = parser.parse_args()
    if not FILE.exists():
        write_examples()
    for name, family in CONFIRMED.items():
        if arguments.cell and family not in arguments.cell:
            continue
        path, arm = Path(__file__).with_name(name), FAMILIES[family].grid[0]
        found = run_swarm(path, arguments.steps // arm.inner_steps)
        results = json.loads(RESULTS.read_text(encoding="utf-8"))  # the simulator may have gone on meanwhile
        row = {
            "family": family,
            "steps": arguments.steps,
            "simulated": simulated(results, arm, arguments.steps),
            **found,
        }
        kept = [one for one in results.get("confirmed", []) if one["family"] != family]
        results["confirmed"] = [*kept, row]
        write_bytes(RESULTS, (json.dumps(results, indent=0) + "\n").encode())
        say(row)


if __name__ == "__main__":
    main()
