"""Where measured numbers are kept, and how they become Markdown."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

RESULTS = Path(__file__).resolve().parent / "results"
DOCS = Path(__file__).resolve().parents[1] / "docs"
Row = dict[str, Any]


def machine() -> str:
    """What the numbers were measured on."""
    import torch

    return f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def device_name(device: torch.device) -> str:
    """The GPU's; empty for a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def keep(name: str, part: str, data: Row) -> None:
    """Puts ``data`` into bench/results/NAME.json as one part of it; the other parts stay as they are."""
    path = RESULTS / f"{name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[part] = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), **data}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def keep_rows(name: str, part: str, key: Sequence[str], data: Row) -> None:
    """As ``keep``, for ``data`` with "rows": those of earlier runs stay where no new row is the same in ``key``."""
    rows = list(data["rows"])
    new = [[row[field] for field in key] for row in rows]
    kept = (load(name) or {}).get(part, {}).get("rows", [])
    old = [row for row in kept if [row.get(field) for field in key] not in new]
    keep(name, part, {**data, "rows": [*old, *rows]})


def load(name: str) -> Row | None:
    """What was kept under ``name``; None before it was measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Markdown, the first ``left`` columns to the left and the others to the right."""
    ruler = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ruler, *rows))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(1000 * share) * len(ordered) // 1000) - 1)]


def middle(values: Iterable[float]) -> float | None:
    """The median; None of nothing."""
    found = list(values)
    return median(found) if found else None


def number(value: float | None, digits: int = 2) -> str:
    """``value`` for a cell; a dash for what is not there."""
    return "-" if value is None else f"{value:.{digits}f}"


@contextlib.contextmanager
def one_line(program: str, *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds are told in one line and end the program with exit code 1."""
    try:
        yield
    except kinds as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def say(*words: object) -> None:
    """Tells whoever waits how far it is."""
    print(time.strftime("%H:%M:%S"), *words, file=sys.stderr, flush=True)
