"""The messages with which a state goes from peer to peer, typed and bounded."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from swarm.history import Certificate, Digest, Step
from swarm.wire import Message

STATE_PROTOCOL = "/waggle/2/state"
MAX_LINKS = 32
MAX_CHUNKS = 1 << 17
"""So many hashes of 32 bytes fill a frame: states of up to 128 GiB."""


class Ask(Message):
    """What have you: the state called ``digest``, or your committed one, with the links after ``since``?"""

    run_id: Annotated[str, Field(max_length=64)]
    since: Step
    digest: Digest | None = None


class Offer(Message):
    """A state. In the payload: the sha256 of each of its chunks, of which ``digest`` is made."""

    outer_step: Step
    digest: Digest
    chain: Annotated[list[Certificate], Field(max_length=MAX_LINKS)]


class Want(Message):
    """Send me this chunk of what you offered last."""

    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]


class Values(Message):
    """The chunk, float32 little-endian, in the payload."""

    index: Annotated[int, Field(ge=0, lt=MAX_CHUNKS)]


class Thanks(Message):
    """No more is wanted."""


class Unavailable(Message):
    """Not from me. reason: ``run``, ``unknown``, ``busy``, or ``old``: the swarm went on too far meanwhile."""

    reason: Annotated[str, Field(max_length=32)]
