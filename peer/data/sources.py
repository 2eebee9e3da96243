"""What a source of documents is, and which one a manifest names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from peer.data.files import stdlib_source, text_source
from peer.data.hub import HubSource
from swarm.errors import DataError

if TYPE_CHECKING:
    from swarm.manifest import Data


class Source(Protocol):
    """Documents in shards. The same data gives the same shards, ids and texts on every machine."""

    @property
    def shard_count(self) -> int:
        """At least 1. Every document is in exactly one of the shards 0 .. shard_count - 1."""
        ...

    def documents(self, shard: int, order: str = "") -> Iterator[tuple[str, str]]:
        """The (document id, text) pairs of one shard, never an empty text.

        order: seeds a shuffle, where the source can shuffle cheaply; "" is the stored order.
        Raises DataError when the data cannot be read.
        """
        ...


def open_source(data: Data) -> Source:
    """The source that ``[data]`` names.

    Raises DataError when there is nothing to read, MissingExtraError without the optional dependency it
    needs.
    """
    if data.source == "stdlib":
        return stdlib_source(data.sequence_length)
    if data.source == "text":
        return text_source(data.paths, data.field, data.sequence_length)
    if data.source == "hub":
        return HubSource(data)
    raise DataError(f"data.source: {data.source!r} is not one of stdlib, text, hub")
