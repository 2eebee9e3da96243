"""docs/joins.md from what bench/joins.py and bench/spike.py measured: tables, and the words between them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "joins.md"
Row = dict[str, Any]
FAULTS = {
    "none": "none",
    "wrong-bytes": "wrong bytes in a chunk",
    "stalled": "sends nothing after its offer",
    "endless": "streams without end",
    "hung-up": "hangs up after two chunks",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, the first column to the left and the others to the right."""
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows))


def write_page(name: str, data: Row, *, write: bool) -> None:
    """Prints the tables of ``name``; with ``write``, keeps the numbers and makes the page of all that is there."""
    print(SECTIONS[name](data))
    if write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
        found = {one: RESULTS / f"{one}.json" for one in SECTIONS}
        sections = [SECTIONS[one](json.loads(path.read_text())) for one, path in found.items() if path.exists()]
        PAGE.write_text("\n\n".join(["# What a join costs", *sections]) + "\n")


def joins_section(data: Row) -> str:
    """Time over the floor, donors that do wrong, liars."""
    rate = data["rate_bytes"]
    repeats = len(data["joins"][0]["joins"])
    right = sum(row["right"] for row in data["lies"])
    return JOINS.format(
        machine=data["machine"],
        rate=rate / 1e6,
        repeats=repeats,
        joins=table(JOIN_HEAD, [_join_row(row, rate) for row in data["joins"]]),
        faults=table(FAULT_HEAD, _fault_rows(data["faults"])),
        right=right,
        count=len(data["lies"]),
        lies=table(("lie of one donor among three", "joins", "right digest", "named"), _lie_rows(data["lies"])),
    )


JOIN_HEAD = ("state", "donors", "floor s", "median s", "range s", "over floor", "joiner CPU s", "donors CPU s", "peak")
FAULT_HEAD = ("state", "one donor of three", "median s", "range s", "seconds lost", "right digest", "named", "as")


def _seconds(joins: Sequence[Row]) -> list[float]:
    return [one["seconds"] for one in joins]


def _range(joins: Sequence[Row]) -> str:
    return f"{min(_seconds(joins)):.2f} - {max(_seconds(joins)):.2f}"


def _join_row(row: Row, rate: int) -> list[str]:
    joins, floor = row["joins"], row["megabytes"] * 1e6 / (row["donors"] * rate)
    middle = median(_seconds(joins))
    peak = max(one["peak_bytes"] for one in joins) / (row["megabytes"] * 1e6)
    cpu = [f"{median(one[field] for one in joins):.2f}" for field in ("cpu_seconds", "donor_cpu_seconds")]
    return [
        f"{row['megabytes']} MB", str(row["donors"]), f"{floor:.3f}", f"{middle:.3f}", _range(joins),
        f"{middle / floor:.2f}", *cpu, f"{peak:.2f}",
    ]  # fmt: skip


def _fault_rows(rows: Sequence[Row]) -> list[list[str]]:
    found = []
    for row in rows:
        joins, total = row["joins"], len(row["joins"])
        honest = next(one for one in rows if one["megabytes"] == row["megabytes"] and one["fault"] == "none")
        lost = median(_seconds(joins)) - median(_seconds(honest["joins"]))
        bad = row is not honest
        found.append(
            [
                f"{row['megabytes']} MB", FAULTS[row["fault"]], f"{median(_seconds(joins)):.2f}", _range(joins),
                f"{lost:+.2f}" if bad else "", "yes" if row["right"] else "no",
                f"{row['named']} of {total}" if bad else "", f"`{row['why'][:60]}`" if bad else "",
            ]
        )  # fmt: skip
    return found


def _lie_rows(lies: Sequence[Row]) -> list[list[str]]:
    kinds: dict[str, list[Row]] = {}
    for row in sorted(lies, key=lambda row: row["lie"]):
        kinds.setdefault(row["lie"], []).append(row)
    return [
        [kind, str(len(rows)), str(sum(row["right"] for row in rows)), str(sum(bool(row["named"]) for row in rows))]
        for kind, rows in kinds.items()
    ]


JOINS = """## Seconds over the floor

A newcomer, a process of its own, downloads the committed state from real donors on loopback, each of which gives
{rate:.1f} MB/s (100 Mbit/s, `upload_rate_bytes`). The floor is what the bytes need at that rate: state / (donors x
rate). Measured from the question to the adopted state, connections open, {repeats} joins a row
({machine}). Joiner and donors are on the same cores; CPU seconds are those of the processes and of
their p2pd. Peak: the most memory that the joiner took for the download, over the state's size.

{joins}

## A donor that does wrong

Three donors, one of which does wrong, in turn with joins where none does. Seconds lost: median over median. Named: the
joiner's log names the culprit, and nobody else.

{faults}

Every join with one liar among three donors ended on the right digest: {right} of {count}. The lies in a seeded order:

{lies}

Made by `.venv/bin/python -m bench.joins --write`; the numbers are in `bench/results/joins.json`.
"""

SECTIONS: dict[str, Callable[[Row], str]] = {"joins": joins_section}
