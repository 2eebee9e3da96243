"""Local work that goes on during a round, and error feedback: nothing that was done is lost or counted twice."""

from __future__ import annotations

import pytest
import torch

from peer.layout import read_parameters
from peer.training import Trainer
from swarm.errors import ManifestError
from swarm.manifest import Manifest
from tests.unit.test_training import BATCH_SIZE, COMMON, GRADIENTS, UPDATES, a_trainer, work

OVERLAP = UPDATES + "overlap = 1\noverlap_mixing = 1.0\ninner_steps = 3"
MIXED = UPDATES + "overlap = 1\noverlap_mixing = 0.25\ninner_steps = 3"
LOCAL = UPDATES + 'residual = "local"\ninner_steps = 3'
FEEDBACK = UPDATES + "error_feedback = 0.5\ninner_steps = 3"


def a_manifest(text: str) -> Manifest:
    return Manifest.from_toml(COMMON + text)


def parameters(trainer: Trainer) -> torch.Tensor:
    return read_parameters(trainer.model)


def in_a_round(text: str) -> tuple[Trainer, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A trainer whose work is handed in, where it began, where that ended, and what it did since."""
    trainer, _ = a_trainer(a_manifest(text))
    base = parameters(trainer)
    work(trainer, 3)
    end = base - trainer.hand_in().contribution
    work(trainer, 2)
    return trainer, base, end, parameters(trainer) - end


def test_a_round_changes_the_base_under_what_was_done_meanwhile() -> None:
    trainer, _ = a_trainer(a_manifest(OVERLAP))
    base = parameters(trainer)
    work(trainer, 3)
    assert trainer.full
    end = parameters(trainer)
    first = trainer.hand_in()
    assert torch.equal(first.contribution, base - end)
    assert (first.examples, trainer.contributed, trainer.examples) == (3 * BATCH_SIZE, 3 * BATCH_SIZE, 0)
    assert trainer.done
    assert not trainer.full

    work(trainer, 2)  # while the round is under way
    moved = parameters(trainer) - end
    committed = base + 0.25 * torch.ones_like(base)
    trainer.commit(committed, None, counted=True)
    torch.testing.assert_close(parameters(trainer), committed + moved)
    assert (trainer.examples, trainer.inner_steps, trainer.done) == (2 * BATCH_SIZE, 2, False)

    before = parameters(trainer)
    work(trainer, 1)
    assert trainer.full
    last = parameters(trainer) - before
    second = trainer.hand_in()
    torch.testing.assert_close(second.contribution, -(moved + last), rtol=0, atol=1e-6)
    assert second.examples == 3 * BATCH_SIZE


def test_a_peer_moves_a_part_of_the_way_to_a_late_mean() -> None:
    """The rest of its own way is in its next contribution, or four peers would drift apart."""
    trainer, base, end, moved = in_a_round(MIXED)
    committed = base + 0.25 * torch.ones_like(base)
    trainer.commit(committed, None, counted=True)
    torch.testing.assert_close(parameters(trainer), end + 0.25 * (committed - end) + moved)
    second = trainer.hand_in()
    torch.testing.assert_close(second.contribution, 0.75 * (committed - end) - moved, rtol=0, atol=1e-6)
    assert second.examples == 2 * BATCH_SIZE


def test_a_contribution_that_was_refused_does_not_stay_in_part() -> None:
    trainer, base, _, moved = in_a_round(MIXED)
    trainer.commit(base, None, counted=False)
    torch.testing.assert_close(parameters(trainer), base + moved)


def test_who_did_nothing_keeps_what_it_kept_of_its_own_way() -> None:
    trainer, _ = a_trainer(a_manifest(MIXED))
    base = parameters(trainer)
    work(trainer, 3)
    trainer.hand_in()
    trainer.commit(base, None, counted=True)
    own = parameters(trainer) - base
    assert own.norm() > 0
    trainer.hand_in()  # nothing, and another round is under way
    work(trainer, 2)
    moved = parameters(trainer) - base - own
    trainer.commit(base * 1.5, None, counted=False)
    torch.testing.assert_close(parameters(trainer), base * 1.5 + own + moved)


def test_what_a_peer_kept_of_its_own_way_outlives_it() -> None:
    """Right after a commit nothing is done yet, and still it is not where the swarm is."""
    trainer, _ = a_trainer(a_manifest(MIXED))
    base = parameters(trainer)
    work(trainer, 3)
    trainer.hand_in()
    trainer.commit(base, None, counted=True)
    again, _ = a_trainer(a_manifest(MIXED))
    again.load(base)
    again.load_work(trainer.save_work())
    assert torch.equal(parameters(again), parameters(trainer))
    assert not torch.equal(parameters(again), base)


def test_mixing_and_a_local_residual() -> None:
    """Of the residual nothing is lost: the next contribution has all of it, beside the rest of the peer's own way."""
    trainer, _ = a_trainer(a_manifest(MIXED + '\nresidual = "local"\ncodec = "int4"'))
    base = parameters(trainer)
    work(trainer, 3)
    first = trainer.hand_in().contribution
    work(trainer, 1)
    residual = 0.01 * torch.linspace(-1, 1, len(base))
    sent, mean, moved = first - residual, 0.5 * first, parameters(trainer) - (base - first)
    trainer.commit(base - mean, residual, counted=True)
    second = trainer.hand_in().contribution
    torch.testing.assert_close(second, 0.75 * (sent - mean) + residual - moved, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rules", "mixing"),
    [
        ("", 0.5),
        ('codec = "int4"\nresidual = "local"', 0.5),
        ('codec = "int8"\nresidual = "feedback"', 1.0),
        ('codec = "sparse"\nresidual = "local"', 1.0),
        ('codec = "sparse"\noverlap_mixing = 1.0', 1.0),
        ('codec = "sparse"\nresidual = "local"\noverlap_mixing = 0.25', 0.25),
    ],
)
def test_how_far_a_late_mean_moves_a_peer(rules: str, mixing: float) -> None:
    assert a_manifest(UPDATES + f"{rules}\noverlap = 1\ninner_steps = 3").round.mixing == mixing


def test_a_contribution_stays_what_it_was_until_a_round_commits_it() -> None:
    trainer, _ = a_trainer(a_manifest(OVERLAP))
    work(trainer, 2)
    first = trainer.hand_in()
    work(trainer, 2)
    again = trainer.hand_in()
    assert torch.equal(first.contribution, again.contribution)
    assert (first.examples, first.inner_steps, first.loss) == (again.examples, again.inner_steps, again.loss)


def test_an_empty_contribution_is_made_again_from_what_was_done_meanwhile() -> None:
    trainer, _ = a_trainer(a_manifest(OVERLAP))
    assert trainer.hand_in().examples == 0  # work that was not finite was dropped
    assert not trainer.done
    work(trainer, 2)  # ahead; then the round came to nothing, for want of work
    work(trainer, 1)
    assert trainer.hand_in().examples == 3 * BATCH_SIZE
    assert trainer.done


def test_a_download_drops_all_of_it() -> None:
    trainer, _ = a_trainer(a_manifest(OVERLAP))
    base = parameters(trainer)
    work(trainer, 3)
    trainer.hand_in()
    work(trainer, 2)
    trainer.load(base)
    assert torch.equal(parameters(trainer), base)
    assert (trainer.examples, trainer.contributed, trainer.done) == (0, 0, False)


def test_without_overlap_local_work_starts_afresh_from_a_commit() -> None:
    trainer, _ = a_trainer(a_manifest(UPDATES + "inner_steps = 3"))
    work(trainer, 3)
    committed = trainer.hand_in().contribution
    trainer.commit(committed, None, counted=True)
    assert torch.equal(parameters(trainer), committed)
    assert trainer.examples == 0


def test_held_out_loss_is_of_the_committed_parameters() -> None:
    trainer, examples = a_trainer(a_manifest(OVERLAP))
    tokens = next(examples).tokens
    expected = trainer.validate([tokens])
    work(trainer, 2)
    ahead = parameters(trainer)
    assert trainer.validate([tokens]) == expected
    assert torch.equal(parameters(trainer), ahead)


def test_what_the_codec_left_out_joins_the_next_contribution_once() -> None:
    trainer, _ = a_trainer(a_manifest(FEEDBACK))
    base = parameters(trainer)
    work(trainer, 3)
    plain = trainer.hand_in().contribution
    residual = torch.linspace(-1, 1, len(base))
    trainer.commit(base, residual, counted=True)
    assert trainer.hand_in().examples == 0
    assert not trainer.hand_in().contribution.any(), "who did nothing brings nothing"
    work(trainer, 3)
    with_residual = trainer.hand_in().contribution
    torch.testing.assert_close(with_residual - (base - parameters(trainer)), 0.5 * residual, rtol=0, atol=1e-6)
    assert not torch.equal(plain, with_residual)

    trainer.commit(base, None, counted=False)  # it did not count
    work(trainer, 3)
    torch.testing.assert_close(
        trainer.hand_in().contribution - (base - parameters(trainer)), 0.5 * residual, rtol=0, atol=1e-6
    )
    trainer.commit(base, None, counted=True)  # it did, old residual and all, and nobody can tell what it lacked
    work(trainer, 3)
    assert torch.equal(trainer.hand_in().contribution, base - parameters(trainer))
    trainer.commit(base, residual, counted=True)
    trainer.load(base)  # we were away
    work(trainer, 3)
    assert torch.equal(trainer.hand_in().contribution, base - parameters(trainer))


def test_what_the_codec_left_out_stays_in_the_local_parameters() -> None:
    trainer, examples = a_trainer(a_manifest(LOCAL))
    base, tokens = parameters(trainer), next(examples).tokens
    loss = trainer.validate([tokens])
    work(trainer, 3)
    residual = 0.01 * torch.linspace(-1, 1, len(base))
    trainer.commit(base, residual, counted=True)
    torch.testing.assert_close(parameters(trainer), base - residual)
    assert trainer.examples == 0
    assert trainer.validate([tokens]) == loss, "the loss is that of the committed parameters"
    torch.testing.assert_close(trainer.hand_in().contribution, residual, rtol=0, atol=1e-6)

    trainer.commit(base + 1, None, counted=False)  # we had no examples, and it could not count
    torch.testing.assert_close(parameters(trainer), base + 1 - residual)
    work(trainer, 3)
    trainer.commit(base, None, counted=False)  # it was refused
    assert torch.equal(parameters(trainer), base)
    trainer.commit(base, residual, counted=True)
    trainer.load(base)  # we were away
    assert torch.equal(parameters(trainer), base)


def test_overlap_and_a_local_residual() -> None:
    trainer, base, _, moved = in_a_round(OVERLAP + '\nresidual = "local"')
    residual = 0.01 * torch.linspace(-1, 1, len(base))
    trainer.commit(base, residual, counted=True)
    torch.testing.assert_close(parameters(trainer), base - residual + moved)


@pytest.mark.parametrize(
    ("rules", "kept", "feedback"),
    [
        ("", "dropped", 0.0),
        ('codec = "sparse"', "feedback", 0.95),
        ('codec = "sparse"\nresidual = "local"', "local", 0.0),
        ('codec = "sparse"\nresidual = "feedback"', "feedback", 0.95),
        ('codec = "sparse"\nerror_feedback = 0.5', "feedback", 0.5),
        ('codec = "sparse"\nerror_feedback = 0.0', "dropped", 0.0),
        ('codec = "int4"\nresidual = "local"', "local", 0.0),
    ],
)
def test_what_becomes_of_a_residual(rules: str, kept: str, feedback: float) -> None:
    found = a_manifest(UPDATES + rules + "\ninner_steps = 3").round
    assert (found.kept, found.feedback) == (kept, feedback)
    assert a_manifest(GRADIENTS + 'codec = "sparse"\ninner_steps = 3').round.kept == "feedback"


@pytest.mark.parametrize(
    ("mode", "rules", "field"),
    [
        (UPDATES, 'residual = "local"\nerror_feedback = 0.5', "error_feedback"),
        (GRADIENTS, 'residual = "local"', "residual"),
        (UPDATES, "overlap_mixing = 0.5", "overlap_mixing"),
        (UPDATES, 'overlap = 1\ncodec = "sparse"\noverlap_mixing = 0.5', "overlap_mixing"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(mode: str, rules: str, field: str) -> None:
    with pytest.raises(ManifestError, match=f"round.{field}: "):
        a_manifest(mode + rules + "\ninner_steps = 3")


@pytest.mark.parametrize("text", [OVERLAP, FEEDBACK, LOCAL])
def test_work_that_was_saved_goes_on_bit_for_bit(text: str) -> None:
    manifest = a_manifest(text)
    whole, _ = a_trainer(manifest)
    base = parameters(whole)
    residual = torch.linspace(-1, 1, len(base))
    work(whole, 3)
    whole.hand_in()
    whole.commit(base, residual, counted=True)
    work(whole, 3)
    whole.hand_in()
    if manifest.round.overlap:
        work(whole, 1)
    saved = whole.save_work()
    again, examples = a_trainer(manifest)
    for _ in range(7 if manifest.round.overlap else 6):
        next(examples)
    again.load(base)
    again.load_work(saved)
    for trainer in (whole, again):
        trainer.hand_in()
        trainer.commit(base * 1.5, residual * 2, counted=True)
        work(trainer, 2)
    assert torch.equal(parameters(whole), parameters(again))
    one, other = whole.hand_in(), again.hand_in()
    assert torch.equal(one.contribution, other.contribution)
    assert (one.examples, one.inner_steps, one.loss) == (other.examples, other.inner_steps, other.loss)
    ours, theirs = whole.settled_work(), again.settled_work()
    assert ours.facts == theirs.facts
    assert ours.tensors.keys() == theirs.tensors.keys() == ({"residual"} if manifest.round.feedback else set())
    assert all(torch.equal(value, theirs.tensors[name]) for name, value in ours.tensors.items())


@pytest.mark.parametrize("name", ["residual", "handed"])
def test_vectors_that_do_not_fit_are_refused(name: str) -> None:
    trainer, _ = a_trainer(a_manifest(OVERLAP))
    work(trainer, 3)
    trainer.hand_in()
    saved = trainer.save_work()
    saved = type(saved)({**saved.tensors, name: torch.zeros(3)}, saved.facts)
    with pytest.raises(ValueError, match="a vector of"):
        trainer.load_work(saved)


def test_gradients_cannot_overlap() -> None:
    with pytest.raises(ManifestError, match="overlap"):
        a_manifest(GRADIENTS + "overlap = 1\ninner_steps = 3")
