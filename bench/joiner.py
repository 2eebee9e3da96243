"""The newcomer of bench/joins.py: a process that downloads a state as often as it is told to, and says what that took.

Reads one JSON object per line: the donors, peer id -> multiaddrs. Answers each with a line: seconds from the question
to the adopted state, CPU seconds of this process and of its p2pd, the peak of memory above what it was before, the
digest, and whom the log named.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import structlog
import torch
from structlog.testing import capture_logs

from peer.layout import Layout
from peer.optimizers import outer_optimizer
from peer.state.store import Store
from peer.state.transfer import Transfer
from swarm.history import heavier
from swarm.identity import Identity
from swarm.network import Network
from swarm.optimizer import Optimizer
from swarm.p2pd import P2PDOptions

LONGEST_SECONDS = 120.0


def warnings_only() -> None:
    """Standard output is for numbers."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def _forget_peak() -> None:
    """The kernel forgets the most memory that this process ever had."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


async def join(network: Network, run_id: str, parameters: int, donors: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """One download by a peer that holds nothing but the state with which the run began."""
    layout = Layout((("weight", (parameters,)),))
    optimizer = outer_optimizer(Optimizer(optimizer="sgd", learning_rate=1.0))
    store = Store(run_id, layout, torch.zeros(parameters), optimizer)
    transfer = Transfer(run_id, store, network, lambda direction, outcome: None)
    for donor, maddrs in donors.items():
        if not await network.dial(donor, maddrs):
            raise RuntimeError(f"cannot dial {donor}")
    pids = (psutil.Process().pid, network.p2pd_pid)
    gc.collect()
    _forget_peak()
    memory, cpu, began = _memory_bytes("VmRSS"), [_cpu_seconds(pid) for pid in pids], time.monotonic()
    with capture_logs() as logs, contextlib.suppress(asyncio.TimeoutError):
        catching_up = transfer.catch_up(list(donors), lambda head: heavier(head, store.head))
        await asyncio.wait_for(catching_up, LONGEST_SECONDS)
    return {
        "seconds": time.monotonic() - began,
        "cpu_seconds": sum(_cpu_seconds(pid) - before for pid, before in zip(pids, cpu, strict=True)),
        "peak_bytes": _memory_bytes("VmHWM") - memory,
        "digest": store.head.digest,
        "named": {line["donor"]: line.get("why", line["event"]) for line in logs if "donor" in line},
    }


async def main(folder: Path, run_id: str, parameters: int) -> None:
    """Joins for every line of standard input, until its end."""
    identity = Identity.load_or_create(folder / "joiner.key")
    network = await Network.start(identity, P2PDOptions(identity.path, host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    try:
        print(json.dumps({"ready": identity.peer_id}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await join(network, run_id, parameters, json.loads(line))), flush=True)
    finally:
        await network.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings_only()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
