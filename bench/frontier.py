"""What a run learns for the bytes it sends: four peers, equal tokens, many ways to exchange.

    .venv/bin/python -m bench.frontier            # everything that is not in bench/results/frontier.json yet
    .venv/bin/python -m bench.frontier --steps 900 --seeds 0 -- "updates 10 int8" "DiLoCo 30"

One process plays the four peers, with the project's codecs, partition, outer optimizers, data and model. Of every
family the arms of its grid run for SHORT inner steps on seed 0; the best goes on to LONG steps, and on the other
seeds. Results are written run by run: stop at any time, and go on later.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import time
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from bench.frontier_arms import DEFAULTS, FAMILIES, LONG, SHORT, Arm, Family, plain, runs_of
from bench.frontier_swarm import Swarm, read_examples
from bench.frontier_training import Gradients, stacked_gradients
from bench.tables import RESULTS as FOLDER
from bench.tables import machine
from swarm.files import write_bytes

RESULTS = FOLDER / "frontier.json"
STATES = Path("build") / "frontier-states"
EVERY = 300
SEEDS = (0, 1, 2)
Run = dict[str, Any]


class Results:
    """The runs so far, in a file that is whole at any time."""

    def __init__(self, path: Path):
        self._path = path
        self.data: dict[str, Any] = {"runs": []}
        if path.exists():
            self.data = json.loads(path.read_text(encoding="utf-8"))
        names = {json.dumps(plain(arm)): family.name for family in FAMILIES.values() for arm in family.grid}
        for run in self.data["runs"]:  # settings that came later, and names of today
            run["arm"] = {key: run["arm"].get(key, value) for key, value in DEFAULTS.items()}
            run["family"] = names.get(json.dumps(run["arm"]), run["family"])
        self.data["runs"].sort(key=lambda run: len(run["losses"]))
        self.data["runs"] = list({json.dumps([run["arm"], run["seed"]]): run for run in self.data["runs"]}.values())

    def find(self, arm: Arm, seed: int, steps: int) -> Run | None:
        """The run of this arm, if it reached ``steps``."""
        found = [run for run in runs_of(self.data, arm) if run["seed"] == seed and str(steps) in run["losses"]]
        return dict(found[0]) if found else None

    def put(self, run: Run) -> None:
        """Keeps ``run`` in place of a shorter one."""
        run = json.loads(json.dumps(run))
        if self._path.exists():  # what bench/frontier_confirm.py has put there meanwhile
            self.data["confirmed"] = json.loads(self._path.read_text(encoding="utf-8")).get("confirmed", [])
        same = ("arm", "seed")
        self.data["runs"] = [old for old in self.data["runs"] if any(old[key] != run[key] for key in same)] + [run]
        self.data["machine"] = machine()
        write_bytes(self._path, (json.dumps(self.data, indent=0) + "\n").encode())


def state_file(arm: Arm, seed: int) -> Path:
    """Where a run that was not longer than SHORT goes on."""
    special = {key: value for key, value in plain(arm).items() if value != DEFAULTS[key]}
    return STATES / (hashlib.sha256(json.dumps([special, seed]).encode()).hexdigest()[:16] + ".safetensors")


class Runner:
    """Runs arms that are not in the results yet."""

    def __init__(self, results: Results, gradients: Gradients):
        self._results, self._gradients = results, gradients
        self._examples = cache(lambda seed: read_examples(Arm("updates").manifest(seed), LONG))

    def run(self, family: Family, arm: Arm, seed: int, steps: int) -> Run:
        """The run of ``arm`` to ``steps``, from the results or made now."""
        found = self._results.find(arm, seed, steps)
        if found is not None:
            return found
        manifest, start = arm.manifest(seed), time.process_time()
        swarm = Swarm(arm, manifest, self._gradients, self._examples(seed))
        run: Run = {"family": family.name, "arm": asdict(arm), "seed": seed, "losses": {}}
        state = state_file(arm, seed)
        begun = self._results.find(arm, seed, SHORT)
        if begun is not None and state.exists():  # it went this far when the grid was tried
            run |= {"losses": begun["losses"], "cpu_seconds": begun.get("cpu_seconds", 0.0)}
            swarm.load(state)
        while swarm.inner_steps < steps:
            swarm.advance(swarm.inner_steps + EVERY)
            run["losses"][str(swarm.inner_steps)] = swarm.loss()
            run["bytes_per_token"] = swarm.bytes_per_token
            if swarm.inner_steps in (SHORT, LONG):
                run["cpu_seconds"] = run.get("cpu_seconds", 0.0) + time.process_time() - start
                start = time.process_time()
                self._results.put(run)
                swarm.save(state)
        told = ", ".join(f"{step}: {loss:.4f}" for step, loss in run["losses"].items() if int(step) in (SHORT, LONG))
        print(
            f"{time.strftime('%H:%M:%S')} {family.name:32} lr {arm.learning_rate:<7} seed {seed} {told} "
            f"{run['bytes_per_token']:.2f} B/token {run['cpu_seconds']:.0f} s",
            flush=True,
        )
        return run

    def work(self, wanted: argparse.Namespace) -> None:
        """One command line."""
        for name in wanted.families or FAMILIES:
            family = FAMILIES[name]
            if family.tried:
                self.run(family, family.grid[0], SEEDS[0], SHORT)
                continue
            arm = family.grid[0] if wanted.untuned else self.tune(family)
            for seed in wanted.seeds:
                self.run(family, arm, seed, wanted.steps)

    def tune(self, family: Family) -> Arm:
        """The best of the family's grid."""
        runs = [(self.run(family, arm, SEEDS[0], SHORT)["losses"][str(SHORT)], arm) for arm in family.grid]
        return min(runs, key=lambda one: one[0])[1]


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="names in bench/frontier_arms.py; all, if none is given")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, choices=(SHORT, LONG), default=LONG)
    parser.add_argument("--untuned", action="store_true", help="only the first arm of each grid")
    parser.add_argument("--jobs", type=Path, help="a file with one such command line in each line, read as it grows")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runner = Runner(Results(RESULTS), stacked_gradients(Arm("updates").manifest(0)))
    done = 0
    while arguments.jobs:
        lines = arguments.jobs.read_text(encoding="utf-8").splitlines()
        if len(lines) <= done:
            return
        runner.work(parser.parse_args(shlex.split(lines[done])))
        done += 1
    runner.work(arguments)


if __name__ == "__main__":
    main()
