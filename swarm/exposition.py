"""A process shown over HTTP: /metrics, /healthz, /readyz and /status, in the asyncio loop of the caller."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import structlog
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from swarm.addresses import is_loopback
from swarm.errors import NetworkError

log = structlog.get_logger(__name__)

_STOP_SECONDS = 1


class Exposition:
    """Serves what it is given to look at; it owns the socket and nothing else.

    registry: the metrics. status: what /status returns, made of JSON types (a float that is not finite
    becomes null). healthy: whether the process works at all (else restart it). ready: whether it takes part.
    The three are called in the loop that `start` ran in, so they must be quick and must not block.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        status: Callable[[], Mapping[str, Any]],
        healthy: Callable[[], bool],
        ready: Callable[[], bool],
    ) -> None:
        self._registry = registry
        self._status = status
        self._healthy = healthy
        self._ready = ready
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """Where it is served, with the port the system chose; empty before `start`."""
        return self._url

    async def start(self, host: str, port: int) -> None:
        """Listens and serves. Raises NetworkError when the address cannot be had."""
        listener = await _listen(host, port)
        address, actual = listener.getsockname()[:2]
        self._url = f"http://[{address}]:{actual}" if ":" in address else f"http://{address}:{actual}"
        if not is_loopback(address):
            log.warning("status and metrics are open to whoever reaches this address", url=self._url)
        self._server = _Server(_config(self._app()))
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="exposition")

    async def stop(self) -> None:
        """Stops serving, without waiting for slow readers; does nothing when it never started."""
        if self._server is None or self._serving is None:
            return
        self._server.should_exit = True
        self._server.force_exit = True
        await self._serving
        self._server = self._serving = None

    def _app(self) -> Starlette:
        routes = {
            "/metrics": self._show_metrics,
            "/healthz": self._show_health,
            "/readyz": self._show_readiness,
            "/status": self._show_status,
        }
        return Starlette(routes=[Route(path, show, methods=["GET"]) for path, show in routes.items()])

    # Coroutines, though none waits: Starlette would run plain functions in other threads.
    async def _show_metrics(self, request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"content-type": content_type})

    async def _show_health(self, request: Request) -> Response:
        healthy = self._healthy()
        return JSONResponse({"healthy": healthy}, status_code=200 if healthy else 503)

    async def _show_readiness(self, request: Request) -> Response:
        ready = self._ready()
        return JSONResponse({"ready": ready}, status_code=200 if ready else 503)

    async def _show_status(self, request: Request) -> Response:
        return JSONResponse(_finite(self._status()))


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals alone: they are swarm.lifecycle's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,  # its loggers propagate to ours
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_STOP_SECONDS,
    )


async def _listen(host: str, port: int) -> socket.socket:
    change = "choose another address with --http HOST:PORT (port 0 picks a free one, off serves nothing)"
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:  # gaierror, for a name nobody knows, is one too
        reason = {
            errno.EADDRINUSE: "is occupied: stop the other program",
            errno.EACCES: "is not ours to listen on without special rights",
            errno.EADDRNOTAVAIL: "is not an address of this machine",
        }.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
        raise NetworkError(f"http: {host}:{port} {reason}; {change}") from None


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
