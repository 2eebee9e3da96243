"""`waggle peer` whose local work is paced: a step takes a fixed time, so that two cores do not decide the result.

    BENCH_STEP_SECONDS=1.0 BENCH_METER=meter.jsonl python -m bench.paced_peer --run run.toml ...

All else is the daemon as it is: its trainer's inner step is replaced by a small change of the parameters and a sleep,
and its metrics also write down each step, each stage of a round and the bytes by purpose. With BENCH_STEP_SECONDS=0
the local work is real, and only written down.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import torch

from bench.usage import Usage, cpu_seconds
from peer import daemon
from peer.metrics import PeerMetrics
from peer.training import Trainer
from peer.values import Stage

_CHANGE = 1e-3
STEP_SECONDS = float(os.environ.get("BENCH_STEP_SECONDS", "1.0"))


class Meter:
    """One JSON line for each thing that happens; times are of the monotonic clock."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, **fields: Any) -> None:
        """One line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(fields) + "\n")


METER = Meter(Path(os.environ.get("BENCH_METER", os.devnull)))


class PacedTrainer(Trainer):
    """Sleeps where others compute."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        generator = torch.Generator().manual_seed(os.getpid())  # every peer has work of its own
        self._change = [torch.randn(value.shape, generator=generator) for value in self.model.parameters()]

    @torch.no_grad()
    def inner_step(self) -> float:
        """Changes the parameters and takes its time; see Trainer."""
        began = time.monotonic()
        for value, change in zip(self.model.parameters(), self._change, strict=True):
            value.add_(change, alpha=_CHANGE)
        batch, loss = self._manifest.data.batch_size, 1.0
        self.examples += batch
        self.inner_steps += 1
        self._total_steps += 1
        self._loss_sum += loss * batch
        time.sleep(max(0.0, began + STEP_SECONDS - time.monotonic()))
        METER.write(step=[began, time.monotonic()], examples=batch)
        return loss


class WatchedTrainer(Trainer):
    """Real work, written down."""

    def inner_step(self) -> float:
        """See Trainer."""
        began = time.monotonic()
        loss = super().inner_step()
        METER.write(step=[began, time.monotonic()], examples=self._manifest.data.batch_size)
        return loss


class WatchedMetrics(PeerMetrics):
    """Also writes a line at each commit: the marks of its attempt, and bytes and CPU seconds so far."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self._marks: dict[str, float] = {}
        self._by_purpose: Counter[str] = Counter()
        self._usage = Usage()

    def traffic(self, purpose: str, direction: str, count: int) -> None:
        """See NetworkMetrics."""
        super().traffic(purpose, direction, count)
        self._by_purpose[f"{purpose}_{direction}"] += count

    async def reached(self, stage: Stage, outer_step: int) -> None:
        """See PeerMetrics."""
        await super().reached(stage, outer_step)
        self._marks[stage.value] = time.monotonic()
        if stage is Stage.COMMITTED:
            METER.write(
                commit=outer_step + 1, marks=self._marks, bytes=dict(self._by_purpose),
                **self._usage.since(), p2pd_seconds=_p2pd_seconds(),
            )  # fmt: skip
            self._marks = {}


def _p2pd_seconds() -> float:
    return sum(cpu_seconds(child.pid) for child in psutil.Process().children())


def main() -> None:
    """Puts them in place and becomes `waggle peer`."""
    places: dict[str, Any] = vars(daemon)
    assert {"Trainer", "PeerMetrics"} <= set(places), "the daemon has other names now"
    places["Trainer"] = PacedTrainer if STEP_SECONDS else WatchedTrainer
    places["PeerMetrics"] = WatchedMetrics
    from peer.command import main as peer

    sys.argv[0] = "waggle peer"
    peer()


if __name__ == "__main__":
    main()
