"""docs/joins.md from what bench/joins.py and bench/spike.py measured: tables, and the words between them.

    .venv/bin/python -m bench.join_page

Makes the page again from bench/results/; the programs that measure do so themselves.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.tables import Row

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "joins.md"
FAULTS = {
    "none": "none",
    "wrong-bytes": "wrong bytes in a chunk",
    "stalled": "sends nothing after its offer",
    "endless": "streams without end",
    "hung-up": "hangs up after two chunks",
    "mute": "answers nothing",
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
        render()


def render() -> None:
    """Makes the page of the numbers that are kept."""
    found = {one: RESULTS / f"{one}.json" for one in SECTIONS}
    sections = [SECTIONS[one](json.loads(path.read_text())) for one, path in found.items() if path.exists()]
    PAGE.write_text("\n\n".join(["# What a join costs", *sections]) + "\n")


def joins_section(data: Row) -> str:
    """Time over the floor, donors that do wrong, liars."""
    rate = data["rate_bytes"]
    repeats = len(data["joins"][0]["joins"])
    right = sum(row["right"] for row in data["lies"])
    sizes = sorted({row["megabytes"] * 1e6 for row in data["faults"]})
    return JOINS.format(
        machine=data["machine"],
        rate=rate / 1e6,
        repeats=repeats,
        joins=table(JOIN_HEAD, [_join_row(row, rate) for row in data["joins"]]),
        faults=table(FAULT_HEAD, _fault_rows(data["faults"])),
        gone=" and ".join(f"{size / 2 / rate - size / 3 / rate:.2f} s" for size in sizes),
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
({machine}). Joiner and donors are on the same cores; CPU seconds are those of
the processes and of their p2pd. Peak: the most memory that the joiner took for the download, over the state's size.

{joins}

## A donor that does wrong

Three donors, one of which does wrong, in turn with joins where none does. Seconds lost: median over median. With the
culprit a third of the bandwidth is gone, which alone costs {gone}; one that answers nothing is
waited for 5 s, since what it would offer counts for or against what the others do. Named: the joiner's log names the
culprit, and nobody else.

{faults}

Every join with one liar among three donors ended on the right digest: {right} of {count}. The lies in a seeded order:

{lies}

Made by `.venv/bin/python -m bench.joins --write`; the numbers are in `bench/results/joins.json`.
"""


def spike_section(data: Row) -> str:
    """The loss before and after a join, beside steps without one."""
    joins = [Join.of(row) for row in data["runs"]]
    return SPIKE.format(
        window=data["window"],
        machine=data["machine"],
        outer_steps=data["outer_steps"],
        count=len(joins),
        losses=table(SPIKE_HEAD, [join.cells() for join in joins]),
        rose=sum(join.change > max(0.0, *join.others) for join in joins),
        within=sum(abs(join.change) <= max(map(abs, join.others)) for join in joins),
        own_within=sum(abs(join.own) <= max(map(abs, join.others)) for join in joins),
        fell=sum(join.change < min(join.others) for join in joins),
        examples=table(EXAMPLES_HEAD, [_example_row(row) for row in data["runs"]]),
        same="yes" if all(row["same_before"] for row in data["runs"]) else "no",
    )


SPIKE_HEAD = (
    "seed", "first link at", "loss before", "after", "change", "without it", "largest fall elsewhere", "median", "rise",
)  # fmt: skip
EXAMPLES_HEAD = ("seed", "newcomer, first link", "the others", "newcomer, next link", "the others")


@dataclass(frozen=True)
class Join:
    """How the loss changed over the newcomer's first link: ``change``; over the same outer step without it: ``alone``.

    others: over the outer steps around it in which nobody joined, of both runs.
    """

    seed: int
    outer_step: int
    before: float
    change: float
    alone: float
    others: Sequence[float]

    @classmethod
    def of(cls, row: Row) -> Join:
        """From one pair of runs; the keys of a dictionary that was JSON are text."""
        at = str(row["joined_at"])
        joined, alone, losses = (
            {str(step): value for step, value in row[name].items()}
            for name in ("steps_joined", "steps_alone", "with_join")
        )
        others = [change for step, change in joined.items() if step != at] + list(alone.values())
        return cls(row["seed"], int(at), losses[str(int(at) - 1)], joined[at], alone[at], others)

    @property
    def own(self) -> float:
        """What the newcomer made of the change."""
        return self.change - self.alone

    def cells(self) -> list[str]:
        """Its row of the table."""
        changes = (self.change, self.alone, min(self.others), median(self.others), max(self.others))
        losses = [f"{self.before:.4f}", f"{self.before + self.change:.4f}"]
        return [str(self.seed), str(self.outer_step), *losses, *(f"{change:+.4f}" for change in changes)]


def _example_row(row: Row) -> list[str]:
    cells = [str(row["seed"])]
    for link in row["examples"]:
        cells += [str(link["newcomer"]), ", ".join(map(str, link["others"]))]
    return cells


def draw_spike(rows: Sequence[Row]) -> None:
    """docs/joins.png: validation loss with and without the join, one panel for each seed."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(rows), figsize=(3.2 * len(rows), 2.8), layout="constrained", squeeze=False, sharey=True
    )
    for row, axes in zip(rows, panels[0], strict=True):
        for name, style in (("without_join", "--"), ("with_join", "-")):
            losses = {int(step): loss for step, loss in row[name].items()}
            axes.plot(list(losses), list(losses.values()), style, label=name.replace("_", " "))
        axes.axvline(row["joined_at"], color="gray", linewidth=0.8, label="newcomer's first link")
        axes.set(xlabel="outer step", title=f"seed {row['seed']}")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("validation loss")
    panels[0][-1].legend(fontsize="small")
    figure.savefig(PAGE.with_suffix(".png"), dpi=100)
    pyplot.close(figure)


SPIKE = """## No spike

Three peers train the demo's model in `updates` mode, 6 inner steps of 8 examples, and a fourth joins in the middle;
then the same three train without it. {count} seeds, {outer_steps} outer steps, the validation loss measured after each
({machine}). Both runs of a seed are the same bit for bit until the newcomer's first link: {same}.
Change: of the loss over the newcomer's first link; without it: over the same outer step of the other run. Elsewhere:
the outer steps in which nobody joined, up to {window} before and after it, in both runs.

{losses}

- Joins at which the loss rose further than elsewhere: {rose} of {count}.
- Joins at which it changed, up or down, by no more than elsewhere: {within} of {count}; at {fell} it fell further: the
  mean of four is better than that of three.
- Joins of which the newcomer's own effect, the change less the change without it, is no more than the changes
  elsewhere: {own_within} of {count}.

![validation loss with and without a join](joins.png)

What the newcomer and the others had in its first two links, in examples, which are the weights of the mean:

{examples}

Made by `.venv/bin/python -m bench.spike --write`, with the manifest `bench/spike.toml`; the numbers are in
`bench/results/spike.json`.
"""

SECTIONS: dict[str, Callable[[Row], str]] = {"joins": joins_section, "spike": spike_section}


if __name__ == "__main__":
    render()
