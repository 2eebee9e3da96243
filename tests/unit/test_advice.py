"""What a new run is advised to send: within the horizon, as the link allows, and always a valid manifest."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm.errors import UsageError
from swarm.manifest import Manifest
from waggle import author
from waggle.advice import (
    BUSY_SHARE,
    GENTLE,
    INT4,
    LATE_INNER_STEPS,
    LONG_HORIZON,
    MANY_INNER_STEPS,
    MIN_OUTER_STEPS,
    MOST_SPARSE,
    NESTEROV,
    PATIENT_SHARE,
    PLAIN,
    SPARSER_INNER_STEPS,
    SPARSEST_INNER_STEPS,
    Advice,
    choose,
    sparser,
)

HORIZONS = st.one_of(st.integers(30, 5000), st.integers(30, 10**9))
MBIT = st.floats(0.01, 10**6)
PEERS = st.integers(2, 64)
STEP_SECONDS = st.floats(0.001, 1000)
PARAMETERS = st.one_of(st.sampled_from([434_944, 101_569_280]), st.integers(1, 10**10))


@given(PARAMETERS, HORIZONS, MBIT, PEERS, STEP_SECONDS)
def test_the_horizon_has_outer_steps_enough(
    parameters: int, horizon: int, uplink_mbit: float, peers: int, step_seconds: float
) -> None:
    advice = choose(parameters, horizon, uplink_mbit, peers, step_seconds)
    assert 1 <= advice.cost.inner_steps * MIN_OUTER_STEPS <= horizon


@given(PARAMETERS, HORIZONS, MBIT, MBIT, PEERS, STEP_SECONDS)
@example(3_279_360, 2000, 20.0, 100.0, 8, 0.5)  # 30 that overlap, and 50 that wait
def test_a_faster_link_never_means_more_inner_steps_but_than_sparser_or_late_ones(
    parameters: int, horizon: int, one: float, other: float, peers: int, step_seconds: float
) -> None:
    slow, fast = (choose(parameters, horizon, mbit, peers, step_seconds).cost for mbit in sorted((one, other)))
    if slow.overlap and not fast.overlap:
        assert fast.inner_steps <= max(LATE_INNER_STEPS, slow.inner_steps)
    elif slow.sending != sparser(peers):
        assert fast.inner_steps <= slow.inner_steps
    elif slow.inner_steps == SPARSER_INNER_STEPS:
        assert fast.inner_steps <= MANY_INNER_STEPS or not slow.good


@given(PARAMETERS, HORIZONS, HORIZONS, MBIT, PEERS, STEP_SECONDS)
def test_a_longer_run_never_takes_longer_for_a_step(
    parameters: int, one: int, other: int, mbit: float, peers: int, step_seconds: float
) -> None:
    """It may take more inner steps, and then need not have a coarser codec. BUSY_SHARE is nothing to save on."""
    short, long = (choose(parameters, horizon, mbit, peers, step_seconds).cost for horizon in sorted((one, other)))
    assert long.good or long.pace_seconds <= 1.2 * short.pace_seconds
    assert not long.good or long.share <= long.most_share


@given(st.sampled_from(sorted(author.TEMPLATES)), HORIZONS, MBIT, PEERS, STEP_SECONDS)
def test_it_always_makes_a_valid_manifest(
    template: str, horizon: int, uplink_mbit: float, peers: int, step_seconds: float
) -> None:
    plan = author.Plan(horizon, uplink_mbit, peers, step_seconds)
    text, advice = author.filled("mine", template, plan)
    manifest = Manifest.from_toml(text.replace('author = "@AUTHOR@"', ""))
    assert (manifest.round.inner_steps, manifest.round.codec) == (advice.cost.inner_steps, advice.cost.sending.codec)
    assert manifest.round.overlap == advice.cost.overlap
    assert (manifest.round.error_feedback, manifest.outer) == (advice.cost.sending.error_feedback, advice.outer)
    sending = advice.cost.sending
    assert (manifest.round.residual, manifest.round.keep_one_in) == (sending.residual, sending.keep_one_in or 64)
    assert manifest.round.mean_keep_one_in == sending.mean_keep_one_in
    if sending.codec == "sparse" and manifest.round.kept == "local":
        assert manifest.round.inner_steps * manifest.round.keep_one_in <= MOST_SPARSE, "it would diverge"
    assert "@" not in text.replace('"@AUTHOR@"', ""), "nothing is left to fill in"
    # A phase that lasts as long as its bytes on the link, and as long again, does not fail the round.
    longest = min(86400.0, max(60.0, advice.cost.wire_seconds))
    assert min(manifest.round.exchange_seconds, manifest.round.commit_seconds) >= longest
    assert manifest.inner is not None
    assert manifest.inner.schedule.warmup_steps < horizon
    assert manifest.inner.schedule.total_steps in (None, horizon)


def demo(**changes: Any) -> Advice:
    usual: dict[str, Any] = {
        "parameters": 434_944, "horizon": 9000, "uplink_mbit": 20.0, "peers": 4, "step_seconds": 1.0,
    }  # fmt: skip
    return choose(**{**usual, **changes})


def test_what_good_enough_means() -> None:
    for uplink_mbit in (5.0, 20.0, 100.0, 1000.0):
        cost = demo(uplink_mbit=uplink_mbit).cost
        assert cost.share <= cost.most_share == BUSY_SHARE
        if cost.overlap:
            assert cost.wire_seconds < 0.7 * cost.inner_steps * cost.step_seconds, (
                "it hides, with room for slow moments"
            )
            assert cost.share == 0.0
        assert cost.wire_seconds == pytest.approx(cost.sent_bytes * 8 / uplink_mbit / 1e6)


def test_a_coarser_codec_comes_before_more_inner_steps_and_only_where_it_helps() -> None:
    assert demo(uplink_mbit=1000.0).cost.sending.codec == "fp16", "a fast link needs no other"
    slow = {"parameters": 3_279_360, "step_seconds": 60.0}
    found = [demo(**slow, uplink_mbit=mbit).cost for mbit in (100.0, 20.0, 10.0, 1.0, 0.1)]
    assert [(cost.inner_steps, cost.sending.codec) for cost in found[:3]] == [(1, "fp16"), (1, "int8"), (1, "sparse")]
    assert found[2].sending.keep_one_in == 32
    assert found[3] == dataclasses.replace(found[2], uplink_mbit=1.0), "a hundredth of the bytes, every step"
    assert found[4].inner_steps > 1
    brief = demo(horizon=30, step_seconds=0.001, uplink_mbit=10_000.0)
    assert (brief.cost.inner_steps, brief.cost.sending.codec) == (1, "fp16"), "a second, whatever the codec"


def test_a_slow_link_with_slow_steps_has_few_of_them_and_sends_the_fewest_bytes() -> None:
    large = {"parameters": 100_000_000, "step_seconds": 60.0}
    for horizon in (150, 870, 900, 930, 9000):
        slow = demo(**large, uplink_mbit=2.0, horizon=horizon).cost
        assert (slow.inner_steps, slow.overlap, slow.sending) == (SPARSER_INNER_STEPS, 0, sparser(4)), horizon
        assert slow.good
    assert demo(**large, uplink_mbit=2.0, horizon=149).cost.inner_steps < SPARSER_INNER_STEPS
    assert demo(**large, uplink_mbit=20.0).cost.sending != sparser(4)


def test_a_mean_keeps_no_more_than_the_peers_bring() -> None:
    kept = {peers: sparser(peers).mean_keep_one_in for peers in (2, 3, 4, 7, 8, 16, 64)}
    assert kept == {2: 128, 3: 128, 4: 64, 7: 64, 8: 32, 16: 16, 64: 16}


def test_outer_momentum_is_for_long_runs_and_a_little_of_it_for_many_inner_steps() -> None:
    for step_seconds, short in ((60.0, PLAIN), (1.0, GENTLE)):
        assert demo(step_seconds=step_seconds, horizon=LONG_HORIZON - 1).outer == short
        assert demo(step_seconds=step_seconds, horizon=LONG_HORIZON).outer == NESTEROV
    slowest = demo(parameters=10**9, horizon=10**6)
    assert slowest.outer == (PLAIN if slowest.cost.sending.codec == "sparse" else NESTEROV)
    many = demo(parameters=10_000_000, uplink_mbit=100.0, step_seconds=1.2)
    assert (many.cost.inner_steps, many.cost.sending.codec) == (MANY_INNER_STEPS, "int4")
    assert many.outer == GENTLE


def test_a_late_mean_is_better_than_very_many_inner_steps() -> None:
    """Thirty that overlap learn what a hundred do that wait."""
    thin = {"parameters": 3_279_360, "horizon": 9000}
    found = [demo(**thin, uplink_mbit=mbit).cost for mbit in (20.0, 10.0, 2.0, 1.0, 0.5, 0.2)]
    assert [(cost.inner_steps, cost.overlap, cost.sending.codec) for cost in found] == [
        (LATE_INNER_STEPS, 0, "int4"), (MANY_INNER_STEPS, 1, "fp16"), (MANY_INNER_STEPS, 1, "int8"),
        (MANY_INNER_STEPS, 1, "int4"), (100, 1, "int4"), (200, 1, "int4"),
    ]  # fmt: skip
    assert all(cost.good for cost in found)


def test_a_short_run_is_patient_before_its_means_come_late() -> None:
    patient = demo(parameters=3_279_360, horizon=900, uplink_mbit=5.0).cost
    assert (patient.inner_steps, patient.overlap, patient.sending) == (30, 0, INT4)
    assert BUSY_SHARE < patient.share <= PATIENT_SHARE
    late = demo(parameters=3_279_360, horizon=900, uplink_mbit=2.0).cost
    assert (late.inner_steps, late.overlap) == (30, 1)


def test_the_sparsest_codec_is_the_last_resort() -> None:
    thin = {"parameters": 3_279_360, "horizon": 2000}
    assert demo(**thin).cost.sending == INT4, "of what every volunteer has"
    found = [demo(**thin, uplink_mbit=mbit).cost for mbit in (0.5, 0.2, 0.05)]
    assert [(cost.inner_steps, cost.overlap) for cost in found] == [(66, 1), (66, 1), (SPARSEST_INNER_STEPS, 0)]
    assert found[2].sending == sparser(4)
    assert not found[2].good


def test_the_author_is_told_for_whom_and_at_what_cost() -> None:
    whom, cost = demo(horizon=2000).why
    assert whom == "chosen for 2,000 inner steps of 1 s, 4 peers, 20 Mbit/s up"
    assert " s on the wire per outer step; " in cost
    whom, cost = demo(parameters=10**10, horizon=30, uplink_mbit=0.01).why
    assert "and no setting for this horizon takes much less" in cost
    assert "e+" not in cost


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"horizon": 29}, "--horizon: must be 30 to 1,000,000,000 inner steps, not 29: fewer than 30 outer steps"),
        ({"horizon": 10**10}, "--horizon: must be 30 to "),
        ({"uplink_mbit": 0.0}, "--uplink-mbit: must be 0.01 to 1,000,000 Mbit/s, not 0.0"),
        ({"uplink_mbit": math.nan}, "--uplink-mbit: must be 0.01 to 1,000,000 Mbit/s, not nan"),
        ({"uplink_mbit": math.inf}, "--uplink-mbit: must be 0.01 to 1,000,000 Mbit/s, not inf"),
        ({"peers": 1}, "--peers: must be 2 to 64 peers, not 1: one has nobody to talk to, and a group holds 64"),
        ({"step_seconds": -1.0}, "--step-seconds: must be 0.001 to 86,400 seconds, not -1.0"),
    ],
)  # fmt: skip
def test_what_no_run_can_have_is_told_in_one_line(change: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError) as caught:
        demo(**change)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_the_parameters_of_the_templates_are_counted_right() -> None:
    from peer.tasks import count_parameters

    for name, template in author.TEMPLATES.items():
        text, _ = author.filled("mine", name, author.Plan(template.horizon, 20.0, 4, 1.0))
        assert count_parameters(Manifest.from_toml(text.replace('author = "@AUTHOR@"', ""))) == template.parameters


def test_what_is_given_is_not_asked(tmp_path: Path) -> None:
    plan = author.Plan(300, 1.0, 8, 2.0)
    manifest, advice = author.new("mine", tmp_path / "mine.toml", "demo", tmp_path / "me.key", plan)
    assert Manifest.load(tmp_path / "mine.toml") == manifest
    assert advice == choose(434_944, 300, 1.0, 8, 2.0)
    text = (tmp_path / "mine.toml").read_text()
    assert all(f"# {line}\n" in text for line in advice.why)
