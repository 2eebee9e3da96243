"""One peer's stream of training examples: which shard comes next, how it is cut, where it resumes."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from peer.data.seeded import held_out, shuffled
from peer.data.sources import Source, open_source
from peer.data.tokenizer import Tokenizer, open_tokenizer
from peer.values import Batch, Cursor
from swarm.errors import DataError, UsageError

if TYPE_CHECKING:
    from swarm.manifest import Manifest

START = Cursor()


@dataclass(frozen=True)
class StreamOptions:
    """What shapes a stream.

    sequence_length: tokens per example. batch_size: examples per batch. held_out: fraction of documents left
    to validation. data_shard: "" or "i/n", see ``ExampleStream``.
    """

    seed: int
    sequence_length: int
    batch_size: int
    held_out: float
    data_shard: str = ""


def blocks(documents: Iterable[NDArray[np.int64]], end_of_text_id: int, length: int) -> Iterator[NDArray[np.int64]]:
    """Cut tokens into examples: int64 [length] each.

    documents: int64 [tokens] each; they are joined with the end-of-text id behind each, and what is left of
    them in the end, shorter than ``length``, is dropped.
    """
    end = np.array([end_of_text_id], dtype=np.int64)
    rest = np.empty(0, dtype=np.int64)
    for tokens in documents:
        rest = np.concatenate([rest, tokens, end])
        whole = len(rest) // length * length
        yield from rest[:whole].reshape(-1, length)
        rest = rest[whole:]


class ExampleStream:
    """Endless batches for one reader, the same on every machine, from any cursor.

    In each epoch the reader takes all shards in an order seeded by (seed, reader, epoch), and within a shard
    the documents in an order seeded alike, so that two peers read different text at the same time. With
    data_shard "i/n" it takes only the shards s where s % n == i, and "i/n" stands in for the reader: that
    share's stream is the same whoever reads it.

    Not thread-safe: one thread reads it at a time.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        options: StreamOptions,
        reader: str,
        cursor: Cursor = START,
    ) -> None:
        """Raises UsageError when data_shard is malformed, DataError when there are too few shards for it."""
        self._source = source
        self._tokenizer = tokenizer
        self._options = options
        self._shards, self._reader = _share(options.data_shard, source.shard_count, reader)
        self._examples = self._read(cursor)

    def __iter__(self) -> ExampleStream:
        return self

    def __next__(self) -> Batch:
        """The next batch. Raises DataError when the data cannot be read, or an epoch has not one example."""
        taken = [next(self._examples) for _ in range(self._options.batch_size)]
        tokens = np.stack([block for block, _ in taken])
        return Batch(tokens=torch.from_numpy(tokens), cursor=taken[-1][1])

    def close(self) -> None:
        """Close the files being read. The stream has then ended."""
        self._examples.close()

    def _read(self, cursor: Cursor) -> Generator[tuple[NDArray[np.int64], Cursor], None, None]:
        """Each example, int64 [sequence_length], with the cursor behind it."""
        skip = cursor.block
        number = cursor.shard_number
        barren = 0  # shards in a row without one example
        # Orders differ by epoch: so many in a row, wherever they began, contain a whole one.
        while barren < 2 * len(self._shards):
            epoch, position = divmod(number, len(self._shards))
            order = f"{self._options.seed}:{self._reader}:{epoch}"
            shard = int(shuffled(self._shards, order)[position])
            block = 0
            for block, tokens in enumerate(self._blocks(shard, order), start=1):
                if block > skip:
                    yield tokens, Cursor(shard_number=number, block=block)
            barren = 0 if block else barren + 1
            number, skip = number + 1, 0
        raise DataError(
            f"data: a whole epoch ({len(self._shards)} shards) holds not one example of sequence_length = "
            f"{self._options.sequence_length} tokens outside validation: give more data, or lower "
            "data.sequence_length or validation.fraction"
        )

    def _blocks(self, shard: int, order: str) -> Iterator[NDArray[np.int64]]:
        options = self._options
        documents = (
            self._tokenizer.encode(text)
            for document_id, text in self._source.documents(shard, order)
            if not held_out(options.seed, document_id, options.held_out)
        )
        return blocks(documents, self._tokenizer.end_of_text_id, options.sequence_length)


def _share(data_shard: str, shard_count: int, reader: str) -> tuple[NDArray[np.int64], str]:
    """The shards to read, int64 [shards], and the name that seeds their order."""
    shards = np.arange(shard_count, dtype=np.int64)
    if not data_shard:
        return shards, reader
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", data_shard)
    index, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if index >= count:
        raise UsageError(f"data_shard: {data_shard!r} is not i/n with 0 <= i < n, for example 0/4")
    if shard_count < count:
        raise DataError(
            f"data_shard: {data_shard} needs at least {count} shards and the data has {shard_count}: "
            "give more data, or lower n"
        )
    return shards[index::count], f"{index}/{count}"


def open_stream(manifest: Manifest, reader: str, cursor: Cursor = START, data_shard: str = "") -> ExampleStream:
    """The stream of ``reader`` (a peer id) over the manifest's data, from ``cursor`` on.

    Raises DataError, MissingExtraError or UsageError, each saying what to change.
    """
    options = StreamOptions(
        seed=manifest.seed,
        sequence_length=manifest.data.sequence_length,
        batch_size=manifest.data.batch_size,
        held_out=manifest.validation.fraction,
        data_shard=data_shard,
    )
    return ExampleStream(open_source(manifest.data), open_tokenizer(manifest), options, reader, cursor)
