"""The sections of docs/performance.md about single rounds: goodput and starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bench.tables import Row, middle, number, percentile, table

GOODPUT_HEAD = (
    "program", "codec", "MB", "peers", "floor s", "seconds", "range", "% of floor", "commit s", "CPU s/MB", "peak",
    "MB sent", "digests",
)  # fmt: skip
PART_NAMES = {
    "even": "All alike",
    "uplink": "20 Mbit/s up, 100 down",
    "slow": "One slow peer (10 Mbit/s) among three at 100",
}


CODEC_ORDER = ("fp32", "fp16", "int8", "int4", "sparse")


def _place(row: Row) -> tuple[int, int, int, bool]:
    """Where a row stands: stock under ours."""
    return row["peers"], row["megabytes"], CODEC_ORDER.index(row["codec"]), row["program"] != "waggle"


def _goodput_row(row: Row) -> list[str]:
    rounds: Sequence[Row] = row["measured"]
    head = [
        "Waggle" if row["program"] == "waggle" else "hivemind", row["codec"], str(row["megabytes"]), str(row["peers"]),
        number(row["floor_seconds"]),
    ]  # fmt: skip
    if not rounds:
        return [*head, "hung", *["-"] * 6, "-"]
    seconds = [one["seconds"] for one in rounds]
    median = middle(seconds) or 0.0
    cpu = middle(one["cpu_seconds"] + one["p2pd_cpu_seconds"] for one in rounds if "cpu_seconds" in one)
    peak = max((one["peak_bytes"] for one in (row.get("warm_up") or {}, *rounds) if "peak_bytes" in one), default=None)
    sent = middle(sum(one["wire_bytes"]) / len(one["wire_bytes"]) for one in rounds)
    return [
        *head, number(median), f"{min(seconds):.2f} - {max(seconds):.2f}",
        f"{100 * row['floor_seconds'] / median:.0f}",
        number(middle(one["commit_seconds"] for one in rounds if "commit_seconds" in one)),
        number(None if cpu is None else cpu / row["megabytes"], 3),
        number(None if peak is None else peak / (1e6 * row["megabytes"]), 1),
        number(None if sent is None else sent / 1e6, 1), agreement(rounds),
    ]  # fmt: skip


def agreement(rounds: Sequence[Row]) -> str:
    """Whether all digests were equal, for a cell."""
    same = sum(bool(one["same_digest"]) for one in rounds)
    return "equal" if same == len(rounds) else f"equal in {same} of {len(rounds)}"


def goodput_section(found: Row) -> str:
    """Seconds over the floor, by links."""
    parts = [GOODPUT]
    for part, data in found.items():
        parts += [
            f"### {PART_NAMES.get(part, part)}",
            f"{calibrated(data)} ({data['machine']}). `sudo .venv/bin/python -m bench.goodput --part {part}`",
            table(GOODPUT_HEAD, map(_goodput_row, sorted(data["rows"], key=_place)), left=2),
        ]
        if part == "even":
            parts += _phases(data["rows"])
        notes = [f"- {_name(row)}: {trouble}" for row in data["rows"] for trouble in _troubles(row)]
        if notes:
            parts.append("\n".join(notes))
    return "\n\n".join(parts)


PHASES_HEAD = (
    "codec", "group", "first byte", "last one scattered", "verdict", "last one has the mean", "last one committed",
    "codec, in all threads",
)  # fmt: skip


def _phase_row(row: Row) -> list[str]:
    """Medians; every peer's own work is in them, as all wait for the last."""
    rounds: Sequence[Row] = row["measured"]

    def at(name: str, plus: str = "") -> str:
        values = [one[name] + (one[plus] if plus else 0.0) for one in rounds if name in one]
        return number(middle(values))

    return [
        row["codec"], at("group_seconds"), at("first_byte_seconds"), at("scatter_seconds"), at("include_seconds"),
        at("seconds"), at("seconds", "commit_seconds"), at("codec_seconds"),
    ]  # fmt: skip


def _phases(rows: Sequence[Row]) -> list[str]:
    """The phases of rounds of 40 MB among four peers on even links."""
    shown = [
        row for row in rows
        if (row["program"], row["megabytes"], row["peers"]) == ("waggle", 40, 4) and row["measured"]
    ]  # fmt: skip
    return [PHASES, table(PHASES_HEAD, map(_phase_row, shown))] if shown else []


PHASES = """Where the time goes, 40 MB and 4 peers: seconds from the moment when the last peer is ready to the group and
the first byte; the others from the first peer that knows its group. The codec's seconds are those of one peer, on
values, within the exchange. A dash: the first byte is known by the first message of `CHUNK_BYTES` or more
(`bench/round_peer.py`), and chunks of sparse are shorter."""


def _name(row: Row) -> str:
    program = "Waggle" if row["program"] == "waggle" else row["program"]
    return f"{program} {row['codec']}, {row['megabytes']} MB, {row['peers']} peers"


def _troubles(row: Row) -> list[str]:
    """What no column of the table tells: hangs, and attempts that were given up."""
    found = []
    if row["hung"] or row.get("cold_hangs"):
        found.append(row["hung"][:200] or f"{row['cold_hangs']} cold starts hung before one did not")
    rounds: list[Row] = [row.get("warm_up") or {}, *row["measured"]]
    reasons = Counter(reason[:100] for one in rounds for reason in one.get("aborts", ()))
    if reasons:
        words = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        again = "made again" if all(one.get("committed", True) for one in rounds) else "not all of them made good"
        hit = sum(bool(one.get("aborts")) for one in rounds)
        found.append(
            f"{reasons.total()} attempts of peers were given up ({words}) and {again}, in {hit} of {len(rounds)} "
            "rounds, the one that warms up included; seconds are those of the last attempts, CPU and bytes of all"
        )
    return found


def calibrated(data: Row) -> str:
    """What plain TCP got on each kind of link of a part. Results of before ``others`` have the first kind's only."""
    measured = [data["calibration"], *data["calibration"].get("others", ())]
    known = {one["link"] for one in measured}
    words = [f"{one['link']}: calibrated {calibration(one)}" for one in measured]
    words += [f"{link}: not calibrated" for link in dict.fromkeys(data.get("links", ())) if link not in known]
    return "; ".join(words)


def calibration(measured: Row) -> str:
    """What plain TCP got, in words."""
    return (
        f"{measured['forth_mbit']:.0f} and {measured['back_mbit']:.0f} Mbit/s one way at a time, "
        f"{measured['both_forth_mbit']:.0f} and {measured['both_back_mbit']:.0f} both at once, round trip "
        f"{measured['round_trip_ms']:.1f} ms"
    )


GOODPUT = """## Goodput

One all-reduce of a vector of so many MB of float32. Seconds: from the first peer that knows its group to the last that
has the mean, the median of the rounds after one that warms the connections up. The floor is what the encoded payloads
need when every peer's line is always full: 2 (n - 1) / n x bytes / rate where all are alike, and with the best
division into parts where they are not (`bench/floors.py`). Commit: from there until the last peer has committed: the
state is computed, hashed and voted on. CPU: of a peer and its p2pd, for each MB of the vector. Peak: the most
memory that any peer takes beyond what it had before its first round, when it has its state and its contribution, over
the vector's size; some 20 MB of it are no vectors, which is much beside 4 MB. MB sent: IP bytes per peer, as the router
counts them. hivemind's 8-bit codecs do not run with numpy 2.4."""


def draw_goodput(found: Row, path: str) -> None:
    """Bars: share of the floor at 4 peers on even links, by codec and size."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 3.2), layout="constrained")
    rows = [row for row in found.get("even", {}).get("rows", []) if row["peers"] == 4 and row["measured"]]
    labels, heights, colours = [], [], []
    for row in sorted(rows, key=lambda row: (row["megabytes"], row["program"])):
        labels.append(f"{row['codec']}\n{row['megabytes']} MB" + ("\nstock" if row["program"] == "hivemind" else ""))
        heights.append(100 * row["floor_seconds"] / (middle(one["seconds"] for one in row["measured"]) or 1.0))
        colours.append("tab:gray" if row["program"] == "hivemind" else "tab:orange")
    axes.bar(range(len(labels)), heights, color=colours)
    axes.set_xticks(range(len(labels)), labels, fontsize="x-small")
    axes.axhline(80, color="black", linewidth=0.8, linestyle="--")
    axes.set(ylabel="% of the floor", title="all-reduce of 4 peers, 100 Mbit/s, 50 ms", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def plain_tcp_section(found: Row) -> str:
    """What the hosts can do in practice."""
    data = found["even"]
    seconds = sorted(data["seconds"])
    half = middle(seconds) or 0.0
    return PLAIN_TCP.format(
        peers=data["peers"], megabytes=data["megabytes"], calibrated=calibrated(data), machine=data["machine"],
        rounds=len(seconds), seconds=half, low=seconds[0], high=seconds[-1],
        share=100 * data["floor_seconds"] / half,
    )  # fmt: skip


PLAIN_TCP = """### Plain TCP, for comparison

{peers} hosts that send each other what an all-reduce of {megabytes} MB of fp32 sends, over one warm connection for each
pair, and wait for nothing: {seconds:.2f} s, the median of {rounds} ({low:.2f} to {high:.2f}), {share:.0f} % of the
floor. {calibrated} ({machine}). `sudo .venv/bin/python -m bench.plain_tcp`"""


def starts_section(found: Row) -> str:
    """Warm and cold starts."""
    data = found["all"]
    rounds = data["warm"]["rounds"]
    rows = []
    for label, name in (
        ("the last peer's first chunk", "first_byte_seconds"),
        ("every peer knows its group", "group_seconds"),
        ("committed (160 KB)", "whole_seconds"),
    ):
        values = [one[name] for one in rounds if name in one]
        rows.append(
            [label, number(middle(values)), number(percentile(values, 0.95)), number(max(values)), agreement(rounds)]
        )
    cold = []
    for label, name in (("Waggle", "cold"), ("hivemind", "stock")):
        starts = data[name]
        good = [one for one in starts if not one["hung"]]
        cold.append(
            [
                label, str(len(starts)), str(len(starts) - len(good)),
                number(middle(one["seconds"] - one["start_seconds"] for one in good)),
                number(max((one["seconds"] - one["start_seconds"] for one in good), default=None)),
                number(middle(one["start_seconds"] for one in good)),
                str(sum(bool(one["aborts"]) for one in good)),
            ]
        )  # fmt: skip
    return STARTS.format(
        machine=data["machine"],
        calibration=calibration(data["calibration"]),
        count=len(rounds),
        warm=table(("seconds until", "median", "95th percentile", "worst", "digests"), rows),
        hung=data["hung_seconds"],
        cold=table(("program", "cold starts", "hung", "first round s", "worst", "start s", "after an abort"), cold),
    )


STARTS = """## Start of a round

Four peers, calibrated {calibration} ({machine}). From the moment when the last peer is ready, over {count} rounds one
after the other:

{warm}

Cold starts: a new key, a new p2pd and a new DHT for every peer, which is told the first peer's address only. A start
hangs that has made no round in {hung:.0f} s. First round: from the start of all peers until the round is over, finding
each other included (hivemind waits 3 s for its matchmaking by its settings); start: until p2pd and DHT run.

{cold}

`sudo .venv/bin/python -m bench.starts`"""
