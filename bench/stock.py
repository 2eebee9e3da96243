"""The yardsticks: stock hivemind 1.1.12, its averager and its Optimizer, in a host of the emulated internet.

    python -m bench.stock averager     answers what bench/round_peer.py answers: start, joined, round
    python -m bench.stock optimizer ADDRESS RENDEZVOUS --peers 4 ...     prints one JSON line per epoch

Set up as its documentation has it, and in its favour where there is a choice: it is told how many peers there are.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import hivemind
import torch
from hivemind.compression import Float16Compression, NoCompression
from hivemind.utils import get_dht_time

from bench.tables import Row

MATCHMAKING_SECONDS = 3.0
_LOOK_SECONDS = 0.01
_LEARNING_RATE, _GRADIENT = 0.01, 0.001


def compression(codec: str) -> Any:
    """hivemind's own for fp32 and fp16; its 8-bit ones do not run with numpy 2.4."""
    return {"fp32": NoCompression, "fp16": Float16Compression}[codec]()


def listen(address: str, initial_peers: list[str]) -> Any:
    """A DHT that listens on this host."""
    return hivemind.DHT(initial_peers=initial_peers, start=True, host_maddrs=[f"/ip4/{address}/tcp/0"])


class Averager:
    """One life of hivemind.DecentralizedAverager, from a cold start to ``stop``."""

    def __init__(self, order: Row):
        began = time.monotonic()
        peers, seconds = int(order["peers"]), float(order.get("deadline_seconds", 120.0))
        self._seconds = seconds
        self._dht = listen(order["address"], order["initial_peers"])
        self._round = 0
        # four tensors, as a model has more than one
        self._tensors = [0.01 * torch.randn(int(order["parameters"]) // 4) for _ in range(4)]
        self._averager = hivemind.DecentralizedAverager(
            averaged_tensors=self._tensors, dht=self._dht, start=True, prefix="bench", target_group_size=peers,
            min_group_size=peers, min_matchmaking_time=MATCHMAKING_SECONDS, request_timeout=1.0, bandwidth=1e8,
            allow_state_sharing=False, compression=compression(order["codec"]),
        )  # fmt: skip
        self.started: Row = {
            "maddrs": [str(maddr) for maddr in self._dht.get_visible_maddrs()],
            "seconds": time.monotonic() - began,
        }

    def round(self, order: Row) -> Row:
        """One all-reduce: when it was asked for, began and ended, and a digest of what came of it."""
        time.sleep(float(order.get("work_seconds", 0.0)))
        marks, self._round, end = {"ready": time.monotonic()}, self._round + 1, time.monotonic() + self._seconds
        step = self._averager.step(
            wait=False, scheduled_time=get_dht_time() + MATCHMAKING_SECONDS, timeout=self._seconds
        )
        while not step.done() and time.monotonic() < end:
            if step.began_allreduce:
                marks.setdefault("grouped", time.monotonic())
            time.sleep(_LOOK_SECONDS)
        marks["gathered"] = time.monotonic()
        marks.setdefault("grouped", marks["gathered"])
        aborts, size = [], 0
        try:
            size = len(step.result(1.0) or ())
        except Exception as error:  # whatever it is, it is the row's result
            aborts = [repr(error)[:200]]
        digest = hashlib.sha256()
        with self._averager.get_tensors() as tensors:
            for tensor in tensors:
                digest.update(tensor.numpy().tobytes())
        committed = not aborts and size == int(order.get("peers", size))
        return {
            "marks": marks, "outer_step": self._round, "digest": digest.hexdigest(), "committed": committed,
            "aborts": aborts, "group_size": size,
        }  # fmt: skip

    def stop(self) -> None:
        """Ends this life, as far as it lets itself be ended."""
        self._averager.shutdown()
        self._dht.shutdown()


def speak() -> None:
    """Does what it is told, until the end of standard input."""
    averager: Averager | None = None
    for line in sys.stdin:
        order = json.loads(line)
        answer: Row = {}
        if order["do"] == "start":
            if averager is not None:
                averager.stop()
            averager = Averager(order)
            answer = averager.started
        elif order["do"] == "round":
            assert averager is not None, "start comes first"
            answer = averager.round(order)
        print(json.dumps(answer), flush=True)
    if averager is not None:
        averager.stop()


def optimize(arguments: argparse.Namespace) -> None:
    """Paced local steps with hivemind.Optimizer: every peer has the same constant gradient.

    So after each epoch all must hold the same parameters, and their sum must have fallen by lr x gradient x count.
    """
    torch.manual_seed(0)
    place = Path(arguments.rendezvous)
    while not arguments.first and not place.exists():
        time.sleep(0.2)
    dht = listen(arguments.address, [] if arguments.first else place.read_text().split())
    if arguments.first:
        written = place.with_suffix(".new")
        written.write_text("\n".join(map(str, dht.get_visible_maddrs())))
        written.rename(place)
    parameters = [torch.nn.Parameter(torch.randn(int(arguments.millions * 1e6 / 8))) for _ in range(8)]
    optimizer = hivemind.Optimizer(
        dht=dht, run_id="bench", batch_size_per_step=1, target_batch_size=arguments.peers * arguments.steps,
        params=parameters, optimizer=lambda own: torch.optim.SGD(own, lr=_LEARNING_RATE), client_mode=False,
        matchmaking_time=arguments.matchmaking, averaging_timeout=60.0, grad_compression=compression("fp16"),
        state_averaging_compression=compression("fp16"),
    )  # fmt: skip
    time.sleep(5.0)  # its peers find each other meanwhile
    start = began = time.monotonic()
    computed = epoch = 0
    while epoch < arguments.epochs and time.monotonic() < start + arguments.limit:
        time.sleep(arguments.pace)
        computed += 1
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, _GRADIENT)
        optimizer.step()
        optimizer.zero_grad()
        if optimizer.local_epoch == epoch:
            continue
        now, epoch = time.monotonic(), optimizer.local_epoch
        total = float(sum(parameter.detach().double().sum() for parameter in parameters))
        row = {"epoch": epoch, "seconds": now - began, "work_seconds": computed * arguments.pace, "sum": total}
        print(json.dumps(row), flush=True)
        began, computed = now, 0
    time.sleep(5.0)  # the others may still need us
    with contextlib.suppress(Exception):  # its processes are killed with their namespace
        optimizer.shutdown()
        dht.shutdown()


def main() -> None:
    """One of the two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("averager")
    paced = kinds.add_parser("optimizer")
    paced.add_argument("address")
    paced.add_argument("rendezvous")
    paced.add_argument("--first", action="store_true", help="the one whom the others meet")
    paced.add_argument("--peers", type=int, default=4)
    paced.add_argument("--millions", type=float, default=10.0)
    paced.add_argument("--steps", type=int, default=30)
    paced.add_argument("--pace", type=float, default=1.0)
    paced.add_argument("--epochs", type=int, default=4)
    paced.add_argument("--matchmaking", type=float, default=15.0)
    paced.add_argument("--limit", type=float, default=400.0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.kind == "averager":
        speak()
    else:
        optimize(arguments)


if __name__ == "__main__":
    main()
