"""The members at a leader's table: their channels, what they say, and signs of life to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Sequence

import structlog

from peer.rounds.context import Context
from peer.rounds.messages import Alive, Failed, Progress, Promised, Ready, Received, Voted
from swarm.deadline import within
from swarm.identity import PeerId
from swarm.wire import Channel, Message, WireError

log = structlog.get_logger(__name__)

FromMember = (Progress, Ready, Promised, Received, Voted, Failed, Alive)

Take = Callable[[PeerId, Message | None], bool]
"""Takes a member's message, None when it is gone; returns whether that was all that was waited for."""


class Members:
    """The messages of all members come in by one inbox, in order. ``alone``: what our signs of life say."""

    def __init__(self, context: Context) -> None:
        self.alone = True
        self._context = context
        self._channels: dict[PeerId, Channel] = {}
        self._inbox: asyncio.Queue[tuple[Channel, Message | None] | None] = asyncio.Queue()

    @property
    def present(self) -> Collection[PeerId]:
        """The peers that sit here."""
        return self._channels.keys()

    # -- one member ------------------------------------------------------------------------------------------

    async def occupy(self, channel: Channel, greetings: Sequence[Message]) -> None:
        """Seats a peer, greets it and reads what it says until either side ends."""
        peer = channel.remote
        self.vacate(peer)  # it lost its old channel before we noticed
        self._channels[peer] = channel
        try:
            for greeting in greetings:
                await channel.send(greeting)
            while self._channels.get(peer) is channel:
                message = await channel.hear(*FromMember, silence=self._context.deadlines.silence)
                await self._inbox.put((channel, message))
        except WireError as error:
            log.debug("a seat is empty", peer=peer, why=str(error))
        finally:
            channel.close()
            self._inbox.put_nowait((channel, None))

    def vacate(self, peer: PeerId) -> None:
        """Sends one peer away without a word."""
        channel = self._channels.pop(peer, None)
        if channel is not None:
            channel.close()

    async def dismiss(self, peer: PeerId, message: Message) -> None:
        """Sends one peer away with a word. It hangs up when it has read it: if we did, the word could get lost."""
        await self.send(peer, message)
        self._channels.pop(peer, None)

    def end(self) -> None:
        """Sends everyone away without a word, and wakes whoever listens."""
        for peer in list(self._channels):
            self.vacate(peer)
        self.wake()

    # -- what they say ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Makes ``hear`` return: something else than a message is to be looked at."""
        self._inbox.put_nowait(None)

    async def hear(self, seconds: float | None) -> tuple[PeerId, Message | None] | None:
        """What somebody who sits here says, or with None that it is gone; None after ``seconds`` or a ``wake``."""
        try:
            item = await within(self._inbox.get(), seconds)
        except asyncio.TimeoutError:
            return None
        if item is None or self._channels.get(item[0].remote) is not item[0]:  # from a seat that is not its any more
            return None
        channel, message = item
        if message is None:
            self.vacate(channel.remote)
        return channel.remote, message

    async def until(self, take: Take, seconds: float) -> bool:
        """Feeds messages to ``take`` until it says enough; False after ``seconds``."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            heard = await self.hear(left)
            if heard is not None and take(*heard):
                return True
        return False

    # -- what we say -----------------------------------------------------------------------------------------

    async def send(self, peer: PeerId, message: Message) -> None:
        """To one member; to one that does not take it in time it was the last word."""
        channel = self._channels.get(peer)
        if channel is None:
            return
        try:
            await within(channel.send(message), self._context.deadlines.silence)
        except (WireError, asyncio.TimeoutError):
            self._inbox.put_nowait((channel, None))

    async def broadcast(self, message: Message) -> None:
        """To all members at once."""
        await asyncio.gather(*(self.send(peer, message) for peer in list(self._channels)))

    async def beat(self) -> None:
        """Signs of life, for ever. One member that reads nothing does not keep them from the others."""
        while True:
            await asyncio.sleep(self._context.deadlines.alive)
            for peer in list(self._channels):
                self._context.spawn(self.send(peer, Alive(alone=self.alone)))
