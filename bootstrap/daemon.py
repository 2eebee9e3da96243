"""The composition root of a bootstrap: start, wait, stop.

It joins the DHT and answers; it holds no model and takes no part in a run. It imports no torch of its own, though
importing hivemind does (docs/bootstrap.md says what that weighs).
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import psutil
import structlog
from prometheus_client import CollectorRegistry

from bootstrap.config import BootstrapSettings
from bootstrap.introduction import write_introduction
from swarm import logs
from swarm.claims import claim_identity
from swarm.errors import NetworkError
from swarm.exposition import Exposition
from swarm.identity import Identity
from swarm.lifecycle import Shutdown
from swarm.metrics import NetworkMetrics
from swarm.network import Network
from swarm.p2pd import P2PDOptions
from swarm.programs import version

log = structlog.get_logger(__name__)

_COUNT_SECONDS = 5.0


def run(settings: BootstrapSettings) -> int:
    """Runs a bootstrap until it is asked to leave; returns the exit code."""
    shutdown = Shutdown()
    shutdown.install()
    try:
        asyncio.run(Bootstrap(settings, shutdown).run())
    finally:
        shutdown.finish()
    return 0


class Bootstrap:
    """An introduction peer."""

    def __init__(self, settings: BootstrapSettings, shutdown: Shutdown):
        self._settings, self._shutdown = settings, shutdown
        self._began = time.time()
        self._network: Network | None = None

    async def run(self) -> None:
        """Startup, wait, shutdown."""
        leaving = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._shutdown.on_request(lambda: loop.call_soon_threadsafe(leaving.set))
        identity = Identity.load_or_create(self._settings.identity)
        claim = claim_identity(identity.path)
        logs.bind(peer_id=identity.peer_id)
        network, metrics = await self._start(identity)
        self._shutdown.on_force(network.kill)
        exposition = Exposition(metrics.registry, self._status, self._healthy, lambda: network.joined)
        try:
            if self._settings.introduction is not None:  # before /healthz answers: who waits for that may read it
                write_introduction(self._settings.introduction, network.visible_maddrs)
            address = self._settings.http_address
            if address is not None:
                await exposition.start(*address)
            self._introduce(network, exposition.url)
            network.spawn(self._count(network, metrics))
            died = asyncio.ensure_future(network.died.wait())
            asked = asyncio.ensure_future(leaving.wait())
            await asyncio.wait({died, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not leaving.is_set():
                raise NetworkError("p2pd ended unexpectedly; see the lines above, and start the bootstrap again")
            died.cancel()
        finally:
            await exposition.stop()
            await network.stop()
            claim.release()

    async def _start(self, identity: Identity) -> tuple[Network, NetworkMetrics]:
        settings = self._settings
        metrics = NetworkMetrics(CollectorRegistry(), "bootstrap", version())
        options = P2PDOptions(
            identity=identity.path,
            host_maddrs=tuple(settings.host_maddrs),
            announce_maddrs=tuple(settings.announce_maddrs),
            relay_service=settings.relay_service,
            nat_port_map=settings.nat_port_map,
            metrics=settings.p2pd_metrics_address,
        )
        self._network = await Network.start(identity, options, settings.initial_peers, metrics)
        logs.tame()
        return self._network, metrics

    def _introduce(self, network: Network, url: str) -> None:
        """Prints the multiaddrs on standard output, for people and scripts to paste."""
        log.info("bootstrap started", http=url or "off")
        lines = [f"--initial-peers {maddr}" for maddr in network.visible_maddrs]
        sys.stdout.write("\n".join(["Peers join with one of", *lines, ""]))
        sys.stdout.flush()

    async def _count(self, network: Network, metrics: NetworkMetrics) -> None:
        while True:
            metrics.known_peers(network.known_peers)
            await asyncio.sleep(_COUNT_SECONDS)

    def _healthy(self) -> bool:
        return self._network is not None and not self._network.died.is_set()

    def _status(self) -> dict[str, Any]:
        network = self._network
        assert network is not None
        return {
            "program": "bootstrap",
            "peer_id": network.peer_id,
            "maddrs": network.visible_maddrs,
            "joined": network.joined,
            "dht_peers": network.known_peers,
            "started_timestamp": self._began,
            "resident_bytes": psutil.Process().memory_info().rss,
            "processes": 1 + len(psutil.Process().children(recursive=True)),
            "version": version(),
        }
