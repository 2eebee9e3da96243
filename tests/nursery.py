"""Programs of tests that need not import: they are forked from a process that has imported what they will.

A peer takes five seconds of CPU to import torch, hivemind and transformers, and a tiny one little else. So `Nursery`
starts processes that do so, and every Python program of a test is a fork of one: a process of its own, with its own
session, files, command line and end, killed when the tests die. What forks has one thread, and nothing of a peer in it.
Linux only; elsewhere programs start as they always do.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from swarm import launcher

REPOSITORY = Path(__file__).parents[1]
COMMAND_LINE_BYTES = 16384
"""Room for a fork's command line, which is how tests find who belongs to them."""
SEEDS = 2
"""Forks of one process order a set of texts alike, two peers on two machines do not. So they are of several."""
_ARGUMENT_AREA = slice(45, 47)  # of /proc/self/stat behind the name: arg_start and arg_end, fields 48 and 49 (proc(5))
_MAX_BYTES = 1 << 20


class Process(Protocol):
    """What tests use of ``subprocess.Popen``."""

    pid: int

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        ...

    def wait(self) -> int:
        """The exit code."""
        ...

    def send_signal(self, sig: int) -> None:
        """Nothing, when it has ended."""
        ...

    def kill(self) -> None:
        """SIGKILL."""
        ...


class Fork:
    """A program that a nursery started."""

    def __init__(self, pid: int, channel: socket.socket):
        """channel: the nursery sends the exit code over it."""
        self.pid = pid
        self._channel = channel
        self._code: int | None = None

    def poll(self) -> int | None:
        """See Process."""
        return self._look(0.0)

    def wait(self) -> int:
        """See Process."""
        code = self._look(None)
        assert code is not None
        return code

    def send_signal(self, sig: int) -> None:
        """See Process."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """See Process."""
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self._code is None and select.select([self._channel], [], [], seconds)[0]:
            # Nothing: the nursery is dead, and with it all that it started.
            self._code = int(self._channel.recv(64) or -signal.SIGKILL)
            self._channel.close()
        return self._code


class Nursery:
    """Starts programs by forks, of ``SEEDS`` processes in turn, which start with the first. Leaving it ends them."""

    def __init__(self, imports: str):
        """imports: what they import before they fork, as Python."""
        self._imports = imports
        self._servers: deque[tuple[subprocess.Popen[bytes], socket.socket]] = deque()

    def start(self, command: Sequence[str], out: Path, err: Path, environment: Mapping[str, str]) -> Fork:
        """The program ``python -c CODE ARGUMENTS...`` or ``python -m MODULE ...``, its output appended to files.

        environment: of the program, but for what is read while modules are imported.
        """
        if not self._servers:
            self._servers.extend(self._server() for _ in range(SEEDS))
        self._servers.rotate()
        _, requests = self._servers[0]
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)  # which keeps messages apart
        request = {"command": list(command), "out": str(out), "err": str(err), "environment": dict(environment)}
        socket.send_fds(requests, [json.dumps(request).encode()], [theirs.fileno()])
        theirs.close()
        return Fork(int(ours.recv(64)), ours)

    def _server(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        server = subprocess.Popen(
            [
                sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()),
                sys.executable, "-c", f"{self._imports}; from tests.nursery import main; main({theirs.fileno()})",
                " " * COMMAND_LINE_BYTES,
            ],
            stdin=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True, pass_fds=[theirs.fileno()],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "random"},
        )  # fmt: skip
        theirs.close()
        return server, ours

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server, requests in self._servers:
            requests.close()
            server.kill()
            server.wait()
        self._servers.clear()


# -- in the nursery's own process --------------------------------------------------------------------------------------


def main(requests: int) -> None:
    """Forks until the tests close the socket ``requests``, and becomes the program in each fork."""
    gc.freeze()  # what is there now stays shared with the forks
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    channels: dict[int, socket.socket] = {}
    with socket.socket(fileno=requests) as server:
        while True:
            ready, _, _ = select.select([server, woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                _report(channels)
            if server in ready:
                data, fds, _, _ = socket.recv_fds(server, _MAX_BYTES, 1)
                if not data:
                    os._exit(0)
                channel = socket.socket(fileno=fds[0])
                pid = os.fork()
                if pid == 0:
                    break
                channels[pid] = channel
                channel.send(str(pid).encode())
    signal.set_wakeup_fd(-1)
    for one in (*channels.values(), channel):
        one.close()
    os.close(woken)
    os.close(wake)
    _become(json.loads(data))


def _report(channels: dict[int, socket.socket]) -> None:
    """Tells the tests who has ended."""
    while channels:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        with channels.pop(pid) as channel, contextlib.suppress(BrokenPipeError):  # nobody waits for it
            channel.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict[str, Any]) -> None:
    """Runs the program of a request in this process, which ends as any program does."""
    os.setsid()
    ctypes.CDLL(None).prctl(launcher.PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, path in ((1, request["out"]), (2, request["err"])):
        file = os.open(path, flags, 0o666)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(request["environment"])
    _show(request["command"])
    _, how, what, *arguments = request["command"]
    sys.argv = [how, *arguments]
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def _show(command: Sequence[str]) -> None:
    """Makes ``command`` the command line that others see of this process (proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = map(int, fields[_ARGUMENT_AREA])
    text = b"\0".join(os.fsencode(word) for word in command) + b"\0"
    assert len(text) < end - begin, "a command line longer than there is room for"
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)
