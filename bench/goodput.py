"""How close to the links' own limit is an all-reduce?

    sudo .venv/bin/python -m bench.goodput --part even          (or uplink, slow)

Real peers, one in each host of an emulated internet, average a vector of 4, 40 and 160 MB by each codec; stock
hivemind does the same in the same hosts. Seconds count from the first peer that knows its group to the last that has
the mean, and the floor is what the encoded bytes need on these links (bench/floors.py). Writes
bench/results/goodput.json, from which bench/page.py makes docs/performance.md.

The part ``even`` has 54 cases, whose rounds alone take 17 minutes; the others have 12 each. Every case starts all its
peers first. Rows of cases that are left out (``--codecs``, ``--sizes``, ``--peers``) stay as an earlier run made them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from bench.calibrate import CalibrationError, checked
from bench.floors import encoded_bytes, floor_seconds
from bench.internet import Internet, InternetError, LinkSpec
from bench.round_swarm import OURS, STOCK, HangError, RoundSwarm
from bench.tables import Row, keep_rows, one_line, say
from peer.rounds.codec import CODECS

EVEN = LinkSpec()
UPLINK = LinkSpec(mbit=100.0, up_mbit=20.0)
SLOW = LinkSpec(mbit=10.0, up_mbit=10.0)
ROUND_SECONDS = 240.0
"""After which a round counts as hung."""
STOCK_SECONDS = 45.0
STOCK_STARTS = 4
_SPARE_SECONDS = 15.0
_JOIN_SECONDS = 60.0


@dataclass(frozen=True)
class Case:
    """One row of the table. program: ours or stock hivemind."""

    program: str
    codec: str
    megabytes: int
    peers: int
    rounds: int


def even(codecs: Sequence[str], sizes: Sequence[int], swarms: Sequence[int], rounds: int) -> list[Case]:
    """Every codec, size and number of peers; stock beside 4 MB of 4 peers, 40 MB of all, and with fp32 160 MB of 4."""
    cases = []
    for peers in swarms:
        for megabytes in sizes:
            for codec in codecs:
                cases.append(Case("waggle", codec, megabytes, peers, rounds if megabytes < 100 else 2))
            stocked = [codec for codec in codecs if codec in STOCKED]
            if (peers, megabytes) == (4, 160):
                cases += [Case("hivemind", codec, megabytes, peers, 2) for codec in stocked if codec == "fp32"]
            elif peers == 4 or megabytes == 40:
                cases += [Case("hivemind", codec, megabytes, peers, rounds) for codec in stocked]
    return cases


STOCKED = ("fp32", "fp16")
"""What stock hivemind can send with the numpy of today."""


def uneven(codecs: Sequence[str], sizes: Sequence[int], rounds: int) -> list[Case]:
    """Four peers on links that are not alike."""
    ours = [Case("waggle", codec, size, 4, rounds) for size in sizes if size < 100 for codec in codecs]
    stocked = [codec for codec in codecs if codec in STOCKED]
    return ours + [Case("hivemind", codec, size, 4, rounds) for size in sizes if size == 40 for codec in stocked]


PARTS: dict[str, list[LinkSpec]] = {
    "even": [EVEN] * 8,
    "uplink": [UPLINK] * 4,
    "slow": [EVEN, EVEN, EVEN, SLOW],
}


def summary(answers: Sequence[Row]) -> Row:
    """One round of all peers in a few numbers; times in seconds, the rest summed or the worst."""
    marks = [one["marks"] for one in answers]
    last = {name: max(mark[name] for mark in marks) for name in marks[0] if all(name in mark for mark in marks)}
    begin = min(mark["grouped"] for mark in marks)
    digests = {one["digest"] for one in answers}
    found: Row = {
        "seconds": last["gathered"] - begin,
        "group_seconds": last["grouped"] - last["ready"],
        "committed": all(one["committed"] for one in answers),
        "same_digest": len(digests) == 1,
        "aborts": [reason for one in answers for reason in one["aborts"]],
    }
    for name, mark, since in (
        ("first_byte_seconds", "first_sent", last["ready"]),
        ("scatter_seconds", "scattered", begin),
        ("include_seconds", "included", begin),
        ("commit_seconds", "committed", last["gathered"]),
        ("whole_seconds", "committed", last["ready"]),
    ):
        if mark in last:
            found[name] = last[mark] - since
    for name in ("cpu_seconds", "p2pd_cpu_seconds", "codec_seconds"):
        if name in answers[0]:
            found[name] = sum(one[name] for one in answers) / len(answers)
    if "peak_bytes" in answers[0]:
        found["peak_bytes"] = max(one["peak_bytes"] for one in answers)
        found["bytes"] = [one["bytes"] for one in answers]
    return found


def measure(internet: Internet, case: Case) -> Row:
    """The rounds of one case, after one that warms the connections up. A hang ends it and is told.

    Stock hivemind hangs in many cold starts: it may start ``STOCK_STARTS`` times, and ``cold_hangs`` counts.
    """
    values = case.megabytes * 250_000
    contribution, mean = encoded_bytes(case.codec, values)
    links = internet.links[: case.peers]
    floor = floor_seconds(contribution, mean, [(link.up_mbit, link.mbit) for link in links])
    row: Row = {
        **vars(case), "contribution_bytes": contribution, "mean_bytes": mean, "floor_seconds": floor,
        "hung": "", "cold_hangs": 0, "measured": [],
    }  # fmt: skip
    stock = case.program == "hivemind"
    longest = max(STOCK_SECONDS if stock else ROUND_SECONDS, 4 * floor)
    with RoundSwarm(internet, case.peers, STOCK if stock else OURS) as swarm:
        for _ in range(STOCK_STARTS if stock else 1):
            try:
                swarm.start(values, case.codec, deadline_seconds=longest)
                swarm.joined(_JOIN_SECONDS)
                row["warm_up"] = summary(swarm.round(longest + _SPARE_SECONDS, 3.0 if stock else 1.0))
                if row["warm_up"]["committed"]:
                    break
                row["hung"] = f"the first round failed: {row['warm_up']['aborts']}"[:500]
            except HangError as hang:
                row["hung"] = str(hang)[:500]
            row["cold_hangs"] += 1
            swarm.revive()
        else:
            return row
        row["hung"] = ""
        try:
            row["measured"] = [
                _one_round(internet, swarm, case.peers, longest + _SPARE_SECONDS) for _ in range(case.rounds)
            ]
        except HangError as hang:
            row["hung"] = str(hang)[:500]
    return row


def _one_round(internet: Internet, swarm: RoundSwarm, peers: int, seconds: float) -> Row:
    before, cpu = internet.counts(), internet.cpu_seconds
    found = summary(swarm.round(seconds))
    found["router_cpu_seconds"] = internet.cpu_seconds - cpu
    counts = zip(internet.counts(), before, strict=True)
    found["wire_bytes"] = [after["sent_bytes"] - earlier["sent_bytes"] for after, earlier in counts][:peers]
    return found


def run(part: str, cases: Sequence[Case], *, write: bool) -> None:
    """All cases of one part, on a link that was calibrated just before; what is done is kept at once."""
    with Internet(PARTS[part]) as internet:
        calibration = checked(internet)
        rows: list[Row] = []
        for case in cases:
            rows.append(measure(internet, case))
            seconds = [round(one["seconds"], 2) for one in rows[-1]["measured"]]
            say(case, "floor", round(rows[-1]["floor_seconds"], 2), "seconds", seconds, rows[-1]["hung"][:100])
            if write:
                keep_rows("goodput", part, ("program", "codec", "megabytes", "peers"), {
                    "links": [str(link) for link in PARTS[part]], "calibration": calibration, "rows": rows,
                })  # fmt: skip


def names(text: str) -> list[str]:
    """Words between commas."""
    return text.split(",")


def numbers(text: str) -> list[int]:
    """Whole numbers between commas."""
    return [int(word) for word in text.split(",")]


def main() -> int:
    """Measures one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), default="even")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--codecs", type=names, default=list(CODECS))
    parser.add_argument("--sizes", type=numbers, default=[4, 40, 160], help="in MB of float32")
    parser.add_argument("--peers", type=numbers, default=[2, 4, 8])
    parser.add_argument("--no-write", action="store_true", help="only print")
    parser.add_argument("--programs", type=names, default=["waggle", "hivemind"])
    arguments = parser.parse_args()
    if arguments.part == "even":
        cases = even(arguments.codecs, arguments.sizes, arguments.peers, arguments.rounds)
    else:
        cases = uneven(arguments.codecs, arguments.sizes, arguments.rounds)
    cases = [case for case in cases if case.program in arguments.programs]
    with one_line("bench.goodput", InternetError, CalibrationError):
        run(arguments.part, cases, write=not arguments.no_write)
    return 0


if __name__ == "__main__":
    sys.exit(main())
