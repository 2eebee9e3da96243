"""A state put together from chunks: whoever sends them in whatever order, and nothing that is not the state."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.layout import CHUNK_VALUES, Layout, chunk_bytes, chunk_slices, named_state
from peer.state.download import Download
from peer.values import Pending
from swarm.wire import WireError

SIZE = 2 * CHUNK_VALUES + 10
LAYOUT = Layout((("weight", (SIZE,)),))
SLOTS = ("first_moment", "second_moment")
PARAMETERS = torch.arange(float(SIZE))
STATE = named_state(LAYOUT, 3, PARAMETERS, {"first_moment": -PARAMETERS, "second_moment": PARAMETERS * 2})


def chunks(state: Pending) -> list[bytes]:
    vectors = [state.parameters, *(state.slots[name] for name in sorted(state.slots))]
    return [bytes(chunk_bytes(vector[place])) for vector in vectors for place in chunk_slices(LAYOUT.size)]


SENT = chunks(STATE)


def start(hashes: bytes = STATE.hashes) -> Download:
    return Download(LAYOUT, SLOTS, 3, STATE.digest, hashes)


@settings(max_examples=30)
@given(st.integers(0, 2**32))
async def test_donors_come_and_go_in_any_order(seed: int) -> None:
    draw, download, donors = random.Random(seed), start(), ["one", "two", "three"]
    owed: dict[str, list[int]] = {donor: [] for donor in donors}
    while not download.complete:
        donor = draw.choice(donors)
        if draw.random() < 0.1:
            owed[donor].clear()
            download.give_up(donor)
        elif owed[donor] and draw.random() < 0.5:
            index = owed[donor].pop(draw.randrange(len(owed[donor])))
            await download.put(index, SENT[index])
        elif (taken := download.take(donor)) is not None:
            assert taken not in owed[donor]
            owed[donor].append(taken)
    found = download.state()
    assert found.digest == STATE.digest
    assert torch.equal(found.parameters, STATE.parameters)
    assert all(torch.equal(found.slots[name], STATE.slots[name]) for name in SLOTS)
    assert named_state(LAYOUT, 3, found.parameters, found.slots).digest == STATE.digest


async def test_a_wrong_chunk_is_refused_and_asked_of_another() -> None:
    download = start()
    index = download.take("liar")
    assert index == 0
    spoilt = bytearray(SENT[0])
    spoilt[random.Random(0).randrange(len(spoilt))] ^= 1
    for payload, reason in ((bytes(spoilt), "digest"), (SENT[0][:-4], "shape"), (b"", "shape"), (SENT[1], "digest")):
        with pytest.raises(WireError) as caught:
            await download.put(0, payload)
        assert caught.value.reason == reason
    assert download.progress == 0.0
    download.give_up("liar")
    taken = [download.take("honest") for _ in SENT]
    assert sorted(index for index in taken if index is not None) == list(range(len(SENT)))


async def test_what_is_late_is_asked_of_one_more() -> None:
    download = start()
    for index in range(len(SENT)):
        assert download.take("slow") == index
    assert download.take("slow") is None, "nobody is asked twice"
    assert download.take("fast") == 0
    assert download.take("third") == 1, "a chunk is on its way at most twice"
    for index in range(len(SENT)):
        await download.put(index, SENT[index])
    await download.put(0, SENT[0])  # the slow one's comes too: no matter
    assert download.complete
    assert download.take("fast") is None


@pytest.mark.parametrize(
    "hashes, reason",
    [
        (STATE.hashes[:-32], "shape"),
        (STATE.hashes + bytes(32), "shape"),
        (bytes(32) + STATE.hashes[32:], "digest"),
        (STATE.hashes[32:] + STATE.hashes[:32], "digest"),
    ],
)
def test_hashes_that_are_not_the_digests_are_refused(hashes: bytes, reason: str) -> None:
    with pytest.raises(WireError) as caught:
        start(hashes)
    assert caught.value.reason == reason
