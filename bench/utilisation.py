"""Which share of the time do peers work, and not wait for a round?

    sudo .venv/bin/python -m bench.utilisation --part even     (or steps, uplink, uneven; each some 10 minutes)

Four `waggle peer` processes with 10 M parameters whose steps take one second each, whatever the cores do: utilisation
is the time in inner steps over all time between the first commit and the last. Stock hivemind.Optimizer runs beside
ours with the same pace. The part ``uneven`` has steps of half a second, one peer four times slower, and a target of the
swarm's work. Writes bench/results/utilisation.json.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from bench.calibrate import CalibrationError, checked
from bench.goodput import EVEN, UPLINK
from bench.internet import Internet, InternetError, LinkSpec
from bench.paced_swarm import PacedPeer, PacedSwarm, SwarmError, manifest
from bench.stock_swarm import run_stock
from bench.tables import Row, keep_rows, one_line, say

PEERS = 4
PARAMETERS = 10_000_000
BATCH = 8
_SPARE_SECONDS = 120.0
"""Beyond the work: a round of this table that takes longer is broken."""


@dataclass(frozen=True)
class Case:
    """One row: ``program`` waggle or hivemind; ``outer_steps`` are counted after the first one."""

    program: str = "waggle"
    codec: str = "int8"
    overlap: int = 0
    inner_steps: int = 30
    outer_steps: int = 3
    step_seconds: float = 1.0
    slow: float = 1.0
    rules: dict[str, Any] = field(default_factory=dict)

    @property
    def round_rules(self) -> dict[str, Any]:
        """The [round] of its manifest."""
        work = {} if "target_batch" in self.rules else {"inner_steps": self.inner_steps}
        size = {"min_group_size": PEERS, "max_group_size": PEERS}
        return {**work, **size, "codec": self.codec, "overlap": self.overlap, **self.rules}


PARTS: dict[str, tuple[LinkSpec, list[Case]]] = {
    "even": (
        EVEN,
        [
            Case("hivemind", "fp16"),
            *(Case(codec=codec, outer_steps=2) for codec in ("fp16", "int8", "int4")),
            Case(overlap=1, outer_steps=2),
        ],
    ),
    "steps": (
        EVEN,
        [
            *(Case(inner_steps=5, outer_steps=6, overlap=overlap) for overlap in (0, 1)),
            *(Case(inner_steps=10, outer_steps=4, overlap=overlap) for overlap in (0, 1)),
            *(Case(inner_steps=100, outer_steps=1, overlap=overlap) for overlap in (0, 1)),
            Case("hivemind", "fp16", inner_steps=10, outer_steps=4),
        ],
    ),
    "uplink": (
        UPLINK,
        [
            Case("hivemind", "fp16", outer_steps=2),
            *(Case(codec=codec, outer_steps=2) for codec in ("int8", "int4")),
            Case(codec="int8", overlap=1, outer_steps=2),
        ],
    ),
    "uneven": (
        EVEN,
        [
            # four peers of which one does a quarter of the steps: 3.25 examples where four would do 4
            Case(slow=4.0, outer_steps=8, rules={"target_batch": 390}, step_seconds=0.5),
            Case(slow=1.0, outer_steps=8, rules={"target_batch": 390}, step_seconds=0.5),
        ],
    ),
}


def busy_seconds(steps: Sequence[tuple[float, float]], begin: float, end: float) -> float:
    """How much of the time from ``begin`` to ``end`` lies in the steps, each from its beginning to its end."""
    return sum(max(0.0, min(end, last) - max(begin, first)) for first, last in steps)


def one_peer(peer: PacedPeer, outer_steps: int) -> Row:
    """Between a peer's first commit and the one ``outer_steps`` later."""
    meter = peer.meter
    commits = {line["commit"]: line for line in meter if "commit" in line}
    steps = [(line["step"][0], line["step"][1]) for line in meter if "step" in line]
    first, last = commits[1], commits[1 + outer_steps]
    begin, end = first["marks"]["committed"], last["marks"]["committed"]
    sums = {name: last[name] - first[name] for name in ("cpu_seconds", "p2pd_seconds")}
    waits = [
        commits[number]["marks"]["committed"] - commits[number]["marks"]["ready"]
        for number in range(2, 2 + outer_steps)
    ]
    return {
        "utilisation": busy_seconds(steps, begin, end) / (end - begin),
        "seconds": end - begin,
        "ready_to_commit_seconds": median(waits),
        "peak_bytes": last["peak_bytes"],
        "bytes": {name: count - first["bytes"].get(name, 0) for name, count in last["bytes"].items()},
        **sums,
    }


def run_ours(internet: Internet, case: Case) -> Row:
    """Four daemons, until the last outer step that counts."""
    steps = [case.step_seconds] * (PEERS - 1) + [case.step_seconds * case.slow]
    work = case.step_seconds * (case.inner_steps if "target_batch" not in case.rules else 40)
    with PacedSwarm(internet, manifest(**case.round_rules), steps) as swarm:
        swarm.commits_until(1, 2 * work + _SPARE_SECONDS)
        before = internet.counts()
        swarm.commits_until(1 + case.outer_steps, case.outer_steps * (2 * work + 60.0) + _SPARE_SECONDS)
        wire = [
            after["sent_bytes"] - earlier["sent_bytes"]
            for after, earlier in zip(internet.counts(), before, strict=True)
        ]
        peers = [one_peer(peer, case.outer_steps) for peer in swarm.peers]
        examples: Counter[str] = Counter()
        by_host = {peer.host: 0 for peer in swarm.peers}
        for line in swarm.peers[0].commits[1 : 1 + case.outer_steps]:
            examples.update(line["participants"])
        for peer in swarm.peers:
            by_host[peer.host] = examples[peer.peer_id]
        return {
            "utilisation": median(one["utilisation"] for one in peers),
            "same_digest": swarm.agreed,
            "seconds": max(one["seconds"] for one in peers),
            "examples": list(by_host.values()),
            "wire_bytes": wire,
            "peers": peers,
        }


def measure(internet: Internet, case: Case) -> Row:
    """One row, or why there is none."""
    row: Row = asdict(case)
    try:
        if case.program == "hivemind":
            found = run_stock(internet, PEERS, case.inner_steps, case.outer_steps, case.step_seconds)
        else:
            found = run_ours(internet, case)
        row.update(found, failed="")
    except SwarmError as error:
        row.update(failed=str(error)[-1500:])
    say({name: row.get(name) for name in ("program", "codec", "overlap", "inner_steps", "utilisation", "failed")})
    return row


def main() -> int:
    """Measures one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), default="even")
    parser.add_argument("--only", type=int, help="only this case of the part, counted from 0")
    arguments = parser.parse_args()
    link, cases = PARTS[arguments.part]
    with one_line("bench.utilisation", InternetError, CalibrationError), Internet([link] * PEERS) as internet:
        calibration = checked(internet)
        for case in cases if arguments.only is None else [cases[arguments.only]]:
            row = measure(internet, case)
            keep_rows("utilisation", arguments.part, tuple(asdict(case)), {"calibration": calibration, "rows": [row]})
    return 0


if __name__ == "__main__":
    sys.exit(main())
