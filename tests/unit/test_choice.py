"""Which offered state is believed: by its history, and by how many stand on it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.state.choice import Bid, choose
from swarm.history import Head
from tests.chain import PEERS, digest

ONE, TWO, THREE, LIAR, OTHER_LIAR = PEERS[:5]


def head(step: int, history: str = "honest") -> Head:
    """The head of a history; a liar's claims ten times the work."""
    return Head(step, digest((history, step)), step * (10 if history == "honest" else 100))


def bid(donor: str, step: int, history: str = "honest", known: int = 32) -> Bid:
    trail = {at: digest((history, at)) for at in range(max(1, step - known + 1), step + 1)}
    return Bid(donor, head(step, history), trail)


CASES: dict[str, tuple[list[Bid], Mapping[str, Head], Head | None]] = {
    "nobody": ([], {}, None),
    "one donor is all there is": ([bid(ONE, 5)], {}, head(5)),
    "all at one step": ([bid(ONE, 5), bid(TWO, 5), bid(THREE, 5)], {}, head(5)),
    "a commit between the answers": ([bid(ONE, 5), bid(TWO, 6), bid(THREE, 6)], {}, head(6)),
    "the newest of one history": ([bid(ONE, 5), bid(TWO, 6), bid(THREE, 7)], {}, head(7)),
    "one liar among three": ([bid(ONE, 5), bid(TWO, 6), bid(LIAR, 900, "lie")], {}, head(6)),
    "a liar who is the only one to answer": (
        [bid(LIAR, 900, "lie")],
        {ONE: head(5), TWO: head(5), LIAR: head(900, "lie")},
        None,
    ),
    "an honest one who is the only one to answer": (
        [bid(ONE, 9)],
        {ONE: head(9), TWO: head(8), THREE: head(7)},
        head(9),
    ),
    "records speak against it": ([bid(LIAR, 5, "lie")], {ONE: head(5), TWO: head(4), LIAR: head(5, "lie")}, None),
    "two liars of five": (
        [bid(ONE, 5), bid(TWO, 5), bid(THREE, 5), bid(LIAR, 9, "lie"), bid(OTHER_LIAR, 9, "lie")],
        {},
        head(5),
    ),
    "two sides of a cut, the heavier is kept": ([bid(ONE, 5), bid(TWO, 5, "cut")], {}, head(5, "cut")),
    "before the first link": ([Bid(ONE, Head(0, digest("a"), 0), {0: digest("a")})], {}, Head(0, digest("a"), 0)),
}


@pytest.mark.parametrize("name", CASES)
def test_which_state_is_believed(name: str) -> None:
    bids, claims, expected = CASES[name]
    assert choose(bids, claims) == expected
    assert choose(bids[::-1], claims) == expected


@given(
    honest=st.lists(st.integers(20, 30), min_size=2, max_size=6),
    lies=st.lists(st.integers(1, 1000), max_size=5),
    claims=st.lists(st.integers(15, 30), max_size=5),
)
def test_a_minority_never_wins(honest: list[int], lies: list[int], claims: list[int]) -> None:
    lies = lies[: len(honest) - 1]
    bids = [bid(f"honest-{index}", step) for index, step in enumerate(honest)]
    bids += [bid(f"liar-{index}", step, "lie") for index, step in enumerate(lies)]
    chosen = choose(bids, {f"claims-{index}": head(step) for index, step in enumerate(claims)})
    assert chosen == head(max(honest))
