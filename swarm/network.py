"""A peer's place in the network: p2pd, the DHT and the streams between peers, in one asyncio loop.

Nothing is forked: ``DHTNode`` runs in the caller's loop over the p2pd that ``P2PD`` supervises. Initial peers are
dialled after the start and again for as long as we run, with backoff, so that a bootstrap may be away at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import structlog
from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import StreamInfo
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.utils.multiaddr import Multiaddr

from swarm.clock import Clock
from swarm.control import connect, open_stream
from swarm.deadline import within
from swarm.errors import NetworkError
from swarm.identity import Identity, PeerId
from swarm.invitation import (
    INVITATION_SECONDS,
    INVITATION_SUBKEY,
    Invitation,
    InvitationError,
    expect,
    manifest_key,
    open_invitation,
)
from swarm.joining import Acquaintances, Joining
from swarm.p2pd import P2PD, P2PDOptions
from swarm.records import Opened, PeerRecord, StoreGuard, open_all, peers_key, seal, subkey
from swarm.wire import Pulse, StreamChannel, WireError

log = structlog.get_logger(__name__)

T = TypeVar("T")

MAX_STREAMS_PER_PEER = 64
RECORD_LIFETIME_SECONDS = 30.0
_DIAL_SECONDS = 5.0
_LINGER_SECONDS = 10.0
_CANCELLATIONS = 4
Handler = Callable[[StreamChannel], Awaitable[None]]


class NetworkObserver(Protocol):
    """Told what the network does; the metrics implement it."""

    def traffic(self, purpose: str, direction: str, count: int) -> None:
        """``count`` bytes of ``purpose`` were "sent" or "received"."""

    def dht_request(self, operation: str, outcome: str, seconds: float) -> None:
        """A "get" or "store" ended "ok" or "failed"."""

    def record_dropped(self, reason: str) -> None:
        """A record failed a check."""

    def clock_offset(self, seconds: float) -> None:
        """Our clock is ahead of the swarm's by so much."""


class SilentObserver:
    """Observes nothing."""

    def traffic(self, purpose: str, direction: str, count: int) -> None:
        """See NetworkObserver."""

    def dht_request(self, operation: str, outcome: str, seconds: float) -> None:
        """See NetworkObserver."""

    def record_dropped(self, reason: str) -> None:
        """See NetworkObserver."""

    def clock_offset(self, seconds: float) -> None:
        """See NetworkObserver."""


class Network:
    """p2pd, DHT and streams of one peer. All methods belong to the loop that started it."""

    def __init__(self, identity: Identity, daemon: P2PD, node: DHTNode, observer: NetworkObserver):
        self.identity = identity
        self.peer_id = identity.peer_id
        self.died = daemon.died
        self.maddrs: list[str] = []
        self._daemon, self._node, self._observer = daemon, node, observer
        self._joining: Joining
        self._streams: Counter[PeerId] = Counter()
        self._pulses: weakref.WeakValueDictionary[PeerId, Pulse] = weakref.WeakValueDictionary()  # kept by channels
        self._tasks: set[asyncio.Task[Any]] = set()

    @classmethod
    async def start(
        cls,
        identity: Identity,
        options: P2PDOptions,
        initial_peers: Sequence[str] = (),
        observer: NetworkObserver | None = None,
        acquaintances: Acquaintances = dict,
    ) -> Network:
        """Starts p2pd and the DHT and begins to dial the initial peers, and acquaintances where none of them answers.

        Raises:
            NetworkError: p2pd did not start.
        """
        observer = observer or SilentObserver()
        daemon = await P2PD.start(options)
        try:
            node = await DHTNode.create(
                p2p=daemon.p2p,
                client_mode=not options.host_maddrs,
                record_validator=StoreGuard(observer.record_dropped),
                # A cached answer would hide who left and what changed: the swarm is read afresh.
                cache_locally=False, cache_on_store=False, cache_nearest=0, reuse_get_requests=False,
            )  # fmt: skip
            network = cls(identity, daemon, node, observer)
            if daemon.p2p.peer_id.to_base58() != identity.peer_id:
                raise NetworkError(f"p2pd took another identity than {identity.path}; move the file away")
            (
                _,
                maddrs,
            ) = await daemon.p2p._client.identify()  # hivemind has no public call without the /p2p suffix
        except BaseException:
            await daemon.stop()
            raise
        network.maddrs = [str(maddr) for maddr in maddrs][:16] if options.host_maddrs else []
        network._joining = Joining(node, network.dial, initial_peers, acquaintances, observer.clock_offset)
        network.spawn(network._joining.run())
        return network

    # -- life ------------------------------------------------------------------------------------------------

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs a task that ends with the network."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def stop(self) -> None:
        """Ends tasks, DHT and p2pd."""
        # A task that lets a cancellation pass (hivemind's may, see ``within``) is asked again, but not for ever.
        for _ in range(_CANCELLATIONS):
            if not self._tasks:
                break
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(list(self._tasks), timeout=0.5)
        # A p2pd that died answers nothing, and hivemind would wait for it.
        ends = [asyncio.ensure_future(self._node.shutdown()), asyncio.ensure_future(self.died.wait())]
        await asyncio.wait(ends, timeout=2.0, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
        await self._daemon.stop()

    def kill(self) -> None:
        """Kills p2pd at once, from any thread: for a forced end."""
        self._daemon.kill()

    @property
    def p2pd_pid(self) -> int:
        """The process id of p2pd."""
        return self._daemon.pid

    @property
    def visible_maddrs(self) -> list[str]:
        """Our addresses with /p2p/PEER_ID, ready to paste."""
        return [f"{maddr}/p2p/{self.peer_id}" for maddr in self.maddrs]

    # -- who is there ----------------------------------------------------------------------------------------

    @property
    def known_peers(self) -> int:
        """Peers in the DHT's routing table."""
        return len(self._node.protocol.routing_table.uid_to_peer_id)

    @property
    def joined(self) -> bool:
        """Whether an initial peer answered, or none was given."""
        return self._joining.joined.is_set()

    @property
    def clock(self) -> Clock:
        """How far our clock is from the swarm's; settled when ``joined``."""
        return self._joining.clock

    async def wait_joined(self, timeout: float | None) -> bool:
        """Waits until ``joined``; False after ``timeout`` seconds."""
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._joining.joined.wait(), timeout)
        return self.joined

    async def dial(self, peer_id: PeerId, maddrs: Sequence[str], timeout: float = _DIAL_SECONDS) -> bool:
        """Connects to a peer; whether that worked within ``timeout`` seconds."""
        return not await self.obstacle(peer_id, maddrs, timeout)

    async def obstacle(self, peer_id: PeerId, maddrs: Sequence[str], timeout: float = _DIAL_SECONDS) -> str:
        """Connects to a peer, or says why that did not work within ``timeout`` seconds; empty when it did."""
        try:
            parsed = [Multiaddr(maddr) for maddr in maddrs]
            await within(connect(self._daemon.p2p, PeerID.from_base58(peer_id), parsed), timeout)
        except (
            ControlFailure,
            asyncio.TimeoutError,
            OSError,
            ValueError,
            asyncio.IncompleteReadError,
        ) as error:
            why = str(error)[:1000] or f"no answer within {timeout:g} s"
            log.debug("cannot dial", peer=peer_id, maddrs=list(maddrs), why=why)
            return why
        return ""

    async def ask_time(self, peer_id: PeerId) -> float | None:
        """Seconds by which our clock is ahead of a peer's; None when it does not tell, as no peer of ours would."""
        return await self._joining.ask_time(peer_id)

    # -- records ---------------------------------------------------------------------------------------------

    async def publish(self, run_id: str, record: PeerRecord, lifetime: float = RECORD_LIFETIME_SECONDS) -> bool:
        """Stores this peer's signed record for ``lifetime`` seconds; whether anybody took it."""
        expires = time.time() + lifetime
        envelope = seal(self.identity, run_id, record, expires)
        store = self._node.store(peers_key(run_id), envelope, expires, subkey=subkey(self.peer_id))
        return bool(await self._dht("store", store))

    async def read_peers(self, run_id: str) -> dict[PeerId, Opened]:
        """The valid records of a run."""
        found = await self._dht("get", self._node.get(peers_key(run_id), latest=True))
        if found is None or not isinstance(found.value, dict):
            return {}
        entries = {key: (item.value, item.expiration_time) for key, item in found.value.items()}
        return open_all(run_id, entries, self._observer.record_dropped, time.time())

    async def publish_invitation(self, invitation: Invitation) -> bool:
        """Stores the invitation to a run for ``INVITATION_SECONDS``, whoever's it is; whether anybody took it.

        Nobody takes it where a copy that expires later is there already: that is as good.
        """
        key, value = manifest_key(invitation.run_id), invitation.envelope()
        expires = time.time() + INVITATION_SECONDS
        return bool(await self._dht("store", self._node.store(key, value, expires, subkey=INVITATION_SUBKEY)))

    async def read_invitation(self, run_id: str) -> Invitation | None:
        """The invitation to a run; None when there is none that passes every check."""
        found = await self._dht("get", self._node.get(manifest_key(run_id), latest=True))
        entries = found.value if found is not None and isinstance(found.value, dict) else {}
        item = entries.get(INVITATION_SUBKEY)
        if item is None:
            return None
        try:
            opened = open_invitation(item.value, item.expiration_time, time.time())
            return expect(opened, run_id)
        except InvitationError as error:
            self._observer.record_dropped(error.reason)
            return None

    async def _dht(self, operation: str, request: Awaitable[Any]) -> Any:
        began = time.monotonic()
        outcome = "failed"
        try:
            result = await within(request, 10.0)
            outcome = "ok"
        except asyncio.TimeoutError:
            result = None
        finally:
            self._observer.dht_request(operation, outcome, time.monotonic() - began)
        return result

    # -- streams ---------------------------------------------------------------------------------------------

    def _channel(
        self, remote: PeerId, purpose: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> StreamChannel:
        def count(direction: str, size: int) -> None:
            self._observer.traffic(purpose, direction, size)

        pulse = self._pulses.setdefault(remote, Pulse())
        return StreamChannel(remote, reader, writer, count, pulse)

    async def open(self, peer_id: PeerId, protocol: str, purpose: str, timeout: float) -> StreamChannel:
        """Opens a stream. Raises WireError("unreachable")."""
        peer = PeerID.from_base58(peer_id)
        opening = asyncio.ensure_future(open_stream(self._daemon.p2p, peer, protocol))
        try:
            reader, writer = await within(opening, timeout)
        except asyncio.CancelledError:
            if opening.done() and not opening.cancelled() and opening.exception() is None:
                opening.result()[1].close()  # it came at the same moment
            raise
        except (ControlFailure, asyncio.TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise WireError("unreachable", f"{peer_id}: {error!r}"[:300]) from error
        return self._channel(peer_id, purpose, reader, writer)

    async def serve(self, protocol: str, purpose: str, handler: Handler) -> None:
        """Answers streams of ``protocol``. libp2p authenticates ``channel.remote``.

        When ``handler`` is done, the stream stays open until the other end has read its last words and hangs up.
        """

        async def handle(info: StreamInfo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            remote = info.peer_id.to_base58()
            channel = self._channel(remote, purpose, reader, writer)
            if self._streams[remote] >= MAX_STREAMS_PER_PEER:
                channel.close()
                return
            self._streams[remote] += 1
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)  # it ends with the network, too
            try:
                await handler(channel)
                await channel.linger(_LINGER_SECONDS)
            except WireError as error:
                log.debug("stream ended", peer=remote, protocol=protocol, why=str(error))
            except asyncio.CancelledError:
                pass  # we are stopping; the task is one of asyncio's server, which would only log it
            finally:
                self._tasks.discard(task)
                self._streams[remote] -= 1
                if not self._streams[remote]:
                    del self._streams[remote]
                channel.close()

        await self._daemon.p2p.add_binary_stream_handler(protocol, handle)
