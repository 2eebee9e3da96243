"""The sections of docs/performance.md about the machine: more cores, the daemon's overhead, inner optimizers, GPUs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields

from bench.overhead import Work
from bench.page_rounds import calibrated
from bench.tables import Row, load, middle, number, table


def overhead_section(found: Row) -> str:
    """The peer over the bare loop, on each kind of device."""
    return "\n\n".join([OVERHEAD, *(_overhead(found[device]) for device in ("cpu", "cuda") if device in found)])


def _overhead(data: Row) -> str:
    rows = []
    for number_, (peer, bare) in enumerate(zip(data["peer"], data["bare"], strict=True), 1):
        rates = [one["examples"] / one["seconds"] for one in (peer, bare)]
        inside = 100 * peer["step_seconds"] / peer["seconds"]
        rows.append([str(number_), f"{rates[0]:.2f}", f"{rates[1]:.2f}", f"{rates[0] / rates[1]:.3f}", f"{inside:.1f}"])
    rows.append(["median", f"{data['peer_rate']:.2f}", f"{data['bare_rate']:.2f}", f"{data['ratio']:.3f}", ""])
    head = ("turn", "peer, examples/s", "bare loop, examples/s", "ratio", "% of the peer's time in steps")
    work = f"{data['inner_steps']} inner steps of {data['batch_size']} examples"
    flags = "".join(
        f" --{field.name.replace('_', '-')} {data[field.name]}"
        for field in fields(Work)
        if data[field.name] != field.default
    )
    return (
        f"{_device(data)}, {work}, {data['codec']}:\n\n{table(head, rows)}\n\n"
        f"`sudo .venv/bin/python -m bench.overhead{flags}`"
    )


def _device(data: Row) -> str:
    """On what a part was measured, to begin a sentence with."""
    return f"On one {data['device_name']} ({data['machine']})" if data["device_name"] else f"On {data['machine']}"


OVERHEAD = """## Daemon overhead

One `waggle peer` alone (`min_group_size = 1`), commits included, against a plain loop with the same model (10 M
parameters), data, optimizer and one thread of the CPU, in turn."""


def inner_section(found: Row) -> str:
    """What inner optimizers take, on each kind of device."""
    return "\n\n".join([INNER, *(_inner(device, found[device]) for device in ("cpu", "cuda") if device in found)])


def _inner(device: str, data: Row) -> str:
    """Only on a CPU are steps so long that Muon's can be compared with AdamW's as a whole."""
    on_cpu = device == "cpu"
    whole = {
        (row["model"], row["optimizer"]): row["gradient_seconds"] + row["step_seconds"] for row in data["rows"]
    }  # fmt: skip
    rows = []
    for row in data["rows"]:
        rows.append([
            row["model"], f"{row['parameters'] / 1e6:.2g} M", str(row["tokens"]), row["optimizer"],
            f"{1000 * row['gradient_seconds']:.1f}", f"{1000 * row['step_seconds']:.1f}",
        ])  # fmt: skip
        if on_cpu:
            rows[-1].append(f"{whole[row['model'], row['optimizer']] / whole[row['model'], 'adamw']:.2f}x")
    unit = "CPU ms" if on_cpu else "ms"
    head = ["template", "parameters", "tokens", "optimizer", f"gradient, {unit}", f"its step, {unit}"]
    where = f"{_device(data)}, one thread:"
    if on_cpu:
        head.append("over AdamW")
    else:
        where = (
            f"{_device(data)}; each timing waits until the GPU has finished. Such steps are mostly the time to start\n"
            "kernels, and twenty of them are few: the gradients are the same work for both optimizers."
        )
    flags = "" if on_cpu else f" --device {device}"
    return f"{where}\n\n{table(head, rows)}\n\n`.venv/bin/python -m bench.inner{flags}`"


INNER = """## Inner optimizers

What an inner step costs, for models of `waggle run new`, medians."""


def cores_section(found: Row) -> str:
    """Rows of other tables again, where every peer has cores of its own; theirs beside them."""
    rounds, daemons = ((load(name) or {}).get("even", {}) for name in ("goodput", "utilisation"))
    parts = [CORES]
    for cores, data in found.items():
        head = ("row", "floor", "above", f"{cores} cores", f"% of floor, {cores} cores")
        rows = _compared(data, rounds.get("rows", ()), daemons.get("rows", ()))
        where = f"{data['machine']}; {calibrated(data)}. Above: {rounds.get('machine', 'not measured')}."
        parts += [where, table(head, rows)]
    return "\n\n".join([*parts, "`sudo .venv/bin/python -m bench.cores`"])


def _compared(data: Row, rounds: Sequence[Row], daemons: Sequence[Row]) -> list[list[str]]:
    """Each row of ``data`` with the same one of the tables above."""
    rows = []
    for row in data["goodput"]:
        before = _same(row, rounds, ("program", "codec", "megabytes", "peers"))
        few, many = (middle(one["seconds"] for one in at.get("measured", ())) for at in (before, row))
        name = f"{row['codec']}, {row['megabytes']} MB, {row['peers']} peers: seconds"
        share = number(100 * row["floor_seconds"] / many if many else None, 0)
        rows.append([name, number(row["floor_seconds"]), number(few), number(many), share])
    for row in data["utilisation"]:
        before = _same(row, daemons, ("program", "codec", "overlap", "inner_steps"))
        name = f"{row['codec']}, {row['inner_steps']} inner steps: utilisation"
        rows.append([name, "", number(before.get("utilisation"), 3), number(row.get("utilisation"), 3), ""])
    return rows


def _same(row: Row, rows: Iterable[Row], names: Sequence[str]) -> Row:
    """The row of an earlier table; an empty one where there is none."""
    return next((one for one in rows if all(one[name] == row[name] for name in names)), {})


CORES = """## With more cores

All hosts, and the router between them, share one machine. Some rows of the tables above again, on another machine with
so many cores that every peer has two of its own (one thread for its values, as above, and one for the rest)."""
