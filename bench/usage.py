"""What a process and its children cost: CPU seconds and the most memory they took."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import psutil
import structlog


def warnings_only() -> None:
    """Standard output is for numbers; BENCH_LOG=debug says more on standard error."""
    level = logging.DEBUG if os.environ.get("BENCH_LOG") == "debug" else logging.WARNING
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def memory_bytes(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


class Usage:
    """Of this process and of ``others``, such as its p2pd, since it was made.

    memory: what to count the most memory from; this moment's where it is not given. What is freed in between is often
    kept by malloc, and would make a later beginning look as if what comes then were less.
    """

    def __init__(self, others: Collection[int] = (), memory: int | None = None):
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the most memory that we ever had
        self._others = {pid: cpu_seconds(pid) for pid in others}
        self._own, self.memory = cpu_seconds(os.getpid()), memory_bytes("VmRSS") if memory is None else memory
        self._began = time.monotonic()

    def since(self) -> dict[str, Any]:
        """``cpu_seconds`` of this process, ``p2pd_cpu_seconds`` of the others, ``peak_bytes`` above the beginning."""
        return {
            "cpu_seconds": cpu_seconds(os.getpid()) - self._own,
            "p2pd_cpu_seconds": sum(cpu_seconds(pid) - before for pid, before in self._others.items()),
            "peak_bytes": memory_bytes("VmHWM") - self.memory,
        }
