"""Stock hivemind.Optimizer (bench/stock.py) in the hosts of an emulated internet, from its start to its last epoch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from bench.internet import Internet
from bench.tables import Row

_SPARE_SECONDS = 180.0
_EPOCH_SECONDS = 60.0
_CLOSE = 1e-3
"""Of what the sum of the parameters fell by after the first epoch: as close as sums of values that fp16 rounded are."""


def run_stock(internet: Internet, peers: int, inner_steps: int, outer_steps: int, step_seconds: float) -> Row:
    """One peer in each host: utilisation after the first epoch, and whether all ended at the same parameters."""
    epochs = outer_steps + 1
    limit = epochs * (inner_steps * step_seconds + _EPOCH_SECONDS)
    with tempfile.TemporaryDirectory(prefix="waggle-stock-") as folder:
        processes = []
        for host in range(peers):
            command = [
                sys.executable, "-m", "bench.stock", "optimizer", internet.hosts[host].address, f"{folder}/maddrs",
                "--peers", str(peers), "--steps", str(inner_steps), "--epochs", str(epochs),
                "--pace", str(step_seconds), "--limit", str(limit), *(["--first"] if host == 0 else []),
            ]  # fmt: skip
            with (Path(folder) / f"{host}.log").open("wb") as log:
                processes.append(internet.start(host, command, stdout=subprocess.PIPE, stderr=log, text=True))
        rows: list[list[Row]] = []
        for process in processes:
            try:
                told = process.communicate(timeout=limit + _SPARE_SECONDS)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                told = process.communicate()[0]
            rows.append([json.loads(line) for line in told.splitlines() if line.startswith("{")])
        internet.clear()
    return summarise(rows, epochs)


def summarise(peers: list[list[Row]], epochs: int) -> Row:
    """From the lines of each peer; the first epoch has the start in it and does not count."""
    counted = [[row for row in rows if row["epoch"] > 1] for rows in peers]
    shares = [
        sum(row["work_seconds"] for row in rows) / sum(row["seconds"] for row in rows) for rows in counted if rows
    ]
    last = [rows[-1] for rows in peers if rows]
    sums = [row["sum"] for row in last]
    whole = len(last) == len(peers) and {row["epoch"] for row in last} == {epochs}
    same = whole and max(sums) - min(sums) <= _CLOSE * median(abs(rows[0]["sum"] - rows[-1]["sum"]) for rows in peers)
    return {
        "utilisation": median(shares) if shares else None,
        "same_digest": same,
        "sums": sums,
        "seconds": max((sum(row["seconds"] for row in rows) for rows in counted), default=None),
        "epochs_done": [row["epoch"] for row in last],
    }
