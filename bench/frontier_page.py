"""The frontier of bench/frontier.py as a section of docs/performance.md: tables, a chart, and words between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from bench.frontier_arms import FAMILIES, LONG, RATES, SHORT, Family, runs_of
from bench.frontier_words import SECTION
from bench.tables import Row, table

WHOLE, EVERY_STEP, ALONE = "whole batch", "updates 1 fp32", "alone"
TARGETS = ((10, 0.01), (30, 0.03), (100, 0.05))
"""Times fewer bytes than fp32 every step, and the loss above the whole batch that this may cost, at LONG."""


@dataclass(frozen=True)
class Point:
    """A family at one length. fewer: bytes of fp32 every step over its own. above: loss over the whole batch's - 1,
    of the same seeds, one by one."""

    family: Family
    rate: float
    seeds: int
    loss: float
    spread: float
    above: float
    above_every_step: float | None
    bytes_per_token: float
    fewer: float


def _at(runs: Sequence[Row], steps: int) -> dict[int, float]:
    return {run["seed"]: run["losses"][str(steps)] for run in runs if str(steps) in run["losses"]}


def best_runs(results: Row, family: Family) -> list[Row]:
    """The runs of the family's arm with the least loss at SHORT on seed 0; none until its whole grid has run."""
    grid = [runs_of(results, arm) for arm in family.grid]
    losses = [_at(of_arm, SHORT).get(0) for of_arm in grid]
    ran = [(loss, index) for index, loss in enumerate(losses) if loss is not None]
    return grid[min(ran)[1]] if len(ran) == len(grid) else []


def points(results: Row, steps: int) -> list[Point]:
    """The families of equal effort that reached ``steps``, fewest bytes last."""
    whole = best_runs(results, FAMILIES[WHOLE])
    zero = _at(whole, steps)
    every = _at(best_runs(results, FAMILIES[EVERY_STEP]), steps)
    found = []
    for family in FAMILIES.values():
        runs = [] if family.tried else best_runs(results, family)
        losses = {seed: loss for seed, loss in _at(runs, steps).items() if seed in zero}
        if not losses:
            continue
        size = runs[0]["bytes_per_token"]
        paired = [losses[seed] / every[seed] - 1 for seed in losses if seed in every]
        found.append(
            Point(
                family=family,
                rate=runs[0]["arm"]["learning_rate"],
                seeds=len(losses),
                loss=mean(losses.values()),
                spread=stdev(losses.values()) if len(losses) > 1 else 0.0,
                above=mean(loss / zero[seed] - 1 for seed, loss in losses.items()),
                above_every_step=mean(paired) if paired else None,
                bytes_per_token=size,
                fewer=whole[0]["bytes_per_token"] / size if size else float("inf"),
            )
        )
    return sorted(found, key=lambda point: (-point.bytes_per_token, point.above))


def _compares(point: Point) -> bool:
    """Whether it is a way to exchange: not "alone", nor with another inner optimizer than the whole batch has."""
    return point.family.name != ALONE and not point.family.grid[0].muon


def best_within(found: Sequence[Point], fewer: float, *, published: bool) -> Point | None:
    """The least loss among those that send at most 1/``fewer`` of fp32 every step."""
    able = [
        point for point in found
        if point.fewer >= fewer and bool(point.family.published) == published and _compares(point)
    ]  # fmt: skip
    return min(able, key=lambda point: point.above, default=None)


def curve(found: Sequence[Point]) -> list[Point]:
    """Ours that no other of ours beats in both loss and bytes, most bytes first."""
    kept: list[Point] = []
    for point in sorted(found, key=lambda point: (point.bytes_per_token, point.above)):
        ours = not point.family.published and _compares(point)
        if ours and all(point.above < other.above for other in kept):
            kept.append(point)
    return kept[::-1]


def _name(family: Family) -> str:
    return f"{family.name} ({family.published})" if family.published else family.name


def _cells(point: Point) -> list[str]:
    spread = f" ± {point.spread:.3f}" if point.seeds > 1 else ""
    every = "" if point.above_every_step is None else f"{point.above_every_step:+.1%}"
    fewer = "no bytes" if point.bytes_per_token == 0 else f"{point.fewer:.3g}x"
    return [
        _name(point.family), f"{point.rate:g}", f"{point.bytes_per_token:.4g}", fewer, f"{point.loss:.3f}{spread}",
        str(point.seeds), f"{point.above:+.1%}", every,
    ]  # fmt: skip


def _tried_rows(results: Row) -> list[list[str]]:
    """What was tried once, fewest bytes last."""
    whole = best_runs(results, FAMILIES[WHOLE])
    found = [(family, run) for family in FAMILIES.values() if family.tried for run in runs_of(results, family.grid[0])]
    rows = []
    for family, run in sorted(found, key=lambda one: -one[1]["bytes_per_token"]):
        size = run["bytes_per_token"]
        cells = [_name(family), f"{size:.4g}", f"{whole[0]['bytes_per_token'] / size:.3g}x" if whole and size else "-"]
        for steps in (SHORT, LONG):
            loss, zero = run["losses"].get(str(steps)), _at(whole, steps).get(run["seed"])
            cells.append("-" if loss is None else f"{loss:.3f}")
            cells.append("-" if loss is None or zero is None else f"{loss / zero - 1:+.1%}")
        rows.append(cells)
    return rows


TRIED_HEAD = ("arm", "bytes per token", "fewer", f"loss at {SHORT}", "over whole batch", f"at {LONG}", "over it")
HEAD = ("arm", "rate", "bytes per token", "fewer", "loss", "seeds", "over whole batch", "over fp32 updates every step")


def _seeds(point: Point) -> str:
    return f"{point.seeds} seed" + "s" * (point.seeds > 1)


def _target_rows(found: Sequence[Point]) -> list[list[str]]:
    rows = []
    for fewer, allowed in TARGETS:
        ours, theirs = (best_within(found, fewer, published=published) for published in (False, True))
        if ours is None:
            continue
        met = "yes" if ours.above <= allowed else "no"
        other = "" if theirs is None else f"{theirs.family.name}: {theirs.above:+.1%} ({_seeds(theirs)})"
        by = f"{ours.family.name} ({_seeds(ours)})"
        rows.append([f"{fewer}x", f"{allowed:+.0%}", f"{ours.above:+.1%}", met, by, other])
    return rows


def _recipe_rows(found: Sequence[Point]) -> list[list[str]]:
    """Each published recipe, and the best of ours that sends no more, to 1 %: rows that are cut short cost as much."""
    rows = []
    for theirs in found:
        ours = best_within(found, 0.99 * theirs.fewer, published=False) if theirs.family.published else None
        if ours is not None:
            cells = [[f"{one.bytes_per_token:.3g}", f"{one.above:+.1%} ({_seeds(one)})"] for one in (theirs, ours)]
            better = "yes" if ours.above <= theirs.above else "no"
            rows.append([theirs.family.name, *cells[0], ours.family.name, *cells[1], better])
    return rows


RECIPE_HEAD = ("recipe", "bytes per token", "loss", "ours with no more bytes", "bytes per token", "loss", "better")
TARGET_HEAD = ("bytes, at most 1 /", "wanted", "ours", "reached", "by", "best published recipe")


CONFIRMED_HEAD = ("arm", "inner steps", "loss of real peers", "simulated", "digests equal after every commit")


def _confirmed(results: Row) -> str:
    rows = [
        [
            row["family"], str(row["steps"]), f"{row['loss']:.4f}",
            "-" if row["simulated"] is None else f"{row['simulated']:.4f}", "yes" if row["agreed"] else "no",
        ]
        for row in results.get("confirmed", [])
    ]  # fmt: skip
    if not rows:
        return ""
    lead = "Four real peers (`.venv/bin/python -m bench.frontier_confirm`), seed 0:"
    return "### Confirmed by real peers\n\n" + lead + "\n\n" + table(CONFIRMED_HEAD, rows) + "\n\n"


def frontier_section(results: Row) -> str:
    """The section, in Markdown."""
    found = {steps: points(results, steps) for steps in (SHORT, LONG)}
    return SECTION.format(
        machine=results["machine"],
        warmup=20,
        short_steps=SHORT,
        long_steps=LONG,
        rates=", ".join(f"{rate:g}" for rate in RATES),
        defaults=table(DEFAULTS_HEAD, _default_rows(found[SHORT])),
        optimizers=table(OPTIMIZERS_HEAD, _optimizer_rows(found[SHORT], found[LONG]), left=3),
        targets=table(TARGET_HEAD, _target_rows(found[LONG])),
        short_targets=table(TARGET_HEAD, _target_rows(found[SHORT])),
        recipes=table(RECIPE_HEAD, _recipe_rows(found[LONG])),
        short_recipes=table(RECIPE_HEAD, _recipe_rows(found[SHORT])),
        long=table(HEAD, [_cells(point) for point in found[LONG]]),
        short=table(HEAD, [_cells(point) for point in found[SHORT]]),
        tried=table(TRIED_HEAD, _tried_rows(results)),
        confirmed=_confirmed(results),
    )


def draw_frontier(results: Row, path: Path) -> None:
    """A PNG: loss over the whole batch against bytes per token, one panel for each length.

    Names are at recipes and at ours that no other of ours beats; what is much worse than "alone" is left out.
    """
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    for steps, axes in zip((SHORT, LONG), panels, strict=True):
        found = points(results, steps)
        sent = [point for point in found if point.bytes_per_token]
        ours = curve(sent)
        for point in found:
            if point.family.name == ALONE:
                axes.axhline(100 * point.above, color="gray", linestyle=":", label="one peer alone")
                axes.set_ylim(-5 * point.above - 2, 160 * point.above)
        for published, marker, label in ((False, "o", "ours"), (True, "^", "published recipes")):
            shown = [point for point in sent if bool(point.family.published) == published and _compares(point)]
            axes.plot(
                [point.bytes_per_token for point in shown], [100 * point.above for point in shown], marker,
                label=label, markersize=5,
            )  # fmt: skip
            for point in shown:
                if published or point in ours:
                    axes.annotate(
                        point.family.name, (point.bytes_per_token, 100 * point.above), fontsize=6,
                        xytext=(4, 3), textcoords="offset points", annotation_clip=True,
                        color="C1" if published else "C0",
                    )  # fmt: skip
        axes.plot([point.bytes_per_token for point in ours], [100 * point.above for point in ours], "-", color="C0")
        axes.set(xscale="log", xlabel="bytes per token, sent by a peer", title=f"{steps} inner steps")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("validation loss over the whole batch's, %")
    panels[0].legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


DEFAULTS_HEAD = (
    "as many inner steps as the link asks for",
    "codec",
    "residual",
    "loss over whole batch",
    "fewer bytes",
)
DEFAULTS = (
    ("1", "sparse, keep_one_in = 32", "local", "updates 1 sparse/32 local"),
    ("5", "sparse, keep_one_in = 8", "local", "updates 5 sparse/8 local"),
    ("10", "sparse, keep_one_in = 4", "local", "updates 10 sparse/4 local"),
    ("20 and 30", "int4", "local", "updates 30 int4 local"),
    (
        "5, where a round takes little beside its bytes", "sparse, keep_one_in = 256, mean_keep_one_in = 64",
        "feedback, 0.99", "updates 5 sparse/256 ef.99, mean sparse",
    ),
    ("50 (these are of 100)", "int4", "local", "updates 100 int4 local"),
    (
        "30 and more, overlapped, if 50 are not enough", "fp32, or a coarser one", "-",
        "updates 30 fp32 overlapped, mixed 0.5",
    ),
    (
        "10, where nothing else is left", "sparse, keep_one_in = 256, mean_keep_one_in = 64", "feedback, 0.99",
        "updates 10 sparse/256 ef.99, mean sparse",
    ),
)  # fmt: skip
"""Inner steps, codec, residual, the family that shows it."""
OPTIMIZERS = (
    ("AdamW", "SGD at 1.0", "updates 10 fp32"),
    ("Muon", "SGD at 1.0", "updates 10 fp32 muon"),
    ("AdamW", "SGD at 1.0", "updates 30 fp32"),
    ("AdamW", "Nesterov, 0.7, momentum 0.5", "updates 30 fp32 nesterov.5"),
    ("AdamW", "Nesterov, 0.7, momentum 0.9 (DiLoCo)", "DiLoCo 30"),
    ("AdamW", "SGD at 1.0", "updates 30 int4 local"),
    ("Muon", "SGD at 1.0", "updates 30 int4 local muon"),
    ("AdamW", "SGD at 1.0", "updates 100 fp32"),
    ("AdamW", "Nesterov, 0.7, momentum 0.9 (DiLoCo)", "DiLoCo 100"),
)
"""Inner optimizer, outer one, the family that shows it."""
OPTIMIZERS_HEAD = ("inner", "outer", "codec", "inner steps", "rate", f"loss at {SHORT}", f"loss at {LONG}", "seeds")


def _optimizer_rows(short: Sequence[Point], long: Sequence[Point]) -> list[list[str]]:
    by_name = [{point.family.name: point for point in found} for found in (short, long)]
    rows = []
    for inner, outer, family in OPTIMIZERS:
        points_ = [found.get(family) for found in by_name]
        losses = ["-" if point is None else f"{point.loss:.3f}" for point in points_]
        rate = "-" if points_[0] is None else f"{points_[0].rate:g}"
        seeds = ", ".join(str(point.seeds) for point in points_ if point is not None)
        arm = FAMILIES[family].grid[0]
        rows.append([inner, outer, arm.codec, str(arm.inner_steps), rate, *losses, seeds])
    return rows


def _default_rows(found: Sequence[Point]) -> list[list[str]]:
    by_name = {point.family.name: point for point in found}
    rows = []
    for steps, codec, residual, family in DEFAULTS:
        point = by_name.get(family)
        shown = ["-", "-"] if point is None else [f"{point.above:+.1%} ({_seeds(point)})", f"{point.fewer:.3g}x"]
        rows.append([steps, codec, residual, *shown])
    return rows
