"""The rounds of one peer: answers joins and parts, and starts attempts."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog
import torch

from peer.rounds.absences import Absences
from peer.rounds.attempt import Attempt
from peer.rounds.bandwidth import Observed
from peer.rounds.context import Context
from peer.rounds.exchange import Exchange
from peer.rounds.leader import Leader
from peer.rounds.messages import PART_PROTOCOL, ROUND_PROTOCOL, Accepted, Denied, Group, Join, Member, Part, Refused
from peer.values import Pending, RoundResult
from swarm.deadline import within
from swarm.history import MAX_GROUP_SIZE, Ballot, Certificate
from swarm.identity import PeerId
from swarm.wire import StreamChannel

log = structlog.get_logger(__name__)

_KEPT_EXCHANGES = 2  # the one under way, and the one before for those who are late
_DIALS = 3
_DIAL_PAUSE_SECONDS = 0.1
_SOON_SECONDS = 3.0
"""A message may be here before we are where its sender is: this long it waits."""


class Rounds:
    """All methods belong to the network's loop.

    promised, accepted: what this peer promised and voted for at the outer step after its head. residual: of its
    contribution to what it voted for. table: the seats of
    the attempt under way. ahead: who refused us because it stands elsewhere: it has what we lack, or we what it lacks.
    observed: how fast values come from others.
    """

    def __init__(self, context: Context, commit: Callable[[Pending, Certificate], None]):
        self.context = context
        self.absences = Absences()
        self.observed = Observed()
        self.promised: Ballot | None = None
        self.accepted: tuple[Accepted, Pending] | None = None
        self.residual: torch.Tensor | None = None
        self.table: Leader | None = None
        self.ahead: PeerId | None = None
        self._attempt: Attempt | None = None
        self._commit = commit
        self._view: Mapping[PeerId, Sequence[str]] = {}
        self._met: set[PeerId] = set()
        self._news = asyncio.Event()
        self._changed = asyncio.Condition()
        self._exchanges: OrderedDict[tuple[int, tuple[int, str]], Exchange] = OrderedDict()
        self._leading: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to answer other peers."""
        await self.context.network.serve(ROUND_PROTOCOL, "round", self._on_join)
        await self.context.network.serve(PART_PROTOCOL, "round", self._on_part)

    async def drain(self, timeout: float) -> None:
        """Gives attempts that we lead ``timeout`` seconds to tell their members how they ended."""
        if self._leading:
            await asyncio.wait(self._leading, timeout=timeout)

    # -- what the daemon does --------------------------------------------------------------------------------

    def see(self, view: Mapping[PeerId, Sequence[str]]) -> None:
        """The peers at our head that can be dialled, with their addresses."""
        if set(view) != set(self._view):
            self._news.set()
        self._view = dict(view)
        for peer in view.keys() - self._met:
            self._met.add(peer)
            self.context.spawn(self._meet(peer, view[peer]))

    async def _meet(self, peer: PeerId, maddrs: Sequence[str]) -> None:
        """Connects to a peer that will be a groupmate, so that no round has to wait for it."""
        if not await self.context.network.dial(peer, maddrs, self.context.deadlines.seat):
            self._met.discard(peer)  # again when it is seen again

    async def attempt(self) -> Attempt:
        """Sets the table for the next outer step and returns our part in it; ``run`` it."""
        await self._set_table()
        self._attempt = Attempt(self)
        return self._attempt

    async def _set_table(self) -> None:
        await self._clear_table()
        leader = Leader(self.context, self.absences, self.promised, self.accepted[0] if self.accepted else None)
        task = self.context.spawn(leader.run())
        self._leading.add(task)
        task.add_done_callback(self._leading.discard)
        async with self._changed:
            self.table = leader
            self._changed.notify_all()

    async def _clear_table(self) -> None:
        """Sends home whoever waits at our table. A group that was formed there goes on."""
        leader, self.table = self.table, None
        if leader is not None and not leader.formed:
            await leader.close("over")

    async def run(self, attempt: Attempt) -> RoundResult:
        """Runs an attempt and clears the table after it."""
        try:
            return await attempt.run()
        finally:
            if self._attempt is attempt:  # else it was cancelled, and the table is that of the next one
                await self._clear_table()

    def commit(self, pending: Pending, certificate: Certificate) -> None:
        """The outer step is made: apply it, and promises and votes for it are history."""
        self._commit(pending, certificate)
        self.forget()

    def forget(self) -> None:
        """The head moved: what was promised for the old one is void."""
        self.promised, self.accepted, self.residual, self.ahead = None, None, None, None
        self.absences.majority()
        self.context.spawn(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    # -- what attempts need ----------------------------------------------------------------------------------

    @property
    def listening(self) -> Collection[PeerId]:
        """Peers at our head that can be dialled, ourselves included if we listen."""
        ours = {self.context.peer_id} if self.context.network.maddrs else set()
        return {*self._view, *ours}

    @property
    def neighbours(self) -> list[PeerId]:
        """Whose rates of arrival a leader may want to know: those of the newest link, and who else is at our head."""
        known = sorted({*(self.context.ledger.participants or ()), *self._view} - {self.context.peer_id})
        return known[:MAX_GROUP_SIZE]

    async def news(self, timeout: float) -> None:
        """Waits for a change of who is there, at most ``timeout`` seconds."""
        self._news.clear()
        with contextlib.suppress(asyncio.TimeoutError):
            await within(self._news.wait(), timeout)

    async def own_table(self) -> Leader:
        """The table of the attempt under way; a new one where the old one was closed."""
        if self.table is None or self.table.closed:
            await self._set_table()
        assert self.table is not None
        return self.table

    def register(self, exchange: Exchange) -> None:
        """Contributions for this exchange may come in."""
        self._exchanges[(exchange.outer_step, exchange.ballot.key())] = exchange
        while len(self._exchanges) > _KEPT_EXCHANGES:
            self._exchanges.popitem(last=False)
        self.context.spawn(self._notify())

    async def connect(self, group: Group) -> None:
        """Makes sure that every reducer can be reached before anything is sent."""
        strangers = [one for one in group.members if one.reducer and one.peer_id != self.context.peer_id]
        await asyncio.gather(*map(self._reach, strangers))

    async def _reach(self, member: Member) -> None:
        """Dials a groupmate, more than once: where two dial each other at the same time, one of them may fail."""
        for _ in range(_DIALS):
            if await self.context.network.dial(member.peer_id, member.maddrs, self.context.deadlines.seat):
                return
            await asyncio.sleep(_DIAL_PAUSE_SECONDS)

    # -- what others ask -------------------------------------------------------------------------------------

    async def _soon(self, condition: Callable[[], bool]) -> bool:
        async with self._changed:
            with contextlib.suppress(asyncio.TimeoutError):
                await within(self._changed.wait_for(condition), _SOON_SECONDS)
        return condition()

    async def _on_join(self, channel: StreamChannel) -> None:
        join, _ = await channel.receive(Join, timeout=self.context.deadlines.seat)
        ledger = self.context.ledger
        if join.run_id != self.context.run_id:
            self.context.listener.refused(channel.remote, "run")
            await channel.send(self._refuse("run"))
            return
        await self._soon(lambda: ledger.head.outer_step > join.outer_step or self._table_open(join.outer_step))
        reason = self._unwelcome(channel.remote, join)
        if reason:
            if reason in ("digest", "benched"):
                self.context.listener.refused(channel.remote, reason)
            await channel.send(self._refuse(reason))
            return
        assert self.table is not None
        await self.table.seat(channel, join)

    def _table_open(self, outer_step: int) -> bool:
        """Whether one can sit down here for the step after ``outer_step``; the table may be the last one's still."""
        return self.table is not None and self.table.outer_step == outer_step and not self.table.formed

    def _unwelcome(self, peer: PeerId, join: Join) -> str:
        head = self.context.ledger.head
        if join.outer_step < head.outer_step:
            return "behind"
        if join.outer_step > head.outer_step:
            return "ahead"
        if join.digest != head.digest:
            return "digest"
        if self.absences.benched(peer):
            return "benched"
        return "busy" if self.table is None else ""

    def _refuse(self, reason: str) -> Refused:
        head = self.context.ledger.head
        return Refused(reason=reason, outer_step=head.outer_step, digest=head.digest, work=head.work)

    async def _on_part(self, channel: StreamChannel) -> None:
        # Longer than for a seat: it may come behind other values, and from a loop that is busy encoding them.
        part, _ = await channel.receive(Part, timeout=self.context.deadlines.silence)
        key = (part.outer_step, part.ballot.key())
        if part.run_id != self.context.run_id:
            reason = "run"
        elif await self._soon(lambda: key in self._exchanges or self._is_past(part)) and key in self._exchanges:
            await self._exchanges[key].accept(channel, part)
            return
        else:
            reason = "replay"
        self.context.listener.refused(channel.remote, reason)
        await channel.send(Denied(reason=reason))

    def _is_past(self, part: Part) -> bool:
        return part.outer_step < self.context.ledger.head.outer_step or (
            self.promised is not None and part.ballot.key() < self.promised.key()
        )
