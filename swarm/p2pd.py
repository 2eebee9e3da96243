"""The libp2p daemon under our own supervision: start, watch, stop.

hivemind's ``P2P.create`` starts p2pd too, but leaves it running when its parent is killed, does not say when it
died, and hides its metrics address. We start the same binary with our own arguments and attach through hivemind's
public ``P2P.replicate``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import hivemind.hivemind_cli
import structlog
from hivemind.p2p import P2P
from hivemind.utils.multiaddr import Multiaddr

from swarm import launcher
from swarm.addresses import parse_http
from swarm.deadline import within
from swarm.errors import NetworkError
from swarm.listening import check_free

log = structlog.get_logger(__name__)

_LEVELS = {"panic": "error", "fatal": "error", "dpanic": "error", "error": "info", "warn": "debug"}
_FAREWELL = "error accepting connection"  # what p2pd says of its own control socket whenever it is stopped


_SURROUNDINGS = {
    "GOLOG_LOG_FMT": "json",
    "GOLOG_LOG_LEVEL": "error",
    # Else it dials from the port on which it listens. Two peers that dial each other at the same moment, as those of a
    # new swarm do, then meet in the middle, both dials fail, and libp2p does not try again for 5 s: of 9 cold starts 2
    # hung, of 25 with this none. Holes in routers are punched over QUIC all the same.
    "LIBP2P_TCP_REUSEPORT": "false",
}


@dataclass(frozen=True)
class P2PDOptions:
    """What p2pd is started with.

    host_maddrs: addresses to listen on; none when the peer cannot listen (client mode).
    relay_service: whether strangers may relay through us. metrics: ``host:port`` of p2pd's own metrics, or "".
    """

    identity: Path
    host_maddrs: Sequence[str] = ()
    announce_maddrs: Sequence[str] = ()
    relay_service: bool = False
    auto_relay: bool = False
    nat_port_map: bool = False
    trusted_relays: Sequence[str] = ()
    metrics: str = ""

    def arguments(self, control: str) -> list[str]:
        """The command line, without the program."""
        flags = {
            "listen": control,
            "id": str(self.identity),
            "dhtServer" if self.host_maddrs else "dhtClient": "1",
            "relay": "1",
            "relayService": str(int(self.relay_service)),
            "autoRelay": str(int(self.auto_relay)),
            "autonat": "1",
            "natPortMap": str(int(self.nat_port_map)),
            "connManager": "1",
            "tls": "1",
            "idleTimeout": "30s",
            "hostAddrs": ",".join(self.host_maddrs),
            "announceAddrs": ",".join(self.announce_maddrs),
            "trustedRelays": ",".join(self.trusted_relays),
            "metricsAddr": self.metrics,
        }
        arguments = [f"-{name}={value}" for name, value in flags.items() if value]
        return arguments if self.host_maddrs else [*arguments, "-noListenAddrs=1"]


class P2PD:
    """A running p2pd and hivemind's handle on it.

    ``died`` is set when the process has ended, whoever ended it.
    """

    def __init__(self, process: asyncio.subprocess.Process, p2p: P2P, control: Path, reader: asyncio.Task[str]):
        self.p2p = p2p
        self.died = asyncio.Event()
        self._process = process
        self._control = control
        self._reader = reader
        self._watcher = asyncio.create_task(self._watch())

    @classmethod
    async def start(cls, options: P2PDOptions, *, timeout: float = 20.0) -> P2PD:
        """Starts p2pd and waits, ``timeout`` seconds at most, until it answers.

        Raises:
            NetworkError: its metrics' address is occupied; or it did not start: the message has its own last words.
        """
        if metrics := parse_http(options.metrics or "off"):  # it would start without, and not say so
            check_free(*metrics, f"p2pd_metrics: {options.metrics}", "--p2pd-metrics")
        binary = files(hivemind.hivemind_cli) / "p2pd"
        control = Path(f"/tmp/waggle-p2pd-{secrets.token_urlsafe(8)}.sock")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), str(binary),
            *options.arguments(f"/unix{control}"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **_SURROUNDINGS},
            # A Ctrl-C in the terminal is for us to handle: p2pd is stopped after we have said goodbye.
            start_new_session=True,
        )  # fmt: skip
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        reader = asyncio.create_task(_read_output(process, ready))
        try:
            either: set[asyncio.Future[Any]] = {ready, reader}
            await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                words = reader.result() if reader.done() else f"no answer within {timeout:.0f} s"
                raise NetworkError(f"p2pd did not start: {_explain(words)}")
            p2p = await within(P2P.replicate(Multiaddr(f"/unix{control}")), timeout)
        except BaseException:
            ready.cancel()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            reader.cancel()
            control.unlink(missing_ok=True)  # noqa: ASYNC240  # one system call, while we fail
            raise
        return cls(process, p2p, control, reader)

    @property
    def pid(self) -> int:
        """The process id of p2pd."""
        return self._process.pid

    async def _watch(self) -> None:
        await self._process.wait()
        self.died.set()

    async def stop(self, *, timeout: float = 3.0) -> None:
        """Ends p2pd: asks, and after ``timeout`` seconds insists."""
        await self.p2p.shutdown()
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            await within(self.died.wait(), timeout)
        except asyncio.TimeoutError:
            self.kill()
            await self.died.wait()
        await asyncio.gather(self._watcher, self._reader, return_exceptions=True)
        self._control.unlink(missing_ok=True)

    def kill(self) -> None:
        """SIGKILL, now."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()


async def _read_output(process: asyncio.subprocess.Process, ready: asyncio.Future[None]) -> str:
    """Logs what p2pd prints until it ends; returns its last line."""
    assert process.stdout is not None
    last = ""
    async for raw in process.stdout:
        line = raw.decode(errors="replace").strip()
        last = line or last
        if line.startswith("Peer ID:") and not ready.done():
            ready.set_result(None)
        level, text = _parse_golog(line)
        log.log({"error": 40, "info": 20}.get(level, 10), "p2pd says", line=text)
    return last


def _parse_golog(line: str) -> tuple[str, str]:
    """Go's loggers call routine failures to dial errors: they are shown one level lower."""
    try:
        record = json.loads(line)
        level = "debug" if record["msg"] == _FAREWELL else _LEVELS.get(record["level"], "debug")
        return level, f"{record['logger']}: {record['msg']}"
    except (ValueError, KeyError, TypeError):
        return "debug", line


def _explain(words: str) -> str:
    if "address already in use" in words:
        return f"an address of --host-maddrs is occupied; stop the other program or choose another port ({words})"
    if "cannot assign requested address" in words:
        return f"an address of --host-maddrs is not one of this machine ({words})"
    return words
