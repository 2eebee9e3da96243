"""Programs of a swarm as child processes of this one: started together, watched, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from swarm import launcher
from swarm.errors import WaggleError

LEAVE_SECONDS = 12.0


@dataclass
class Child:
    """A bootstrap or a peer. Its logs, JSON lines, are in ``log``; what it prints in ``out``."""

    name: str
    folder: Path
    process: subprocess.Popen[bytes]
    url: str = ""
    status: dict[str, Any] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where its standard error goes."""
        return self.folder / "log.jsonl"

    def events(self) -> Iterator[Mapping[str, Any]]:
        """Its log so far, in order; a line being written is left out."""
        for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict):
                yield event

    def refresh(self, client: httpx.Client) -> None:
        """Asks it for its status; what is known stays where it does not answer."""
        if not self.url:
            self.url = next((str(one["http"]) for one in self.events() if "http" in one), "")
        if self.url and self.process.poll() is None:
            try:
                self.status = client.get(f"{self.url}/status").json()
            except (httpx.HTTPError, ValueError):  # it is just starting or just leaving
                return

    def last_words(self) -> str:
        """The end of its log, for an error message."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1][:400] if lines else "it said nothing"


class Processes:
    """A context that ends every child it started, kindly first, whatever happens; if we are killed, so are they."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.children: list[Child] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, name: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
        """Starts ``python -m module``."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.jsonl").open("wb") as log, (folder / "out.txt").open("wb") as out:
            process = subprocess.Popen(
                [
                    sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()),
                    sys.executable, "-m", module, *arguments,
                ],
                stdin=subprocess.DEVNULL, stdout=out, stderr=log, env={**os.environ, **environment},
                start_new_session=True,  # a Ctrl-C reaches them through us, once
            )  # fmt: skip
        child = Child(name, folder, process)
        self.children.append(child)
        return child

    def check(self) -> None:
        """Raises WaggleError when a child has failed."""
        for child in self.children:
            code = child.process.poll()
            if code:
                raise WaggleError(
                    f"{child.name} ended with exit code {code}: {child.last_words()} (all of it: {child.log})"
                )

    def stop(self) -> None:
        """Ends the peers, then whoever introduced them."""
        for child in reversed(self.children):
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + LEAVE_SECONDS
        for child in self.children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
