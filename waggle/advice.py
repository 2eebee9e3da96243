"""What a new run should send, and how often: the setting that learns best of those that a link can carry.

Pure: numbers in, a choice out. What `waggle run new` writes into a template.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from peer.needs import in_units
from swarm.errors import UsageError
from swarm.manifest import Manifest
from swarm.optimizer import Optimizer
from waggle.run import bytes_per_outer_step

# The rules. Source: the learning frontier in docs/performance.md (bench/frontier.py: four peers, 117 k parameters,
# AdamW, steps of 4 x 8 x 64 bytes of text, 900 and 2700 of them). Few inner steps are worth more than exact values. A
# sparse codec whose remainder stays in the peer's own parameters learns what fp32 learns, while inner steps times
# keep_one_in stay at 40 or so: every step with 32, every 10 with 4. Far above that (15 times 64) it diverges. With
# error feedback sparse values are for few inner steps: 30 of them with one value in 64, and a mean of as many, learned
# less than a peer alone. A mean that comes one round late, and moves peers half of the way, costs what three times the
# inner steps do: 30 of them learned overlapped what 100 did blocking (2 to 3% more loss than 30 blocking). Of 10 it is
# 7% of the loss after 900, and 4% after 2700. So overlap is for links on which 50 blocking ones are not good enough.
INNER_STEPS = (1, 2, 5, 10, 20, 30, 50, 100, 200, 500)
"""Tried in this order: the first that the link carries is taken."""
MOST_SPARSE = 40
"""Inner steps times keep_one_in, with a local residual."""
DRIFTING = 320
"""The same product: at 256 and 320 it cost 13% of the loss, and at 960 nothing was learned."""
SPARSER_INNER_STEPS = 5
"""With ``sparser``, which is tried before more than MANY_INNER_STEPS, and before overlap: it learns about as much as
they do, for fewer bytes in all."""
SPARSEST_INNER_STEPS = 10
"""With ``sparser`` as the last resort: half the bytes of SPARSER_INNER_STEPS. In short runs a peer alone is better."""
MIN_OUTER_STEPS = 30
"""What a run needs at least, to be more than the mean of peers that each learned alone."""
MANY_INNER_STEPS = 30
"""In an outer step: from here on a little outer momentum helps in runs of any length. With fewer it was not tried."""
LATE_INNER_STEPS = 50
"""After so many blocking ones overlap is tried, from MANY_INNER_STEPS on: 100 blocking are no better than those."""
LONG_HORIZON = 20_000
"""Inner steps from which DiLoCo's outer Nesterov is taken. Its runs were longer (Douillard et al. 2023: 88 000); the
longest of ours, 2700, was better with less or none, but for 100 inner steps. With overlap it was tried once: 30 of them
were better at 900 than blocking. With sparse there is none: error feedback is a momentum of its own."""


@dataclass(frozen=True)
class Sending:
    """How values travel: fields of [round], None where they are to be left out."""

    codec: str
    keep_one_in: int | None = None
    mean_keep_one_in: int | None = None
    residual: str | None = None
    error_feedback: float | None = None


FP16, INT8 = Sending("fp16"), Sending("int8")
INT4 = Sending("int4", residual="local")
PLAIN = Optimizer(optimizer="sgd", learning_rate=1.0)
GENTLE = Optimizer(optimizer="sgd", learning_rate=0.7, momentum=0.5, nesterov=True)
"""From MANY_INNER_STEPS on: at 30 of them, in fp32 and after 900 in all, 3% less loss than PLAIN."""
NESTEROV = Optimizer(optimizer="sgd", learning_rate=0.7, momentum=0.9, nesterov=True)

BUSY_SHARE = 0.05
"""The most of the time that peers may spend on rounds while they do not train."""
PATIENT_SHARE = 0.2
"""The same, for the most inner steps of a run where those are LATE_INNER_STEPS or fewer, before it has overlap: a late
mean costs what a tenth fewer steps in all do where 30 lie between rounds, and up to a third fewer where 10 do (losses
of overlapped runs, against those of 900 and 2700 steps)."""
HIDDEN_SHARE = 0.7
"""The most of the local work that a round may take which runs during it: a link has slow moments."""
NEARLY = 1.2
"""Where nothing is good enough: how much more time than the least is no reason for a coarser codec."""
ROUND_SECONDS = 1.0
"""What a round takes beside its bytes: forming the group, round trips, the vote."""

_RANGES = {
    "horizon": (MIN_OUTER_STEPS, 10**9, "inner steps", f": fewer than {MIN_OUTER_STEPS} outer steps are not worth it"),
    "uplink_mbit": (0.01, 10**6, "Mbit/s", ""),
    "peers": (2, 64, "peers", ": one has nobody to talk to, and a group holds 64"),
    "step_seconds": (0.001, 86400, "seconds", ""),
}


@dataclass(frozen=True)
class Cost:
    """A setting, and what it costs on a link.

    overlap: 1 where a round runs while the next local work does. most_share: of the time, that rounds alone may take.
    sent_bytes: what each peer sends, and receives, per outer step.
    """

    inner_steps: int
    overlap: int
    sending: Sending
    most_share: float
    sent_bytes: int
    uplink_mbit: float
    step_seconds: float

    @property
    def wire_seconds(self) -> float:
        """How long the bytes take the uplink."""
        return self.sent_bytes * 8 / (self.uplink_mbit * 1e6)

    @property
    def work_seconds(self) -> float:
        """How long the local work of an outer step takes."""
        return self.inner_steps * self.step_seconds

    @property
    def round_seconds(self) -> float:
        """How long a round takes."""
        return self.wire_seconds + ROUND_SECONDS

    @property
    def share(self) -> float:
        """Of the time, how much goes to rounds alone."""
        waiting = max(0.0, self.round_seconds - self.work_seconds) if self.overlap else self.round_seconds
        return waiting / (self.work_seconds + waiting)

    @property
    def pace_seconds(self) -> float:
        """What an inner step takes with its part of the rounds."""
        return self.step_seconds / (1 - self.share)

    @property
    def good(self) -> bool:
        """Whether training hardly feels it."""
        if self.overlap:
            return self.round_seconds <= HIDDEN_SHARE * self.work_seconds
        return self.share <= self.most_share

    @property
    def phase_seconds(self) -> float:
        """What a round's exchange, and its commit, should be allowed.

        Half the bytes travel to reducers and half from them, or up to three quarters where the mean is denser: that is
        some three or four times what either takes, for a link has slow moments.
        """
        return float(min(86400, max(60, math.ceil(2 * self.wire_seconds))))

    def in_words(self) -> str:
        """A line."""
        seconds = f"{self.wire_seconds:.2g}" if self.wire_seconds < 100 else f"{self.wire_seconds:,.0f}"
        hidden = self.overlap and not self.share
        share = "hidden behind the local work" if hidden else f"rounds take {self.share:.0%} of the time"
        over = "" if self.good else ", and no setting for this horizon takes much less"
        return f"{in_units(self.sent_bytes)} or {seconds} s on the wire per outer step; {share}{over}"


@dataclass(frozen=True)
class Advice:
    """What to put into a manifest. why: for whom it was chosen, and what it costs; one line each."""

    cost: Cost
    outer: Optimizer
    why: tuple[str, str]


def choose(parameters: int, horizon: int, uplink_mbit: float, peers: int, step_seconds: float) -> Advice:
    """The first of the candidates with rounds that take at most its share of the time, or hide behind the work.

    Where there is none, what takes about the least time, of the most inner steps that the horizon allows and the
    sparsest codec.
    Never more than leave MIN_OUTER_STEPS in the horizon.

    Args:
        parameters: of the model. horizon: inner steps that each peer will make in all. uplink_mbit: of the slowest
            peer, 10^6 bits per second. step_seconds: what one inner step takes.

    Raises:
        UsageError: a value that no run can have, one line that names the flag.
    """
    _check(horizon=horizon, uplink_mbit=uplink_mbit, peers=peers, step_seconds=step_seconds)
    costs = [
        Cost(*candidate, _bytes(parameters, candidate[2], peers), uplink_mbit, step_seconds)
        for candidate in _candidates(horizon, peers)
    ]
    good = [cost for cost in costs if cost.good]
    if not good:
        most = max(cost.inner_steps for cost in costs)
        last = [cost for cost in costs if cost.inner_steps == most or cost.sending == sparser(peers)]
        least = min(cost.pace_seconds for cost in last)
        good = [cost for cost in last if cost.pace_seconds <= NEARLY * least]
    chosen = good[0]
    return Advice(
        cost=chosen,
        outer=_outer(chosen, horizon),
        why=(
            f"chosen for {horizon:,} inner steps of {step_seconds:g} s, {peers} peers, {uplink_mbit:g} Mbit/s up",
            chosen.in_words(),
        ),
    )


def doubts(manifest: Manifest) -> Iterator[str]:
    """What is valid and was seen to learn badly, one line each."""
    round_ = manifest.round
    waits = (round_.inner_steps or 0) * round_.keep_one_in
    if round_.codec == "sparse" and round_.kept == "local" and waits > DRIFTING:
        yield (
            f"round.keep_one_in: with residual = 'local' a value waits {waits} inner steps (inner_steps * keep_one_in) "
            f"until it is sent, and above {DRIFTING} peers drift apart: have less of either, or residual = 'feedback'"
        )


def _outer(cost: Cost, horizon: int) -> Optimizer:
    if cost.sending.codec == "sparse":
        return PLAIN
    if horizon >= LONG_HORIZON:
        return NESTEROV
    return GENTLE if cost.inner_steps >= MANY_INNER_STEPS and not cost.overlap else PLAIN


def _bytes(parameters: int, sending: Sending, peers: int) -> int:
    kept, of_mean = sending.keep_one_in or 64, sending.mean_keep_one_in
    return bytes_per_outer_step(parameters, sending.codec, peers, kept, of_mean)


def _candidates(horizon: int, peers: int) -> Iterator[tuple[int, int, Sending, float]]:
    """First fields of Cost, the best first: ever more inner steps, blocking, then again with overlap.

    But for ``sparser``, and for what is left to a link on which nothing is good enough.
    """
    most = horizon // MIN_OUTER_STEPS
    steps = sorted({min(count, most) for count in INNER_STEPS})
    last, many = steps[-1], min(MANY_INNER_STEPS, most)
    for inner_steps in (count for count in steps if count <= LATE_INNER_STEPS):
        yield from ((inner_steps, 0, sending, BUSY_SHARE) for sending in _exact_first(inner_steps))
        if inner_steps == many and most >= SPARSER_INNER_STEPS:
            yield SPARSER_INNER_STEPS, 0, sparser(peers), BUSY_SHARE
    if last <= LATE_INNER_STEPS:
        yield last, 0, _thrifty(last), PATIENT_SHARE
    for inner_steps in (count for count in steps if count >= many):
        if inner_steps == last > LATE_INNER_STEPS:  # for links on which nothing is good enough
            yield from ((last, 0, sending, BUSY_SHARE) for sending in _exact_first(last))
        yield from ((inner_steps, 1, sending, BUSY_SHARE) for sending in _exact_first(inner_steps))
    if most >= SPARSEST_INNER_STEPS:
        yield SPARSEST_INNER_STEPS, 0, sparser(peers), BUSY_SHARE


def _exact_first(inner_steps: int) -> tuple[Sending, ...]:
    return FP16, INT8, _thrifty(inner_steps)


def _thrifty(inner_steps: int) -> Sending:
    """What costs the fewest bytes and hardly any loss, at so many inner steps."""
    kept = [density for density in (32, 16, 8, 4) if inner_steps * density <= MOST_SPARSE]
    return Sending("sparse", keep_one_in=kept[0], residual="local") if kept else INT4


def sparser(peers: int) -> Sending:
    """One value in 256, and as many times more of the mean as there are peers to bring different ones.

    Up to a power of 2, and to 16: a mean that keeps more than anybody brought spends a magnitude on zeros.
    """
    more = min(16, 1 << peers.bit_length() - 1)
    return Sending("sparse", keep_one_in=256, mean_keep_one_in=256 // more, error_feedback=0.99)


def _check(**values: float) -> None:
    for name, value in values.items():
        least, most, unit, why = _RANGES[name]
        if not least <= value <= most:  # nan too
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"{flag}: must be {least:g} to {most:,} {unit}, not {value:,}{why}")
