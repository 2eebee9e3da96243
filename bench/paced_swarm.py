"""Paced peers (bench/paced_peer.py) in the hosts of an emulated internet, from their start to a given outer step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.internet import Internet
from bench.tables import Row

HERE = Path(__file__).resolve().parent
PACED = HERE / "paced.toml"
START_SECONDS = 180.0
_LOOK_SECONDS = 0.1
_LEAVE_SECONDS = 15.0


class SwarmError(Exception):
    """A peer ended, or did not come as far as it should have in time."""


def manifest(path: Path = PACED, **rules: Any) -> str:
    """The manifest with ``rules`` in its [round]."""
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in rules.items())
    return path.read_text(encoding="utf-8").replace("[round]\n", f"[round]\n{lines}\n")


def json_lines(path: Path) -> Iterator[Row]:
    """The JSON objects of a file so far, a half-written last line left out."""
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
            if line.startswith("{") and line.endswith("}\n"):
                yield json.loads(line)


class PacedPeer:
    """A daemon in a host, with its folder."""

    def __init__(self, internet: Internet, host: int, folder: Path, run: Path, options: Mapping[str, Any]):
        self.host, self.folder = host, folder
        folder.mkdir()
        flags = [
            "--run", str(run), "--data-dir", str(folder), "--threads", "1", "--http", "off",
            "--device", options.get("device", "cpu"), "--no-nat-port-map", "--log-format", "json",
            "--host-maddrs", f"/ip4/{internet.hosts[host].address}/tcp/0", *options.get("flags", ()),
        ]  # fmt: skip
        own = {"BENCH_STEP_SECONDS": str(options.get("step_seconds", 1.0)), "BENCH_METER": str(folder / "meter.jsonl")}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("WAGGLE_")}
        with (folder / "log.jsonl").open("wb") as log:
            self.process = internet.start(
                host, [sys.executable, "-m", "bench.paced_peer", *flags],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**environment, **own, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    @property
    def started(self) -> Row:
        """The line by which it says that it has started; empty before."""
        lines = json_lines(self.folder / "log.jsonl")
        return next((line for line in lines if line.get("event") == "peer started"), {})

    @property
    def maddrs(self) -> list[str]:
        """Where it can be found; empty before it has started."""
        return list(self.started.get("maddrs", ()))

    @property
    def peer_id(self) -> str:
        """Its id, once it has started."""
        return str(self.started["peer_id"])

    @property
    def commits(self) -> list[Row]:
        """Its journal's commits."""
        return [line for line in json_lines(self.folder / "journal.jsonl") if line["event"] == "commit"]

    @property
    def meter(self) -> list[Row]:
        """What bench/paced_peer.py wrote."""
        return list(json_lines(self.folder / "meter.jsonl"))

    def check(self) -> None:
        """Raises SwarmError when it has ended."""
        if self.process.poll() is not None:
            words = (self.folder / "log.jsonl").read_text(errors="replace")[-1500:]
            raise SwarmError(f"peer {self.host} ended with exit code {self.process.returncode}: {words}")


class PacedSwarm:
    """One peer in each of the first hosts; a context that ends them.

    steps: seconds of a step, for each peer. device: of all.
    """

    def __init__(
        self, internet: Internet, text: str, steps: Sequence[float], flags: Sequence[str] = (), device: str = "cpu"
    ):
        self._internet, self._text, self._steps, self._flags = internet, text, steps, flags
        self._device = device
        self._folder = tempfile.TemporaryDirectory(prefix="waggle-paced-")
        self.peers: list[PacedPeer] = []

    def __enter__(self) -> PacedSwarm:
        run = Path(self._folder.name) / "run.toml"
        run.write_text(self._text, encoding="utf-8")
        try:
            self._add(run, ())
            self._until(lambda: bool(self.peers[0].maddrs), START_SECONDS, "the first peer's start")
            met = [word for maddr in self.peers[0].maddrs for word in ("--initial-peers", maddr)]
            for _ in self._steps[1:]:
                self._add(run, met)
        except BaseException:
            self._end()
            raise
        return self

    def _add(self, run: Path, met: Sequence[str]) -> None:
        host = len(self.peers)
        folder = Path(self._folder.name) / f"peer-{host}"
        options = {"step_seconds": self._steps[host], "flags": (*met, *self._flags), "device": self._device}
        self.peers.append(PacedPeer(self._internet, host, folder, run, options))

    def commits_until(self, outer_step: int, seconds: float) -> None:
        """Waits until all have committed this outer step. Raises SwarmError."""

        def there() -> bool:
            return all(peer.commits and peer.commits[-1]["outer_step"] >= outer_step for peer in self.peers)

        self._until(there, seconds, f"outer step {outer_step}")

    def _until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for peer in self.peers:
                peer.check()
            if time.monotonic() > deadline:
                raise SwarmError(f"not within {seconds:.0f} s: {what}")
            time.sleep(_LOOK_SECONDS)

    @property
    def agreed(self) -> bool:
        """Whether no two peers hold different digests at the same outer step."""
        digests: dict[int, set[str]] = {}
        for peer in self.peers:
            for line in peer.commits:
                digests.setdefault(line["outer_step"], set()).add(line["digest"])
        return bool(digests) and all(len(found) == 1 for found in digests.values())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for peer in self.peers:
            if peer.process.poll() is None:
                peer.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _LEAVE_SECONDS
        for peer in self.peers:
            try:
                peer.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                peer.process.kill()
                peer.process.wait()
        self._internet.clear()
        self._folder.cleanup()
