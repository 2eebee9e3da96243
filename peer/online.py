"""The half of a peer that lives in the network's loop: network, rounds, state transfer, watch and HTTP, wired together.

The daemon owns one and talks to it from the main thread; everything here runs in the loop.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any

import structlog

from peer.acquaintances import Acquaintances
from peer.config import PeerSettings
from peer.enrolment import Run, keep_published
from peer.metrics import PeerMetrics
from peer.phase import Phase
from peer.progress import SwarmView
from peer.rounds.assembly import Terms
from peer.rounds.attempt import Attempt
from peer.rounds.codec import codec_of
from peer.rounds.context import Context, Deadlines
from peer.rounds.rounds import Rounds
from peer.state.store import Store
from peer.state.transfer import Transfer
from peer.twin import Twin
from peer.values import LocalResult
from peer.watch import Watch
from swarm.errors import WaggleError
from swarm.exposition import Exposition
from swarm.history import Ballot, Head, heavier
from swarm.identity import Identity
from swarm.manifest import Manifest
from swarm.network import Network
from swarm.p2pd import P2PDOptions
from swarm.records import PeerRecord

log = structlog.get_logger(__name__)

_GOODBYE_SECONDS = 1.0


def terms_of(manifest: Manifest) -> Terms:
    """What a manifest says of forming groups."""
    rules = manifest.round
    return Terms(
        min_group_size=rules.min_group_size,
        max_group_size=rules.max_group_size,
        target_batch=rules.target_batch,
        patience_seconds=rules.patience_seconds,
        assemble_seconds=rules.assemble_seconds,
        isolation_seconds=rules.isolation_seconds,
    )


class Online:
    """Everything that needs the network.

    phase: the peer's, as of now. status: the fields of /status, asked for as soon as its port is open, which is before
    `start` returns. fail: ends the peer with an error.
    """

    def __init__(
        self,
        settings: PeerSettings,
        run: Run,
        store: Store,
        metrics: PeerMetrics,
        phase: Callable[[], Phase],
        status: Callable[[Online], dict[str, Any]],
        fail: Callable[[WaggleError], None],
    ):
        self.store, self.metrics = store, metrics
        self._settings, self._manifest, self._invitation = settings, run.manifest, run.invitation
        self._phase, self._status = phase, status
        self._version = ""
        self._twin = Twin(secrets.token_hex(8), time.time(), fail)
        self._acquaintances = Acquaintances(settings.data_dir, run.manifest.run_id)
        self.group_size = 0
        self.promised: Ballot | None = None  # in an earlier life, at our head
        self.exposition: Exposition | None = None
        self.network: Network
        self.rounds: Rounds
        self.transfer: Transfer
        self.watch: Watch

    async def start(self, identity: Identity, version: str) -> None:
        """Brings everything up, or nothing.

        Raises:
            NetworkError: p2pd does not start or an address is occupied.
        """
        settings, manifest = self._settings, self._manifest
        self._version = version
        options = P2PDOptions(
            identity=identity.path,
            host_maddrs=() if settings.client_mode else tuple(settings.host_maddrs),
            announce_maddrs=tuple(settings.announce_maddrs),
            relay_service=settings.relay_service,
            auto_relay=settings.auto_relay,
            nat_port_map=settings.nat_port_map and not settings.client_mode,
            trusted_relays=tuple(settings.initial_peers) if settings.auto_relay else (),
            metrics=settings.p2pd_metrics_address,
        )
        self.network = await Network.start(
            identity, options, settings.initial_peers, self.metrics, self._acquaintances.latest
        )
        try:
            await self._start_parts(identity, manifest)
            address = settings.http_address
            if address is not None:
                self.exposition = Exposition(
                    self.metrics.registry, lambda: self._status(self), self._healthy, self._ready
                )
                await self.exposition.start(*address)
        except BaseException:
            await self.network.stop()
            raise

    async def _start_parts(self, identity: Identity, manifest: Manifest) -> None:
        rules = manifest.round
        context = Context(
            run_id=manifest.run_id,
            identity=identity,
            network=self.network,
            ledger=self.store,
            codec=codec_of(rules),
            terms=terms_of(manifest),
            deadlines=Deadlines(exchange=rules.exchange_seconds, commit=rules.commit_seconds),
            listener=self.metrics,
            max_examples=manifest.max_examples_per_peer,
            max_norm_ratio=rules.max_norm_ratio,
            parameters=self.store.layout.size,
            residual=rules.kept != "dropped",
        )
        self.rounds = Rounds(context, self.store.commit)
        self.rounds.promised = self.promised
        self.transfer = Transfer(
            manifest.run_id, self.store, self.network, self.metrics.transferred,
            uploads=self._settings.uploads, rate=self._settings.upload_rate_bytes,
        )  # fmt: skip
        self.store.fetcher = self.transfer.fetch
        self.watch = Watch(manifest.run_id, self.network, self._record, lambda: self.store.head, self._seen, self._twin)
        await self.rounds.start()
        await self.transfer.start()
        self.network.spawn(self.watch.run())
        if self._invitation is not None:
            self.network.spawn(keep_published(self.network, self._invitation))

    async def stop(self, drain_seconds: float) -> None:
        """Says goodbye, lets groupmates hear the last outcome, and ends."""
        await self.rounds.drain(drain_seconds)
        try:
            await asyncio.wait_for(self.watch.say_goodbye(), _GOODBYE_SECONDS)
        except asyncio.TimeoutError:
            log.debug("nobody took our goodbye")
        if self.exposition is not None:
            await self.exposition.stop()
        await self.network.stop()

    @property
    def behind(self) -> bool:
        """Whether somebody is known to have a heavier state."""
        return bool(self.watch.view.ahead) or self.rounds.ahead is not None

    async def catch_up(self) -> bool:
        """Adopts a heavier state from whoever has it; whether that worked.

        Who has just refused us is asked too: where outer steps are short, the next one would be over before the
        records show this one.
        """
        told, self.rounds.ahead = self.rounds.ahead, None
        view = await self.watch.look()
        donors = list(view.ahead)
        if told is not None and told not in donors:
            donors.append(told)
        if not donors:
            return False
        if not await self.transfer.catch_up(donors, self._better, view.claims):
            return False
        self.rounds.forget()
        await self.watch.look()  # else we would go by what was so before, and not sit down at once
        return True

    def _better(self, head: Head) -> bool:
        return heavier(head, self.store.head)

    async def hand_in(self, attempt: Attempt, local: LocalResult) -> None:
        """Our contribution to an attempt, when those who download our state have had a moment to catch up."""
        await self.transfer.donor.welcome.settled()
        attempt.finish(local)

    def _record(self) -> PeerRecord:
        head: Head = self.store.head
        return PeerRecord(
            peer_id=self.network.peer_id,
            maddrs=list(self.network.maddrs),
            phase=self._phase().value,
            outer_step=head.outer_step,
            digest=head.digest,
            work=head.work,
            group_size=self.group_size,
            client_mode=self._settings.client_mode,
            version=self._version,
            session=self._twin.session,
            started=self._twin.started,
        )

    def _seen(self, view: SwarmView) -> None:
        self.rounds.see(view.companions)
        self.rounds.absences.goodbyes(view.left, view.live)
        self._acquaintances.met(view.reachable)
        self.metrics.seen(view, self.store.head.outer_step)
        self.metrics.known_peers(self.network.known_peers)

    def _healthy(self) -> bool:
        return not self.network.died.is_set()

    def _ready(self) -> bool:
        return self._healthy() and self._phase() in (Phase.TRAINING, Phase.AVERAGING, Phase.PAUSED)
