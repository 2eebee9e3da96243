"""How values travel: encode float32, decode the same float32 everywhere.

A codec encodes one chunk on its own. Decoding is a pure function of the bytes and uses operations that IEEE 754
rounds exactly, one at a time, so that every peer decodes the same bits. docs/protocol.md has the layouts.
"""

from __future__ import annotations

from collections.abc import Callable

from peer.rounds.codec.floats import Float16Codec, Float32Codec
from peer.rounds.codec.interface import Codec, CodecError
from peer.rounds.codec.quantised import Int4Codec, Int8Codec
from peer.rounds.codec.sparse import SparseCodec
from swarm.manifest import Round

__all__ = [
    "CODECS",
    "Codec",
    "CodecError",
    "Float16Codec",
    "Float32Codec",
    "Int4Codec",
    "Int8Codec",
    "SparseCodec",
    "codec_of",
]

CODECS: dict[str, Callable[[], Codec]] = {
    "fp32": Float32Codec,
    "fp16": Float16Codec,
    "int8": Int8Codec,
    "int4": Int4Codec,
    "sparse": SparseCodec,
}
"""The codecs a manifest may name."""


def codec_of(rules: Round) -> Codec:
    """The codec of a manifest; of a sparse one the densities are powers of 2."""
    if rules.codec != "sparse":
        return CODECS[rules.codec]()
    mean = None if rules.mean_keep_one_in is None else SparseCodec(rules.mean_keep_one_in.bit_length() - 1)
    return SparseCodec(rules.keep_one_in.bit_length() - 1, mean)
