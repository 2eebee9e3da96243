"""How long a donor is patient with newcomers, and that nobody can use it up without end."""

from __future__ import annotations

import asyncio
import time

import pytest

from peer.state import welcome as module
from peer.state.welcome import Welcome


async def waited(welcome: Welcome) -> float:
    began = time.monotonic()
    await asyncio.wait_for(welcome.settled(), 20)
    return time.monotonic() - began


async def test_nobody_waits_for_nobody() -> None:
    assert await waited(Welcome()) < 0.5


async def test_a_guest_is_waited_for_until_it_has_had_time_to_sit_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    welcome = Welcome()
    welcome.arrive("guest")
    settled = asyncio.ensure_future(waited(welcome))
    await asyncio.sleep(0)
    assert not settled.done()
    welcome.leave("guest", served=True)
    assert await settled >= 0.29


async def test_a_guest_that_goes_is_not_waited_for() -> None:
    welcome = Welcome()
    welcome.arrive("guest")
    settled = asyncio.ensure_future(waited(welcome))
    await asyncio.sleep(0)
    welcome.leave("guest", served=False)
    assert await settled < 5


async def test_patience_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.5)
    welcome = Welcome()
    welcome.arrive("guest that never has enough")
    assert 0.45 <= await waited(welcome) < 5
    assert await waited(welcome) < 0.4, "used up; a tenth of the time since has come back"
