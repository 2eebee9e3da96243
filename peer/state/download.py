"""One state put together from the chunks of many donors, each checked by itself.

The hashes are checked against the digest, which the swarm's signatures stand for, and every chunk against its hash:
so it does not matter who sends it. What has arrived stays, whoever hangs up.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from peer.layout import HASH_BYTES, Layout, chunk_slices, digest_of
from peer.values import Pending
from swarm.deadline import within
from swarm.identity import PeerId
from swarm.wire import WireError

_COPIES = 2
"""At the end, when nothing is left to ask for, a chunk that is still on its way is asked of one more donor."""


class Download:
    """The chunks of one state. Belongs to the network's loop.

    outer_step, digest: of the state. hashes: of its chunks, as a donor offered them.

    Raises:
        WireError: ``shape`` or ``digest``, when the hashes are not those of such a state.
    """

    def __init__(self, layout: Layout, slot_names: Sequence[str], outer_step: int, digest: str, hashes: bytes):
        self.digest = digest
        self._outer_step, self._slot_names, self._hashes = outer_step, tuple(slot_names), hashes
        check_hashes(layout, slot_names, outer_step, digest, hashes)
        slices = chunk_slices(layout.size)
        self._vectors = [torch.empty(layout.size) for _ in range(1 + len(self._slot_names))]
        self._chunks = [vector[place] for vector in self._vectors for place in slices]
        self._todo = deque(range(len(self._chunks)))
        self._asked: dict[int, list[PeerId]] = {}
        self._missing = set(self._todo)
        self._changed = asyncio.Event()

    @property
    def complete(self) -> bool:
        """Whether every chunk is here."""
        return not self._missing

    @property
    def progress(self) -> float:
        """The share of chunks that are here, 0 to 1."""
        return 1.0 - len(self._missing) / max(1, len(self._chunks))

    def take(self, donor: PeerId) -> int | None:
        """The next chunk to ask ``donor`` for; None while it can be of no use."""
        if self._todo:
            index = self._todo.popleft()
        else:
            late = [
                index for index, donors in self._asked.items() if donor not in donors and len(donors) < _COPIES
            ]  # fmt: skip
            if not late:
                return None
            index = late[0]
        self._asked.setdefault(index, []).append(donor)
        return index

    def give_up(self, donor: PeerId) -> None:
        """Nothing more comes from ``donor``: others are asked for what it owes."""
        for index, donors in list(self._asked.items()):
            if donor in donors:
                donors.remove(donor)
                if not donors:
                    del self._asked[index]
                    self._todo.append(index)
        self._wake()

    async def put(self, index: int, payload: bytes) -> None:
        """A chunk has arrived. Raises WireError: ``shape`` or ``digest``, when it is not the one that is wanted."""
        chunk = self._chunks[index]
        if len(payload) != 4 * chunk.numel():
            raise WireError("shape", f"a chunk of {len(payload)} bytes where {4 * chunk.numel()} are due")
        wanted = self._hashes[HASH_BYTES * index : HASH_BYTES * (index + 1)]

        def check() -> bool:
            return hashlib.sha256(payload).digest() == wanted

        if not await asyncio.get_running_loop().run_in_executor(None, check):
            raise WireError("digest", f"chunk {index} is not the committed one")
        if index in self._missing:
            chunk.copy_(torch.from_numpy(np.frombuffer(payload, dtype="<f4").astype(np.float32)))
            self._missing.discard(index)
            self._asked.pop(index, None)
            self._wake()

    async def news(self, timeout: float) -> None:
        """Waits until there may be something to take, or all is here. Raises asyncio.TimeoutError."""
        await within(self._changed.wait(), timeout)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def state(self) -> Pending:
        """The state, once complete."""
        slots = dict(zip(self._slot_names, self._vectors[1:], strict=True))
        return Pending(self._outer_step, self._vectors[0], slots, self.digest, self._hashes)


def check_hashes(layout: Layout, slot_names: Sequence[str], outer_step: int, digest: str, hashes: bytes) -> None:
    """Whether ``hashes`` are of the chunks of the state that ``digest`` names. Raises WireError."""
    due = HASH_BYTES * len(chunk_slices(layout.size)) * (1 + len(slot_names))
    if len(hashes) != due:
        raise WireError("shape", f"{len(hashes)} bytes of hashes where {due} are due")
    if digest_of(layout, outer_step, slot_names, hashes) != digest:
        raise WireError("digest", f"the hashes are not those of {digest[:16]}")
