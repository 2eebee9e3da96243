"""Choices that all processes on all machines make alike: SHA-256 of text, never ``hash()``."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def held_out(seed: int, document_id: str, fraction: float) -> bool:
    """Whether a document belongs to validation: sha256("seed:document_id") / 2**256 < fraction.

    It depends on nothing else, so all peers hold out the same documents, whatever they read and when they
    joined.
    """
    digest = hashlib.sha256(f"{seed}:{document_id}".encode()).digest()
    # Scaling by a power of two is exact, and so is Python's comparison of an int with a float.
    return int.from_bytes(digest, "big") < fraction * 2.0**256


def shuffled(numbers: NDArray[np.int64], salt: str) -> NDArray[np.int64]:
    """``numbers`` in an order that depends on them and on ``salt`` alone, not on how they came."""
    keys = np.fromiter((_key(f"{salt}:{number}") for number in numbers), dtype=np.uint64, count=len(numbers))
    # Two equal 64-bit keys are next to impossible; the number itself breaks the tie all the same.
    return numbers[np.lexsort((numbers, keys))]


def _key(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
