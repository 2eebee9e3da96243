"""Peers of bench/round_peer.py, or of stock hivemind, in the hosts of an emulated internet, told what to do."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.internet import Internet
from bench.tables import Row

OURS = ("bench.round_peer",)
STOCK = ("bench.stock", "averager")
START_SECONDS = 120.0
"""Eight processes that import torch on two cores."""


class HangError(Exception):
    """Some peers have not answered in time: their hosts."""

    def __init__(self, hosts: Sequence[int], words: str):
        super().__init__(f"no answer from hosts {list(hosts)}: {words}")
        self.hosts = list(hosts)


class Speaker:
    """A process that is told things, one JSON line each, and answers with one."""

    def __init__(self, internet: Internet, host: int, command: Sequence[str], folder: Path):
        self.host = host
        self._errors = folder / f"{host}.log"
        with self._errors.open("ab") as errors:
            self.process = internet.start(
                host, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def say(self, order: Mapping[str, Any]) -> None:
        """Tells it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()

    def hear(self, seconds: float) -> Row:
        """Its answer. Raises HangError."""
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            line = ""
        if not line:
            raise HangError([self.host], self.words)
        return dict(json.loads(line))

    @property
    def words(self) -> str:
        """The end of what it said on standard error."""
        return self._errors.read_text(errors="replace")[-2000:]

    def end(self) -> None:
        """Kills it; its p2pd goes with it."""
        self.process.kill()
        self.process.communicate()


class RoundSwarm:
    """One peer in each of the first ``count`` hosts; a context."""

    def __init__(self, internet: Internet, count: int, program: Sequence[str] = OURS):
        self._internet, self._count, self._program = internet, count, program
        self._folder = tempfile.TemporaryDirectory(prefix="waggle-round-swarm-")
        self.speakers: list[Speaker] = []

    def __enter__(self) -> RoundSwarm:
        self.revive()
        return self

    def revive(self) -> None:
        """New processes, all of them."""
        self._end()
        command = [sys.executable, "-m", *self._program]
        self.speakers = [Speaker(self._internet, host, command, Path(self._folder.name)) for host in range(self._count)]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._folder.cleanup()

    def _end(self) -> None:
        if self.speakers:
            self._internet.clear()  # stock hivemind leaves processes behind, which hold on to our pipes
        for speaker in self.speakers:
            speaker.end()

    def _all(self, orders: Sequence[Mapping[str, Any]], seconds: float) -> list[Row]:
        """Tells each its order at the same moment; their answers. Raises HangError: who did not answer."""
        for speaker, order in zip(self.speakers, orders, strict=True):
            speaker.say(order)
        deadline = time.monotonic() + seconds
        answers, silent, words = [], [], ""
        for speaker in self.speakers:
            try:
                answers.append(speaker.hear(deadline - time.monotonic()))
            except HangError as hang:
                silent.append(speaker.host)
                words = str(hang)
        if silent:
            raise HangError(silent, words)
        return answers

    def start(self, parameters: int, codec: str, **order: Any) -> list[Row]:
        """Cold starts: the first peer, then all others with its address. Raises HangError."""
        orders = [
            {"do": "start", "parameters": parameters, "codec": codec, "peers": self._count,
             "address": self._internet.hosts[host].address, "initial_peers": [], **order}
            for host in range(self._count)
        ]  # fmt: skip
        self.speakers[0].say(orders[0])
        first = self.speakers[0].hear(START_SECONDS)
        for speaker, one in zip(self.speakers[1:], orders[1:], strict=True):
            speaker.say({**one, "initial_peers": first["maddrs"]})
        return [first, *(speaker.hear(START_SECONDS) for speaker in self.speakers[1:])]

    def joined(self, seconds: float = 60.0) -> list[Row]:
        """Waits until everybody sees everybody."""
        return self._all([{"do": "joined"}] * self._count, seconds)

    def round(self, seconds: float, work_seconds: float = 1.0) -> list[Row]:
        """One outer step of all, within ``seconds``. Raises HangError."""
        return self._all([{"do": "round", "work_seconds": work_seconds}] * self._count, seconds + work_seconds)
