"""The sections of docs/performance.md about whole daemons: utilisation and bytes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from bench.page_rounds import CODEC_ORDER, calibrated
from bench.tables import Row, number, table

PART_NAMES = {
    "even": "30 inner steps, 100 Mbit/s",
    "steps": "5, 10 and 100 inner steps",
    "uplink": "20 Mbit/s up, 100 down",
    "uneven": "One peer four times slower",
}
HEAD = ("program", "codec", "overlap", "inner steps", "utilisation", "ready to commit s", "CPU s/outer step", "digests")
UNEVEN_HEAD = ("slowest peer's step", "target", "outer steps/hour", "ideal", "%", "examples by peer", "digests")
BYTES_HEAD = ("codec", "rounds", "all streams", "on the wire", "fewer than fp32", "per token at 30 steps", "digests")


def _place(row: Row) -> tuple[int, int, int, bool]:
    """Where a row stands: stock first."""
    return row["inner_steps"], row["overlap"], CODEC_ORDER.index(row["codec"]), row["program"] == "waggle"


def _row(row: Row) -> list[str]:
    name = "Waggle" if row["program"] == "waggle" else "hivemind"
    head = [name, row["codec"], "yes" if row["overlap"] else "no", str(row["inner_steps"])]
    if row["failed"]:
        return [*head, "failed", "-", "-", "-"]
    same = "equal" if row["same_digest"] else "differ"
    if "peers" not in row:
        return [*head, number(row["utilisation"], 3), "-", "-", same]
    waits = median(one["ready_to_commit_seconds"] for one in row["peers"])
    cpu = median(one["cpu_seconds"] + one["p2pd_seconds"] for one in row["peers"]) / row["outer_steps"]
    return [*head, number(row["utilisation"], 3), number(waits), number(cpu), same]


def ideal_steps_per_hour(target: int, batch: int, step_seconds: Sequence[float]) -> float:
    """Outer steps per hour of a swarm that loses no time: all peers' examples per second over the target."""
    return 3600 * sum(batch / seconds for seconds in step_seconds) / target


def _uneven_row(row: Row) -> list[str]:
    target = row["rules"]["target_batch"]
    slow = f"{row['step_seconds'] * row['slow']:g} s, the others' {row['step_seconds']:g} s"
    if row["failed"]:
        return [slow, str(target), "failed", "-", "-", "-", "-"]
    steps = [row["step_seconds"]] * 3 + [row["step_seconds"] * row["slow"]]
    ideal, real = ideal_steps_per_hour(target, 8, steps), 3600 * row["outer_steps"] / row["seconds"]
    same = "equal" if row["same_digest"] else "differ"
    examples = ", ".join(map(str, row["examples"]))
    return [slow, str(target), f"{real:.0f}", f"{ideal:.0f}", f"{100 * real / ideal:.0f}", examples, same]


def _pace(rows: Sequence[Row]) -> str:
    return f"Steps of {' and '.join(f'{one:g}' for one in sorted({row['step_seconds'] for row in rows}))} s. "


def utilisation_section(found: Row) -> str:
    """By part."""
    parts = [UTILISATION]
    for part, data in found.items():
        uneven = part == "uneven"
        head, make = (UNEVEN_HEAD, _uneven_row) if uneven else (HEAD, _row)
        parts += [
            f"### {PART_NAMES.get(part, part)}",
            f"{calibrated(data)} ({data['machine']}). {'' if uneven else _pace(data['rows'])}"
            f"`sudo .venv/bin/python -m bench.utilisation --part {part}`",
        ]
        if uneven:
            slowest = max(row["step_seconds"] * row["slow"] for row in data["rows"])
            parts.append(UNEVEN.format(slowest=slowest))
        rows = data["rows"] if uneven else sorted(data["rows"], key=_place)
        parts.append(table(head, map(make, rows), left=1 if uneven else 2))
        failed = [row for row in data["rows"] if row["failed"]]
        if failed:
            parts.append("\n".join(f"- {row['codec']}: {row['failed'][-200:]}" for row in failed))
    return "\n\n".join(parts)


UTILISATION = """## Utilisation

Four `waggle peer` processes, 10 M parameters, steps that take a fixed time whatever the cores do. Utilisation: the
time in inner steps over all time from the first commit to the last, the median of the peers. Beside them hivemind's
`Optimizer`, fp16, each peer with the same pace; all its peers have the same gradient in every step, so its digests are
the sums of its parameters, which should all be the same (to a thousandth of what they fell by)."""

UNEVEN = """The round begins when the swarm has done the target, whoever did it. Ideal: the target over all peers'
speed, no time lost. The examples are those that the commits count. A round costs what it does above, and begins when
everyone has ended the inner step it is in: up to {slowest:g} s of the slow peer's."""


def draw_utilisation(found: Row, path: str) -> None:
    """Bars of all rows that have a utilisation."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    rows = [
        (part, row)
        for part, data in found.items()
        for row in data["rows"]
        if part != "uneven" and not row["failed"] and row["utilisation"] is not None
    ]
    figure, axes = pyplot.subplots(figsize=(7.5, 0.6 + 0.3 * len(rows)), layout="constrained")
    labels = [
        f"{'stock ' if row['program'] == 'hivemind' else ''}{row['codec']}{' overlap' if row['overlap'] else ''}, "
        f"{row['inner_steps']} steps{', 20 Mbit/s up' if part == 'uplink' else ''}"
        for part, row in rows
    ]
    colours = ["tab:gray" if row["program"] == "hivemind" else "tab:orange" for _, row in rows]
    axes.barh(range(len(rows)), [row["utilisation"] for _, row in rows], color=colours)
    axes.set_yticks(range(len(rows)), labels, fontsize="x-small")
    axes.invert_yaxis()
    axes.set(xlabel="utilisation", xlim=(0, 1))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def bytes_section(found: Row) -> str:
    """By codec."""
    data = found["all"]
    whole = next((row["round_bytes"] for row in data["rows"] if row["codec"] == "fp32"), None)
    tokens = 30 * 8 * 64  # of one peer in one outer step of the utilisation table
    rows = [
        [
            row["codec"], *(f"{row[name] / 1e6:.3f} MB" for name in ("round_bytes", "stream_bytes", "wire_bytes")),
            "-" if whole is None else f"{whole / row['round_bytes']:.1f}x", f"{row['round_bytes'] / tokens:.1f}",
            "equal" if row["same_digest"] else "differ",
        ]
        for row in data["rows"]
    ]  # fmt: skip
    return BYTES.format(
        peers=data["peers"], millions=data["parameters"] / 1e6, machine=data["machine"], table=table(BYTES_HEAD, rows)
    )


BYTES = """## Bytes

{peers} `waggle peer` processes, {millions:g} M parameters ({machine}): what one peer sends in one outer step. Rounds:
over libp2p streams for rounds, headers included, as the daemon counts them; all streams: for whatever purpose; on the
wire: IP packets as the router counts them, with encryption, acknowledgements and the records of the DHT. Per token:
round bytes over the tokens of a peer in 30 steps of 8 x 64.

{table}

`sudo .venv/bin/python -m bench.bytes`"""
