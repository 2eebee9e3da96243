"""Read ahead in a thread, so that training does not wait for tokenising."""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType
from typing import Protocol

from peer.values import Batch


class BatchStream(Protocol):
    """What is read ahead: an ``ExampleStream``, or a generator of batches."""

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Release what is open. Called once, in the thread that reads."""
        ...


class Prefetcher:
    """Batches of a stream, made by a thread of its own up to ``depth`` ahead of whoever takes them.

    Owns the stream: it reads it in its thread from the start and closes it in the end. Each batch carries the
    cursor behind itself, so what was read ahead and not taken costs nothing: resume from the last batch
    taken.

    waits, wait_seconds: how often and how long a taker had to wait; the first batch usually counts.
    """

    def __init__(self, stream: BatchStream, depth: int = 8) -> None:
        self.waits = 0
        self.wait_seconds = 0.0
        self._stream = stream
        self._depth = depth
        self._batches: deque[Batch] = deque()
        self._error: BaseException | None = None
        self._ended = False
        self._closed = False
        self._changed = threading.Condition()
        # A daemon thread: a forced exit must not wait for a slow network. close() ends it on other ways out.
        self._thread = threading.Thread(target=self._read_ahead, name="waggle-data", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> int:
        """Batches that can be taken at once: 0 .. depth."""
        return len(self._batches)

    def __iter__(self) -> Prefetcher:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises the stream's own error, after the batches before it; ends when closed."""
        return self.take()

    def take(self, timeout_seconds: float | None = None) -> Batch:
        """``next()`` with a deadline. Raises TimeoutError when no batch came in time; ask again."""
        with self._changed:
            if not self._settled():
                self.waits += 1
                started = time.perf_counter()
                settled = self._changed.wait_for(self._settled, timeout_seconds)
                self.wait_seconds += time.perf_counter() - started
                if not settled:
                    raise TimeoutError(f"no batch within {timeout_seconds} seconds")
            if self._batches and not self._closed:
                batch = self._batches.popleft()
                self._changed.notify_all()
                return batch
        if self._error is not None and not self._closed:
            raise self._error
        raise StopIteration

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Stop the thread, full queue or not, and close the stream. May be called twice, and from any thread.

        A thread inside a network read notices when the read returns; it is waited for ``timeout_seconds`` at
        most.
        """
        with self._changed:
            self._closed = True
            self._batches.clear()
            self._changed.notify_all()
        self._thread.join(timeout_seconds)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _settled(self) -> bool:
        return bool(self._batches) or self._ended or self._closed

    def _room(self) -> bool:
        return len(self._batches) < self._depth or self._closed

    def _read_ahead(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(self._room)  # without a deadline: take() and close() both notify
                    if self._closed:
                        return
                batch = next(self._stream)
                with self._changed:
                    self._batches.append(batch)
                    self._changed.notify_all()
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error  # whatever it is, it belongs to whoever takes the next batch
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._stream.close()
