"""The examples that no peer trains on, and on which all peers measure the same loss."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from peer.data.seeded import held_out, shuffled
from peer.data.sources import Source, open_source
from peer.data.stream import blocks
from peer.data.tokenizer import Tokenizer, open_tokenizer
from swarm.errors import DataError

if TYPE_CHECKING:
    from swarm.manifest import Manifest

# One long document must not be the whole validation: at first each gives at most this part of it.
DOCUMENT_SHARE = 16


def validation_batches(manifest: Manifest) -> list[torch.Tensor]:
    """The same on every peer with the same data: int64 [n, sequence_length] each, n <= batch_size.

    Together they are ``validation.examples`` examples, or fewer where less is held out. Raises DataError when
    nothing is held out or the data cannot be read.
    """
    data, validation = manifest.data, manifest.validation
    wanted, length = validation.examples, data.sequence_length
    if wanted == 0:
        return []
    source, tokenizer = open_source(data), open_tokenizer(manifest)
    found: list[NDArray[np.int64]] = []
    # First a part of each document; where the documents then run out, all of each.
    for most_tokens in (max(length, wanted * length // DOCUMENT_SHARE), None):
        documents = _held_out_documents(source, tokenizer, manifest.seed, validation.fraction)
        cut = (tokens[:most_tokens] for tokens in documents)
        found = list(islice(blocks(cut, tokenizer.end_of_text_id, length), wanted))
        if len(found) == wanted:
            break
    if not found:
        raise DataError(
            f"validation.fraction: {validation.fraction} of this data holds out less than one example of "
            f"{length} tokens: raise validation.fraction, or give more data"
        )
    starts = range(0, len(found), data.batch_size)
    return [torch.from_numpy(np.stack(found[start : start + data.batch_size])) for start in starts]


def _held_out_documents(
    source: Source, tokenizer: Tokenizer, seed: int, fraction: float
) -> Iterator[NDArray[np.int64]]:
    """int64 [tokens] each, shard after shard in a seeded order."""
    order = f"{seed}:validation"
    for shard in shuffled(np.arange(source.shard_count, dtype=np.int64), order):
        for document_id, text in source.documents(int(shard), order):
            if held_out(seed, document_id, fraction):
                yield tokenizer.encode(text)
