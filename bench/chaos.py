"""What does a kill cost? SIGKILL at every phase of a peer, stage of a round and moment of a file.

    .venv/bin/python -m bench.chaos --seeds 30 --write

Runs a bootstrap and four real peers (processes, libp2p on loopback). A seed says which of them dies, and where; it is
started again, and when it has committed with the others it is the next seed's turn. Prints the table; with --write it
goes to docs/chaos.md and the numbers to bench/results/chaos.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from bench.tables import machine
from tests.hive import Hive, Kill, Strike
from tests.processes import House
from tests.strikes import POINTS

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "chaos.md"
RESULTS = HERE / "results" / "chaos.json"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


@dataclass(frozen=True)
class Entry:
    """One seed: what came of it, or what was wrong."""

    seed: int
    strike: Strike
    kill: Kill | None
    wrong: str = ""


class Series:
    """Strikes at one swarm, and at a new one in its place when something was wrong with the last."""

    def __init__(self, folder: Path, average: str):
        self._folder, self._average = folder, average
        self._swarms = 0
        self.undisturbed: list[float] = []

    def run(self, seeds: Sequence[int]) -> Iterator[Entry]:
        """One entry per seed, as they come."""
        left = list(seeds)
        while left:
            self._swarms += 1
            folder = self._folder / f"swarm-{self._swarms}"
            folder.mkdir()
            try:
                with House(folder) as house:
                    hive = Hive(house, self._average)
                    hive.begin()
                    while left:
                        seed = left.pop(0)
                        yield self._strike(hive, seed)
                    self.undisturbed += hive.undisturbed_seconds()
            except SwarmSpoiltError as broken:
                yield broken.entry

    @staticmethod
    def _strike(hive: Hive, seed: int) -> Entry:
        strike = Strike.of(seed)
        try:
            return Entry(seed, strike, hive.strike(strike))
        except AssertionError as error:
            print(error, file=sys.stderr)
            raise SwarmSpoiltError(Entry(seed, strike, None, str(error).partition("\n")[0])) from error


class SwarmSpoiltError(Exception):
    """A strike left a swarm with which nothing more can be measured."""

    def __init__(self, entry: Entry):
        super().__init__(entry.wrong)
        self.entry = entry


def table(entries: Sequence[Entry]) -> str:
    """By point, in Markdown."""
    lines = [
        "| killed at | kills | survivors commit again, s | killed peer started, s | it commits again, s | wrong |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for point in (*POINTS, "all"):
        here = [one for one in entries if point in (one.strike.order.point, "all")]
        if here:
            lines.append(_row(point, here))
    return "\n".join(lines)


def _row(point: str, entries: Sequence[Entry]) -> str:
    kills = [one.kill for one in entries if one.kill is not None]
    times = [
        _middle_and_worst([one.survivors_seconds for one in kills]),
        _middle_and_worst([one.started_seconds for one in kills]),
        _middle_and_worst([one.returned_seconds for one in kills]),
    ]
    wrong = "; ".join(f"seed {one.seed}: {one.wrong}" for one in entries if one.wrong) or "nothing"
    return " | ".join([f"| {point}", str(len(entries)), *times, f"{wrong} |"])


def _middle_and_worst(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.1f} ({max(seconds):.1f})" if seconds else "-"


def main() -> None:
    """Strikes and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--average", choices=["updates", "gradients"], default="updates")
    parser.add_argument(
        "--write", action="store_true", help=f"replace the table in docs/{PAGE.name} and {RESULTS.name}"
    )
    arguments = parser.parse_args()
    entries = []
    with tempfile.TemporaryDirectory(prefix="waggle-chaos-") as folder:
        series = Series(Path(folder), arguments.average)
        for entry in series.run(range(arguments.first, arguments.first + arguments.seeds)):
            entries.append(entry)
            print(entry, file=sys.stderr, flush=True)
    undisturbed = median(series.undisturbed) if series.undisturbed else None
    told = table(entries)
    print(told)
    print(f"an outer step that nothing disturbs: {undisturbed} s")
    if arguments.write:
        data = {
            "average": arguments.average,
            "machine": machine(),
            "undisturbed_seconds": undisturbed,
            "entries": [asdict(entry) for entry in entries],
        }
        RESULTS.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{told}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(any(entry.wrong for entry in entries))


if __name__ == "__main__":
    main()
