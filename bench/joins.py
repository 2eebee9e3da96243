"""How long does a newcomer download the committed state, and what may donors that do wrong cost it?

    .venv/bin/python -m bench.joins --write

Real donors (libp2p on loopback) that have committed two outer steps give at most 100 Mbit/s each; the newcomer is a
process of its own (bench/joiner.py). The floor is what the bytes need at that rate: state / (donors * rate). Writes
bench/results/joins.json and docs/joins.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from bench.join_page import write_page
from bench.joiner import warnings_only
from bench.tables import Row, machine
from peer.rounds.context import Deadlines
from tests.donors import EVIL, Evil, corrupt, mend
from tests.harness import RUN_ID, TERMS, RoundPeer, Swarm

RATE_BYTES = 12_500_000
"""100 Mbit/s, for each donor."""
MEGABYTES = (10, 100)
DONORS = 3
PAUSE_SECONDS = 0.5
"""Before each join, so that the donors' lines have been idle."""
FAULTS = ("wrong-bytes", "stalled", "endless", "hung-up", "mute")
PATIENT = replace(TERMS, patience_seconds=60.0, assemble_seconds=60.0)
DEADLINES = Deadlines(exchange=120.0, commit=120.0, seat=10.0, alive=0.5, silence=60.0)
"""100 MB between three peers in one process take longer than tests allow."""
INVENTED = "invented-history"
QUIET = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
"""For the newcomer. With a fixed threshold it gives memory back, so that each join's peak is its own."""


class Joiner:
    """The process of the newcomer."""

    def __init__(self, process: asyncio.subprocess.Process):
        self._process = process

    async def join(self, donors: Sequence[RoundPeer]) -> Row:
        """One download from ``donors``; see bench/joiner.py. Adds ``donor_cpu_seconds``, of all their processes."""
        assert self._process.stdin is not None
        await asyncio.sleep(PAUSE_SECONDS)
        before = _cpu_seconds(donors)
        question = {donor.peer_id: donor.network.maddrs for donor in donors}
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        return {**await self.answer(), "donor_cpu_seconds": _cpu_seconds(donors) - before}

    async def answer(self) -> Row:
        """The next line it prints."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the newcomer has ended; its last words are above")
        return dict(json.loads(line))


def _cpu_seconds(donors: Sequence[RoundPeer]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in (os.getpid(), *(donor.network.p2pd_pid for donor in donors))]
    return float(sum(one.user + one.system for one in times))


@asynccontextmanager
async def joiner(folder: Path, parameters: int) -> AsyncIterator[Joiner]:
    """A newcomer that is ready to be told whom to ask."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.joiner", str(folder), RUN_ID, str(parameters),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env={**os.environ, **QUIET},
    )  # fmt: skip
    try:
        newcomer = Joiner(process)
        await newcomer.answer()
        yield newcomer
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@asynccontextmanager
async def stand(megabytes: int) -> AsyncIterator[tuple[Swarm, Joiner]]:
    """Three donors with a history of two outer steps, and a newcomer that has joined once, to be warm."""
    with tempfile.TemporaryDirectory() as name:
        made = Swarm(Path(name), parameters=megabytes * 250_000, terms=PATIENT, deadlines=DEADLINES)
        try:
            for _ in range(DONORS):
                await made.add(rate=RATE_BYTES)
            await made.meet()
            for step in range(2):
                values = torch.randn(made.parameters, generator=torch.Generator().manual_seed(step))
                await made.step({peer.peer_id: values for peer in made.live}, seconds=600.0)
            async with joiner(Path(name), made.parameters) as newcomer:
                await newcomer.join(made.peers)
                yield made, newcomer
        finally:
            await made.stop()


@contextmanager
def one_does_wrong(made: Swarm, evil: Evil | None) -> Iterator[str]:
    """The last of the three donors does ``evil``; its peer id."""
    culprit = made.peers[DONORS - 1]
    if evil is not None:
        corrupt(culprit, evil, made.peers[0].store.committed, made.peers[0].store.history.since(0))
    try:
        yield culprit.peer_id
    finally:
        if evil is not None:
            mend(culprit)


async def measure_joins(made: Swarm, newcomer: Joiner, megabytes: int, repeats: int) -> list[Row]:
    """Joins from one donor and from three."""
    rows = []
    for count in (1, DONORS):
        joins = [await newcomer.join(made.peers[:count]) for _ in range(repeats)]
        right = [one["digest"] == made.peers[0].store.head.digest for one in joins]
        rows.append({"megabytes": megabytes, "donors": count, "right": all(right), "joins": joins})
    return rows


async def measure_faults(made: Swarm, newcomer: Joiner, megabytes: int, repeats: int) -> list[Row]:
    """Joins from three donors of which one does wrong, each beside one where none does."""
    rows: dict[str, Row] = {
        name: {"megabytes": megabytes, "fault": name, "right": True, "named": 0, "joins": []}
        for name in ("none", *FAULTS)
    }
    for _ in range(repeats):
        for name, row in rows.items():
            with one_does_wrong(made, None if name == "none" else EVIL[name][0]) as culprit:
                found = await newcomer.join(made.peers[:DONORS])
            row["joins"].append(found)
            row["right"] &= found["digest"] == made.peers[0].store.head.digest
            row["named"] += set(found["named"]) == {culprit}
            row["why"] = found["named"].get(culprit, "")
    return list(rows.values())


async def measure_lies(made: Swarm, newcomer: Joiner, count: int) -> list[Row]:
    """Joins from two honest donors and one that lies, each time another lie."""
    loner = await made.add(terms=replace(PATIENT, min_group_size=1), rate=RATE_BYTES)
    for _ in range(5):
        await loner.outer_step(torch.ones(made.parameters), 50_000)
    assert loner.store.head.work > made.peers[0].store.head.work
    kinds = [*EVIL, INVENTED]
    order = [kinds[index % len(kinds)] for index in range(count)]
    random.Random(0).shuffle(order)
    rows = []
    for kind in order:
        with one_does_wrong(made, None if kind == INVENTED else EVIL[kind][0]) as culprit:
            donors = [*made.peers[: DONORS - 1], loner if kind == INVENTED else made.peers[DONORS - 1]]
            found = await newcomer.join(donors)
        rows.append({"lie": kind, "right": found["digest"] == made.peers[0].store.head.digest, **found})
        rows[-1]["named"] = found["named"].get(loner.peer_id if kind == INVENTED else culprit, "")
    return rows


async def measure(repeats: int, lies: int) -> Row:
    """All of it."""
    found: Row = {"rate_bytes": RATE_BYTES, "joins": [], "faults": [], "lies": []}
    for megabytes in MEGABYTES:
        async with stand(megabytes) as (made, newcomer):
            found["joins"] += await measure_joins(made, newcomer, megabytes, repeats)
            found["faults"] += await measure_faults(made, newcomer, megabytes, repeats)
            if megabytes == MEGABYTES[0]:
                found["lies"] = await measure_lies(made, newcomer, lies)
    return found


def main() -> None:
    """Measures and prints; with --write, the page too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lies", type=int, default=20)
    parser.add_argument("--write", action="store_true", help="replace docs/joins.md and bench/results/joins.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings_only()
    found = asyncio.run(measure(arguments.repeats, arguments.lies))
    write_page("joins", {"machine": machine(), **found}, write=arguments.write)


if __name__ == "__main__":
    main()
