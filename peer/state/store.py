"""The committed state and the one way to change it: propose, then commit or forget.

Implements the ledger that rounds work with. A committed state is never modified: a commit replaces it, so whoever
serves or saves it holds a consistent snapshot by holding a reference.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import structlog
import torch

from peer.layout import Layout, chunk_hashes, chunk_slices, digest_of, named_state
from peer.optimizers import OuterOptimizer
from peer.values import Pending
from swarm.history import Certificate, Head, History, HistoryError, Link, check_chain
from swarm.identity import PeerId

log = structlog.get_logger(__name__)

_KEPT_PROPOSALS = 2

Fetch = Callable[[Link, Sequence[PeerId]], Awaitable[Pending]]


class Store:
    """The committed state of one run on one peer. Read from any thread, changed only in the network's loop."""

    def __init__(self, run_id: str, layout: Layout, parameters: torch.Tensor, optimizer: OuterOptimizer):
        self.layout = layout
        self._optimizer = optimizer
        slots = {name: torch.zeros_like(parameters) for name in optimizer.slots}
        self.committed = named_state(layout, 0, parameters, slots)
        self.history = History(run_id, self.committed.digest)
        self.fetcher: Fetch | None = None
        self._forgetful = True
        self._proposals: dict[str, Pending] = {}

    @property
    def head(self) -> Head:
        """Where the history stands."""
        return self.history.head

    @property
    def participants(self) -> Mapping[PeerId, int] | None:
        """Who took part in the newest link; None before the first."""
        return self.history.participants

    @property
    def forgetful(self) -> bool:
        """Whether this process has not committed anything yet: an earlier one may have voted under this identity."""
        return self._forgetful and self.history.participants is not None

    @property
    def slot_names(self) -> tuple[str, ...]:
        """The optimizer's slots, in the order in which they are hashed and sent."""
        return tuple(sorted(self._optimizer.slots))

    def find(self, digest: str) -> Pending | None:
        """The committed state or a recent proposal."""
        if self.committed.digest == digest:
            return self.committed
        return self._proposals.get(digest)

    async def propose(self, mean: torch.Tensor, square_norm: float) -> Pending:
        """The state after applying ``mean``, float32 [parameters]. It is kept to be served until the next commit.

        The mean belongs to the store: the new parameters are written over it.
        """
        work = partial(self._next_state, self.committed, mean, square_norm)
        pending = await asyncio.get_running_loop().run_in_executor(None, work)
        self._keep(pending)
        return pending

    def _next_state(self, base: Pending, mean: torch.Tensor, square_norm: float) -> Pending:
        """Chunk by chunk, each hashed while the processor's cache has it: the others wait for our vote."""
        slots = {name: torch.empty_like(mean) for name in self.slot_names}
        vectors = [mean, *slots.values()]
        hashes = [bytearray() for _ in vectors]
        for chunk in chunk_slices(len(mean)):
            before = {name: base.slots[name][chunk] for name in slots}
            parameters, after = self._optimizer.step(
                base.parameters[chunk], before, mean[chunk], square_norm, base.outer_step
            )
            for vector, own, values in zip(
                vectors, hashes, (parameters, *(after[name] for name in slots)), strict=True
            ):
                vector[chunk] = values
                own.extend(chunk_hashes(vector[chunk], {}))
        outer_step, joined = base.outer_step + 1, b"".join(hashes)
        return Pending(outer_step, mean, slots, digest_of(self.layout, outer_step, slots, joined), joined)

    def _keep(self, pending: Pending) -> None:
        self._proposals[pending.digest] = pending
        while len(self._proposals) > _KEPT_PROPOSALS:
            del self._proposals[next(iter(self._proposals))]

    async def fetch(self, link: Link, donors: Sequence[PeerId]) -> Pending:
        """The state that ``link`` makes, from ``donors``. Raises WireError."""
        assert self.fetcher is not None, "the daemon wires the fetcher"
        pending = await self.fetcher(link, donors)
        self._keep(pending)
        return pending

    def commit(self, pending: Pending, certificate: Certificate) -> None:
        """Advances by one link. Raises HistoryError where it does not continue the chain."""
        if pending.digest != certificate.link.digest:
            raise ValueError("the certificate is for another state")
        self.history.append(certificate)
        self.committed = pending
        self._forgetful = False
        self._proposals.clear()

    def check(self, chain: Sequence[Certificate]) -> Head:
        """The head that a downloaded chain leads to. Raises HistoryError."""
        return check_chain(self.history.run_id, self.head, self.participants, chain)

    def resume(self, state: Pending, chain: Sequence[Certificate], *, remembers: bool) -> None:
        """Goes on from a checkpoint of our own: a state and the links that lead to it, as they were saved.

        remembers: whether all that we promised before is known too; else an earlier process of ours may have voted.

        Raises:
            HistoryError: the links do not lead to the state.
        """
        self.history.restore(chain)
        if (self.head.outer_step, self.head.digest) != (state.outer_step, state.digest):
            raise HistoryError("the saved links lead elsewhere")
        self.committed = state
        self._forgetful = not remembers

    def adopt(self, state: Pending, chain: Sequence[Certificate]) -> None:
        """Replaces the state by a downloaded one; ``chain``, already checked, leads to it, empty at step 0."""
        if chain:
            self.history.adopt(chain)
        else:
            self.history.genesis = state.digest
            self.history.adopt(())
        self.committed = state
        self._proposals.clear()
