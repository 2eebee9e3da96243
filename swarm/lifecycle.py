"""Signals become one shutdown event, with its reason.

The first SIGTERM or SIGINT asks: whoever waits is told and leaves in order. The second forces: children are
killed and the process ends at once. A thread of its own reads the signals from a socket that the interpreter's
C handler writes to (``signal.set_wakeup_fd``), so that both work while the main thread is deep in a long
tensor operation, and no lock is ever taken inside a signal handler.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Callback = Callable[[], object]


class Shutdown:
    """One event per process: nobody asked to leave, somebody did, or it is being forced.

    Threads wait with `wait` or look at `requested`; an asyncio loop registers
    ``shutdown.on_request(lambda: loop.call_soon_threadsafe(event.set))``.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._reason = ""
        self._on_request: list[Callback] = []
        self._on_force: list[Callback] = []
        self._restore: list[Callback] = []
        self._signals = 0

    @property
    def requested(self) -> bool:
        """Whether anybody asked."""
        return self._event.is_set()

    @property
    def reason(self) -> str:
        """Why, in the words of whoever asked first; empty before."""
        return self._reason

    @property
    def signalled(self) -> bool:
        """Whether a signal came, be it the reason or not."""
        return self._signals > 0

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until asked to leave, for at most `timeout` seconds. Returns whether that is so."""
        return self._event.wait(timeout)

    def request(self, reason: str) -> None:
        """Asks everybody to leave in order. The first reason stays; later calls change nothing."""
        with self._lock:
            if self._event.is_set():
                return
            self._reason = reason
            self._event.set()
            callbacks = list(self._on_request)
        log.info("shutting down", reason=reason)
        for callback in callbacks:
            _call(callback)

    def on_request(self, callback: Callback) -> None:
        """Calls back once, from the thread that asks; at once when somebody already has."""
        with self._lock:
            self._on_request.append(callback)
            late = self._event.is_set()
        if late:
            _call(callback)

    def on_force(self, callback: Callback) -> None:
        """Calls back before the process ends by force: for killing children, and short."""
        with self._lock:
            self._on_force.append(callback)

    def install(self) -> None:
        """Takes over SIGTERM and SIGINT of this process until `uninstall`; only in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("signals can be taken over in the main thread only")
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._restore.append(writer.close)
        for signum in _SIGNALS:
            previous = signal.signal(signum, _leave_to_the_watcher)
            self._restore.append(partial(signal.signal, signum, previous))
        # The warning about a full buffer would come from inside the handler, and a full buffer means that
        # signals enough are waiting to be read.
        previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._restore.append(partial(signal.set_wakeup_fd, previous_fd))
        threading.Thread(target=self._watch, args=(reader,), name="signals", daemon=True).start()

    def uninstall(self) -> None:
        """Gives the signals back to whoever had them before `install`."""
        while self._restore:
            self._restore.pop()()

    @staticmethod
    def finish() -> None:
        """All is done and the process ends by itself: signals change nothing any more, not even the exit code.

        Nor is garbage collected, which at the end of a process that has imported torch takes a second or more.
        """
        for signum in _SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
        gc.freeze()

    def _watch(self, reader: socket.socket) -> None:
        """Reads one byte per signal until `uninstall` closes the other end."""
        with reader:
            while numbers := reader.recv(64):
                for number in numbers:
                    if number in _SIGNALS:  # other handled signals write here too
                        self._receive(signal.Signals(number))

    def _receive(self, signum: signal.Signals) -> None:
        self._signals += 1
        if self._signals == 1:  # also when we are leaving already, but for a reason of our own
            self.request(signum.name)
            return
        log.warning("leaving at once", reason=f"{signum.name} after another signal")
        with self._lock:
            callbacks = list(self._on_force)
        for callback in callbacks:
            _call(callback)
        os._exit(128 + signum)


def _leave_to_the_watcher(signum: int, frame: FrameType | None) -> None:
    """A handler must exist for the interpreter to write to the pipe; it has nothing to do."""


def _call(callback: Callback) -> None:
    try:
        callback()
    except Exception:  # whatever one callback does wrong, the others are told, and the process ends
        log.exception("a shutdown callback failed")
