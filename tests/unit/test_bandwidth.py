"""Rates as others observed them, and parts with which the slowest link is done soonest."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.needs import MOST_PARTS
from peer.rounds.bandwidth import ALIKE, LEAST_BYTES, Flows, Observed, divide, link_rates, well_cut

PEERS = [f"peer-{index}" for index in range(8)]
RATES = st.lists(st.floats(1e4, 1e9), min_size=1, max_size=8)


def slowest_seconds(lengths: Mapping[str, int], members: int, rates: Mapping[str, float]) -> float:
    """What the slowest link takes for what the protocol sends over it, in vectors over rate."""
    values = sum(lengths.values())
    return max((1 + (members - 2) * length / values) / rates[peer] for peer, length in lengths.items())


@given(st.integers(0, 10**9), RATES, st.integers(0, 4))
def test_parts_add_up_whatever_the_rates(values: int, rates: list[float], clients: int) -> None:
    reducers = PEERS[: len(rates)]
    lengths = divide(values, reducers, len(rates) + clients, dict(zip(reducers, rates, strict=True)))
    assert list(lengths) == reducers
    assert sum(lengths.values()) == values
    assert all(0 <= length <= MOST_PARTS * values / len(reducers) + 1 for length in lengths.values())
    others = dict.fromkeys(PEERS[len(rates) :][:clients], 0)
    assert well_cut({**lengths, **others}, reducers, values)


def test_a_member_sees_parts_that_no_correct_leader_cuts() -> None:
    one, two, three, four = PEERS[:4]
    equal = {one: 25, two: 25, three: 25, four: 25}
    assert well_cut(equal, equal, 100)
    assert well_cut({one: 51, two: 49, three: 0, four: 0}, equal, 100), "two equal ones, rounded"
    assert not well_cut({one: 52, two: 48, three: 0, four: 0}, equal, 100), "longer than that"
    assert not well_cut(equal, equal, 101)
    assert not well_cut(equal, equal, 99)
    assert not well_cut(equal, [one, two, three], 100), "a part for one that nobody can dial"
    assert well_cut({one: 100, two: 0}, [one], 100)
    assert not well_cut({one: 0, two: 0}, [], 100)


@given(st.integers(1, 500), st.integers(1, 8))
def test_parts_are_equal_where_nothing_is_known(values: int, count: int) -> None:
    lengths = list(divide(values, PEERS[:count], count, {}).values())
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)


@given(st.lists(st.floats(1.0, 10.0), min_size=3, max_size=8), st.data())
def test_no_other_division_is_faster(rates: list[float], data: st.DataObject) -> None:
    values, reducers = 10**6, PEERS[: len(rates)]
    known = dict(zip(reducers, rates, strict=True))
    ours = slowest_seconds(divide(values, reducers, len(rates), known), len(rates), known)
    lengths = divide(values, reducers, len(rates), known)
    giver, taker = data.draw(st.sampled_from(reducers)), data.draw(st.sampled_from(reducers))
    moved = data.draw(st.integers(0, lengths[giver]))
    lengths[giver] -= moved
    lengths[taker] += moved
    other = slowest_seconds(lengths, len(rates), known)
    alike = max(rates) <= ALIKE * min(rates)
    most = int(MOST_PARTS * values / len(reducers))
    if max(lengths.values()) <= most > max(divide(values, reducers, len(rates), known).values()):
        assert ours <= other * (ALIKE if alike else 1.0 + 1e-4)


def test_one_slow_link_reduces_nothing_and_a_slower_one_less() -> None:
    rates = {PEERS[0]: 10.0, PEERS[1]: 100.0, PEERS[2]: 100.0, PEERS[3]: 100.0}
    assert divide(999, PEERS[:4], 4, rates) == {PEERS[0]: 0, PEERS[1]: 333, PEERS[2]: 333, PEERS[3]: 333}
    rates[PEERS[0]] = 65.0
    lengths = divide(1000, PEERS[:4], 4, rates)
    assert 0 < lengths[PEERS[0]] < 250 < lengths[PEERS[1]]


def test_rates_that_are_alike_do_not_move_the_parts() -> None:
    rates = {PEERS[0]: 90.0, PEERS[1]: 100.0, PEERS[2]: 110.0}
    assert divide(300, PEERS[:3], 3, rates) == dict.fromkeys(PEERS[:3], 100)


def test_in_pairs_parts_are_equal() -> None:
    assert divide(10, PEERS[:2], 2, {PEERS[0]: 1.0, PEERS[1]: 100.0}) == dict.fromkeys(PEERS[:2], 5)


def test_nobody_to_reduce() -> None:
    with pytest.raises(ValueError, match="nobody"):
        divide(10, [], 2, {})


def test_what_a_peer_declares_is_bounded_by_what_others_observed() -> None:
    slow, liar, other = PEERS[:3]
    told = {
        slow: {liar: 100, other: 500},
        liar: {slow: 10**12, other: 10**12},  # it receives like nobody else, it says
        other: {slow: 500, liar: 100},
    }
    rates = link_rates(told, [slow, liar, other])
    assert rates[liar] == 200  # what the others got from it
    assert rates[other] == 600  # what it received itself


def test_a_peer_of_which_little_is_known_has_no_rate() -> None:
    one, two, three = PEERS[:3]
    assert link_rates({one: {}, two: {}}, [one, two]) == {}
    assert link_rates({one: {}}, [one]) == {}
    assert link_rates({one: {two: 5}, two: {one: 3}, three: {}}, [one, two, three]) == {}


def test_one_that_says_nothing_and_one_that_nobody_can_dial_stop_nobody() -> None:
    one, two, three, mute, client = PEERS[:5]
    told = {peer: {other: 10 for other in PEERS[:5] if other != peer} for peer in (one, two, three)}
    rates = link_rates({**told, mute: {}, client: {}}, [one, two, three, mute])
    assert rates == dict.fromkeys((one, two, three, mute), 30.0)  # three others are sent to; two of them said 10


def test_a_newcomer_takes_nobodys_rate_away() -> None:
    told = {peer: {other: 10 for other in PEERS[:4] if other != peer} for peer in PEERS[:4]}
    told[PEERS[0]] = dict.fromkeys(PEERS[1:4], 2)  # a slow way in
    known = link_rates(told, PEERS[:4])
    assert known == {PEERS[0]: 6.0, **dict.fromkeys(PEERS[1:4], 22.0)}
    joined = link_rates({**told, PEERS[4]: {}}, PEERS[:5])
    assert joined == {peer: pytest.approx(rate * 4 / 3) for peer, rate in known.items()}, (
        "which are to each other as before"
    )
    client = link_rates({**told, PEERS[4]: {}}, PEERS[:4])  # it sends and is not sent to
    assert client == {PEERS[0]: 8.0, **dict.fromkeys(PEERS[1:4], 22.0)}


def test_who_reduces_nothing_is_known_by_what_it_sends() -> None:
    slow, *fast = PEERS[:4]
    told = {peer: {other: 100 for other in PEERS[:4] if other != peer} for peer in fast}
    for peer in fast:
        told[peer][slow] = 10
    for known in (dict.fromkeys(fast, 10), {}):  # what was told of its way in is forgotten: nobody sends to it
        rates = link_rates({slow: known, **told}, PEERS[:4])
        assert divide(999, PEERS[:4], 4, rates)[slow] == 0


def test_flows_are_timed_from_the_first_message_to_the_last() -> None:
    flows, observed = Flows(), Observed()
    flows.arrived("fast", 10**9, 10.0)  # when it began to send nobody knows
    flows.arrived("fast", LEAST_BYTES, 11.0)
    flows.arrived("fast", LEAST_BYTES, 12.0)
    flows.arrived("little", 100, 10.0)
    flows.arrived("little", 100, 12.0)
    assert flows.rates() == {"fast": LEAST_BYTES}
    observed.learn(flows)
    assert observed.told(["fast", "little", "never"]) == {"fast": LEAST_BYTES}


def timing(peer: str, rate: int) -> Flows:
    flows = Flows()
    flows.arrived(peer, 0, 0.0)
    flows.arrived(peer, rate, 1.0)
    return flows


def test_older_timings_fade_and_are_forgotten() -> None:
    observed = Observed()
    observed.learn(timing("one", 10**6))
    observed.learn(timing("one", 3 * 10**6))
    assert observed.told(["one"]) == {"one": 2 * 10**6}
    for _ in range(7):
        observed.learn(timing("other", 10**6))
    assert observed.told(["one"]) == {"one": 2 * 10**6}
    observed.learn(timing("other", 10**6))
    assert observed.told(["one", "other"]) == {"other": 10**6}
