"""What every part of a round works with, and the ports through which it reaches the rest of the peer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

from peer.rounds.assembly import Terms
from peer.rounds.codec import Codec
from peer.rounds.gates import check_values
from peer.rounds.workshop import workers
from peer.values import Pending, Stage
from swarm.history import Head, Link
from swarm.identity import Identity, PeerId
from swarm.network import Network

T = TypeVar("T")


class RoundError(Exception):
    """This attempt is over for this peer. ``culprit``: whom it waited for in vain."""

    def __init__(self, reason: str, culprit: PeerId | None = None, detail: str = ""):
        super().__init__(f"{reason} {culprit or ''} {detail}".strip())
        self.reason, self.culprit = reason, culprit


class Ledger(Protocol):
    """The committed state, as rounds see it."""

    @property
    def head(self) -> Head:
        """Where the history stands."""

    @property
    def participants(self) -> Mapping[PeerId, int] | None:
        """Of the newest link."""

    @property
    def forgetful(self) -> bool:
        """Whether this process has yet to see its first commit since it started."""

    async def propose(self, mean: torch.Tensor, square_norm: float) -> Pending:
        """The state after applying ``mean``, float32 [parameters], to the committed one.

        The mean belongs to the ledger from here on: the state may be made in its memory.
        """

    async def fetch(self, link: Link, donors: Sequence[PeerId]) -> Pending:
        """The state that ``link`` makes, from peers that hold it. Raises WireError."""


class Listener(Protocol):
    """Told how rounds go. ``reached`` is awaited: a test may hold or break a peer at a stage."""

    async def reached(self, stage: Stage, outer_step: int) -> None:
        """This peer reached a stage of the attempt at ``outer_step``."""

    def refused(self, peer: PeerId, reason: str) -> None:
        """A contribution or message of ``peer`` was refused."""

    def waiting(self, reason: str) -> None:
        """No group can form now: company, majority, full, benched, or "" when that is over."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds, from the manifest, and how long silence lasts before a groupmate counts as dead."""

    exchange: float
    commit: float
    seat: float = 3.0
    alive: float = 1.0
    silence: float = 5.0


@dataclass(frozen=True)
class Context:
    """One per peer.

    check: the gate for our own contribution before it is sent. residual: whether what a contribution loses on the wire
    is to be told. workers: the threads that tensor work is done in.
    """

    run_id: str
    identity: Identity
    network: Network
    ledger: Ledger
    codec: Codec
    terms: Terms
    deadlines: Deadlines
    listener: Listener
    max_examples: int
    max_norm_ratio: float
    parameters: int
    residual: bool = False
    check: Callable[[torch.Tensor], str] = check_values
    workers: Executor = field(default_factory=workers)

    @property
    def peer_id(self) -> PeerId:
        """Ours."""
        return self.identity.peer_id

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A background task that ends with the network at the latest."""
        return self.network.spawn(coroutine)
