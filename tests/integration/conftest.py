"""What integration tests share: a nursery for their programs, so that a hundred peers do not import torch each."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.nursery import Nursery
from tests.processes import Program


@pytest.fixture(scope="session", autouse=True)
def _nursery() -> Iterator[None]:
    """It starts with the first program."""
    imports = "import peer.daemon, bootstrap.daemon, tests.strikes, transformers.models.gpt2.modeling_gpt2"
    with Nursery(imports) as nursery:
        Program.nursery = nursery if sys.platform == "linux" else None
        yield
        Program.nursery = None
