"""Deterministic, resumable examples: a source of documents, a tokenizer, shards, a hold-out, read ahead.

source -> documents -> tokens -> blocks of ``sequence_length`` -> ``Batch`` with the ``Cursor`` behind it.
docs/data.md tells the whole story.
"""

from peer.data.prefetch import Prefetcher
from peer.data.sources import Source, open_source
from peer.data.stream import ExampleStream, StreamOptions, open_stream
from peer.data.tokenizer import ByteTokenizer, Tokenizer, open_tokenizer
from peer.data.validation import validation_batches

__all__ = [
    "ByteTokenizer",
    "ExampleStream",
    "Prefetcher",
    "Source",
    "StreamOptions",
    "Tokenizer",
    "open_source",
    "open_stream",
    "open_tokenizer",
    "validation_batches",
]
