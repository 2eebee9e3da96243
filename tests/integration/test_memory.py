"""What a round holds beside the parameters: docs/protocol.md adds it up, this measures it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.memory import FREED_AT_ONCE, PEERS

SLACK = 0.3
"""Vectors: what is under way in buffers, and what the process allocates beside them in its first rounds."""


@pytest.mark.parametrize(
    ("codec", "documented"),
    [
        ("fp32", 1 + 2 / PEERS),  # the members' values for our part, and two means of it
        ("int8", (1 + 2 / PEERS) / 4),
        ("sparse", 1 + 1 / PEERS),  # the remainder, and that of our part of the mean; the rest is nothing
    ],
)
def test_rounds_take_no_more_than_is_documented(codec: str, documented: float) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.memory", codec],
        env={**os.environ, **FREED_AT_ONCE}, stdout=subprocess.PIPE, check=True, timeout=200, text=True,
    )  # fmt: skip
    peak = float(done.stdout)
    print(f"{peak:.2f} vectors, {documented:.2f} documented")
    assert documented / 2 < peak <= documented + SLACK
