"""An asyncio loop in a thread of its own: the network goes on while the main thread trains."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent import futures
from concurrent.futures import Future
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")


class LoopThread:
    """Starts with the object, ends with ``stop``."""

    def __init__(self, name: str = "network") -> None:
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_log_exception)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a coroutine in the loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Waits for a coroutine. Raises concurrent.futures.TimeoutError, and cancels it, after ``timeout`` seconds."""
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Calls a function in the loop soon."""
        self.loop.call_soon_threadsafe(function)

    def stop(self, timeout: float = 3.0) -> None:
        """Cancels what still runs and ends the thread."""
        if not self._thread.is_alive():
            return
        try:
            self.run(_cancel_others(), timeout)
        except futures.TimeoutError:  # a task that will not end must not keep the process
            log.warning("tasks were still running at the end")
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout)
        if not self._thread.is_alive():
            self.loop.close()


async def _cancel_others() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _log_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """hivemind leaves background tasks whose exceptions nobody fetches when p2pd dies: told, not shouted."""
    log.debug("in the background", message=context.get("message"), error=repr(context.get("exception")))
