"""Every metric of a peer, and the listener that fills the ones about rounds."""

from __future__ import annotations

import math
import time
from collections import deque

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from peer.phase import Phase
from peer.progress import SwarmView
from peer.values import RoundResult, Stage
from swarm.identity import PeerId
from swarm.metrics import NetworkMetrics

log = structlog.get_logger(__name__)

ROUND_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0)

REFUSALS = frozenset(
    {
        "shape", "malformed", "non-finite", "norm", "weight", "deadline", "gone", "run", "replay", "digest",
        "benched", "stranger", "denied", "other",
    }
)  # fmt: skip
"""Why a contribution or a message was refused."""

OUTCOMES = frozenset(
    {
        "committed", "behind", "digest", "full", "run", "weight", "leader-gone", "leader-deadline",
        "leader-malformed", "member-gone", "exchange-deadline", "votes-deadline", "too-few",
        "no-work", "fetch", "cancelled", "over", "moved", "malformed", "own-gone",
        "scatter-deadline", "reducer-gone", "reducer-deadline",
        "reducer-unreachable", "reducer-malformed", "reducer-denied", "reducer-shape", "other",
    }
)  # fmt: skip
"""How an attempt at an outer step ended."""

WAITS = ("company", "majority", "leader", "full")
"""Why no group can form."""


def bounded(word: str, words: frozenset[str]) -> str:
    """``word`` if it is one of ``words``, else "other": a peer must not be able to invent label values."""
    return word if word in words else "other"


class PeerMetrics(NetworkMetrics):
    """Also implements peer.rounds.context.Listener."""

    def __init__(self, registry: CollectorRegistry, version: str):
        super().__init__(registry, "peer", version)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"waggle_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"waggle_{name}", text, labels, registry=registry)

        self._phase = gauge("phase", "1 for the phase this peer is in, 0 for the others.", "phase")
        self._peers = gauge("peers", "Other live peers of the run, by phase.", "phase")
        self._outer_step = gauge("outer_step", "The committed outer step of this peer.")
        self._swarm_outer_step = gauge("swarm_outer_step", "The outer step where most of the swarm stands.")
        self._loss = gauge("loss", "Mean training loss of the local work for the last round.")
        self._validation_loss = gauge("validation_loss", "Loss on held-out examples at the last validation.")
        self._group_size = gauge("group_size", "Peers in the group of the last commit.")
        self._last_commit = gauge("last_commit_timestamp_seconds", "Unix time of the last commit; 0 before.")
        self._last_checkpoint = gauge(
            "last_checkpoint_timestamp_seconds", "Unix time of the last checkpoint written; 0 before."
        )
        self._rate = gauge("examples_per_second", "Examples per second of this peer over the last half minute.")
        self._waiting = gauge("waiting", "1 while no group can form, by why.", "reason")
        self._examples = counter("examples", "Examples this peer trained on.")
        self._inner_steps = counter("inner_steps", "Inner steps of this peer.")
        self._data_wait = counter("data_wait_seconds", "Seconds that training waited for data.")
        self._rounds = counter("rounds", "Attempts at an outer step, by how they ended.", "outcome")
        self._round_seconds = Histogram(
            "waggle_round_seconds", "Seconds in each stage of rounds that committed.", ["stage"],
            buckets=ROUND_SECONDS, registry=registry,
        )  # fmt: skip
        self._refusals = counter("refusals", "Contributions and messages refused, by reason.", "reason")
        self._transfers = counter(
            "state_transfers", "State transfers, by direction and outcome.", "direction", "outcome"
        )
        self._trail: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._done = 0
        self.waiting_for = ""
        self.stage: Stage | None = None
        for reason in WAITS:
            self._waiting.labels(reason).set(0)
        for reason in REFUSALS:  # a counter that appears with its first event hides that event from rate()
            self._refusals.labels(reason)
        self.phase(Phase.STARTING)

    # -- peer.rounds.context.Listener ------------------------------------------------------------------------

    async def reached(self, stage: Stage, outer_step: int) -> None:
        """See Listener."""
        self.stage = stage

    def refused(self, peer: PeerId, reason: str) -> None:
        """See Listener."""
        self._refusals.labels(bounded(reason, REFUSALS)).inc()
        log.warning("refused", by_peer=peer, reason=reason)

    def waiting(self, reason: str) -> None:
        """See Listener."""
        if reason != self.waiting_for:
            self.waiting_for = reason
            for one in WAITS:
                self._waiting.labels(one).set(one == reason)
            if reason:
                log.info("waiting", reason=reason)

    # -- the daemon ------------------------------------------------------------------------------------------

    def phase(self, phase: Phase) -> None:
        """The peer is in this phase now."""
        for one in Phase:
            self._phase.labels(one.value).set(one is phase)

    def seen(self, view: SwarmView, outer_step: int) -> None:
        """The swarm as last seen."""
        for one in Phase:
            self._peers.labels(one.value).set(view.phases.get(one.value, 0))
        self._swarm_outer_step.set(max(view.outer_step, outer_step))

    def worked(self, examples: int, data_wait_seconds: float) -> None:
        """One inner step is done."""
        self._inner_steps.inc()
        self._examples.inc(examples)
        self._data_wait.inc(data_wait_seconds)
        self._done += examples
        now = time.monotonic()
        self._trail.append((now, self._done))
        while len(self._trail) > 2 and self._trail[0][0] < now - 30.0:
            self._trail.popleft()
        self._rate.set(self.examples_per_second)

    @property
    def examples_per_second(self) -> float:
        """Over the last half minute."""
        (began, before), (ended, after) = self._trail[0], self._trail[-1]
        return (after - before) / (ended - began) if ended > began else 0.0

    @property
    def examples(self) -> int:
        """Examples since the start."""
        return self._done

    def round_ended(self, result: RoundResult, loss: float, timestamp: float) -> None:
        """An attempt ended."""
        self._rounds.labels("committed" if result.committed else bounded(result.reason, OUTCOMES)).inc()
        if result.committed:
            self._group_size.set(result.group_size)
            self._last_commit.set(timestamp)
            if not math.isnan(loss):
                self._loss.set(loss)
            for stage in ("group", "exchange", "codec", "commit"):
                self._round_seconds.labels(stage).observe(getattr(result.times, stage))

    def at_step(self, outer_step: int) -> None:
        """The committed outer step."""
        self._outer_step.set(outer_step)

    def validated(self, loss: float) -> None:
        """A validation is done."""
        self._validation_loss.set(loss)

    def checkpointed(self, timestamp: float) -> None:
        """A checkpoint is on disk, since this Unix time."""
        self._last_checkpoint.set(timestamp)

    def transferred(self, direction: str, outcome: str) -> None:
        """A state transfer ended."""
        self._transfers.labels(direction, "ok" if outcome == "ok" else "failed").inc()
