"""The metrics that every program of a swarm has: build, network and DHT.

Prefix ``waggle_``, base units, bounded labels: never a peer id or an address.
"""

from __future__ import annotations

import math
import platform

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

DHT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class NetworkMetrics:
    """Implements swarm.network.NetworkObserver. ``sent`` and ``received``: bytes over all purposes."""

    def __init__(self, registry: CollectorRegistry, program: str, version: str):
        self.registry = registry
        self.sent, self.received = 0, 0
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        build = Gauge(
            "waggle_build_info",
            "Always 1; the labels say what runs.",
            ["program", "version", "python"],
            registry=registry,
        )
        build.labels(program, version, platform.python_version()).set(1)
        self._bytes = Counter(
            "waggle_bytes",
            "Bytes over libp2p streams, by direction and purpose.",
            ["direction", "purpose"],
            registry=registry,
        )
        self._requests = Counter(
            "waggle_dht_requests",
            "DHT requests, by operation and outcome.",
            ["operation", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "waggle_dht_request_seconds",
            "Seconds that DHT requests took.",
            ["operation"],
            buckets=DHT_SECONDS,
            registry=registry,
        )
        self._dropped = Counter(
            "waggle_records_dropped", "DHT records that failed a check, by reason.", ["reason"], registry=registry
        )
        self._table = Gauge("waggle_dht_peers", "Peers in the DHT's routing table.", registry=registry)
        self._clock = Gauge(
            "waggle_clock_offset_seconds",
            "Seconds by which this machine's clock is ahead of the swarm's; NaN before anybody told its time.",
            registry=registry,
        )
        self._clock.set(math.nan)

    def traffic(self, purpose: str, direction: str, count: int) -> None:
        """See NetworkObserver."""
        self._bytes.labels(direction, purpose).inc(count)
        if direction == "sent":
            self.sent += count
        else:
            self.received += count

    def dht_request(self, operation: str, outcome: str, seconds: float) -> None:
        """See NetworkObserver."""
        self._requests.labels(operation, outcome).inc()
        self._seconds.labels(operation).observe(seconds)

    def record_dropped(self, reason: str) -> None:
        """See NetworkObserver."""
        self._dropped.labels(reason).inc()

    def clock_offset(self, seconds: float) -> None:
        """See NetworkObserver."""
        self._clock.set(seconds)

    def known_peers(self, count: int) -> None:
        """The size of the routing table."""
        self._table.set(count)
