"""The simulator of bench/frontier.py does what real peers do, and counts what they send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.frontier_arms import BASE, CODECS_TRIED, CONFIRMED, FAMILIES, Arm, plain
from bench.frontier_page import draw_frontier, frontier_section, points
from bench.frontier_swarm import PEERS, Exchange, Swarm, read_examples
from bench.frontier_training import StackedAdamW, stacked_gradients
from peer.data import open_stream
from peer.layout import read_parameters
from peer.optimizers import outer_optimizer
from peer.rounds.codec import SparseCodec
from peer.rounds.gates import square_norm
from peer.tasks import TASKS, build_model
from peer.training import Trainer
from swarm.manifest import Manifest
from swarm.optimizer import Optimizer

FP32_BYTES = 6.0  # of each value, by each of four peers: 3/4 to the others' parts, and its own part to three


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of the bench with data that every machine has, and a smaller model."""
    text = BASE.read_text(encoding="utf-8")
    changes = {
        'source = "text"\npaths = ["build/frontier.jsonl"]': 'source = "stdlib"',
        "hidden_size = 64": "hidden_size = 16",
        "intermediate_size = 176": "intermediate_size = 32",
        "num_hidden_layers = 2": "num_hidden_layers = 1",
        "examples = 256": "examples = 8",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("frontier") / "base.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_stacked_adamw_is_that_of_torch() -> None:
    settings = Optimizer(optimizer="adamw", learning_rate=0.01, weight_decay=0.1, clip_norm=1.0)
    torch.manual_seed(0)
    stacked = torch.randn(3, 50)
    single = [torch.nn.Parameter(one.clone()) for one in stacked]
    theirs = [torch.optim.AdamW([one], 0.01, settings.betas, settings.eps, 0.1) for one in single]
    ours = StackedAdamW(settings, stacked.shape)
    for step in range(30):
        gradients = torch.randn(3, 50) * 10.0 ** (step % 3 - 2)  # clipped and not
        for one, optimizer, gradient in zip(single, theirs, gradients, strict=True):
            one.grad = gradient.clone()
            torch.nn.utils.clip_grad_norm_([one], 1.0)
            optimizer.step()
        ours.step(stacked, gradients)
    torch.testing.assert_close(stacked, torch.stack([one.detach() for one in single]))


def work(trainer: Trainer) -> None:
    while not trainer.full:
        trainer.inner_step()


def by_hand(arm: Arm, manifest: Manifest, outer_steps: int) -> torch.Tensor:
    """What real trainers commit."""
    models = [build_model(manifest) for _ in range(PEERS)]
    loss, cpu = TASKS[manifest.task].loss, torch.device("cpu")
    streams = [open_stream(manifest, "", data_shard=f"{index}/{PEERS}") for index in range(PEERS)]
    trainers = [
        Trainer(manifest, model, loss, stream, cpu) for model, stream in zip(models, streams, strict=True)
    ]  # fmt: skip
    committed, outer = read_parameters(models[0]), outer_optimizer(manifest.outer)
    slots = {name: torch.zeros_like(committed) for name in outer.slots}
    exchange = Exchange(arm, committed.numel())
    for step in range(outer_steps):
        for trainer in trainers:
            work(trainer)
        mean = exchange.mean(torch.stack([trainer.hand_in().contribution for trainer in trainers]))
        committed, slots = outer.step(committed, slots, mean, square_norm(mean), step)
        for trainer, left_out in zip(trainers, exchange.left_out, strict=True):
            if arm.overlap:
                work(trainer)
            trainer.commit(committed, left_out if arm.keep else None, counted=True)
    return committed


@pytest.mark.parametrize(
    "arm",
    [
        Arm("updates", 2, momentum=0.5, outer_rate=0.7),
        Arm("gradients", 2),
        Arm("updates", 2, overlap=True),
        Arm("updates", 2, codec="int4", keep=True),
        Arm("updates", 2, codec="int4", keep=True, overlap=True),
        Arm("updates", 2, muon=True),
    ],
)
def test_the_swarm_commits_what_real_trainers_commit(base: Path, arm: Arm) -> None:
    manifest = arm.manifest(0, base)
    steps = 6 if arm.overlap else 4
    swarm = Swarm(arm, manifest, stacked_gradients(manifest, compiled=False), read_examples(manifest, 6))
    swarm.advance(steps)
    assert swarm.outer_steps == 2
    expected = by_hand(arm, manifest, 2)
    if arm.codec == "fp32":
        torch.testing.assert_close(swarm.committed, expected, rtol=1e-4, atol=1e-5)
        tokens, rounds = steps * 8 * 64, steps // 2
        assert swarm.bytes_per_token == pytest.approx(rounds * FP32_BYTES * swarm.committed.numel() / tokens)
    else:  # a last bit may make a value round the other way
        assert (swarm.committed - expected).norm() < 1e-3 * (expected - read_parameters(build_model(manifest))).norm()


@pytest.mark.parametrize(
    "arm",
    [
        Arm("updates", 2, codec="int4", feedback=0.5, momentum=0.5, overlap=True),
        Arm("updates", 1, codec="sparse/4", keep=True),
        Arm("updates", 2, muon=True),
        Arm("gradients", 2, codec="sparse", feedback=0.95),
    ],
)
def test_a_saved_swarm_goes_on_as_if_nothing_had_been(base: Path, tmp_path: Path, arm: Arm) -> None:
    manifest = arm.manifest(0, base)
    gradients, examples = stacked_gradients(manifest, compiled=False), read_examples(manifest, 9)
    whole, first, second = (Swarm(arm, manifest, gradients, examples) for _ in range(3))
    whole.advance(9)
    first.advance(5)
    first.save(tmp_path / "state")
    second.load(tmp_path / "state")
    second.advance(9)
    assert torch.equal(second.committed, whole.committed)
    assert second.loss() == whole.loss()
    assert second.bytes_per_token == whole.bytes_per_token


def test_what_is_kept_is_what_the_next_contribution_begins_with(base: Path) -> None:
    arm = Arm("updates", 1, codec="sparse/4", keep=True)
    manifest = arm.manifest(0, base)
    swarm = Swarm(arm, manifest, stacked_gradients(manifest, compiled=False), read_examples(manifest, 3))
    swarm.advance(3)
    left_out = swarm.committed - swarm.local
    assert left_out.count_nonzero() > 0.5 * left_out.numel()


def test_an_overlapped_mean_arrives_one_round_late(base: Path) -> None:
    arm = Arm("updates", 2, overlap=True)
    manifest = arm.manifest(0, base)
    swarm = Swarm(arm, manifest, stacked_gradients(manifest, compiled=False), read_examples(manifest, 6))
    first = swarm.committed.clone()
    swarm.advance(2)
    assert torch.equal(swarm.committed, first)
    handed_in = swarm.local.clone()
    swarm.advance(3)
    before = swarm.local.clone()
    swarm.advance(4)  # the mean of what was handed in at 2
    torch.testing.assert_close(swarm.committed, handed_in.mean(dim=0))
    assert swarm.loss() > 0
    assert not torch.equal(swarm.local, before)
    # Where they differ from the committed state is the work since the hand-in.
    torch.testing.assert_close(
        (swarm.committed - swarm.local).mean(dim=0), handed_in.mean(dim=0) - swarm.local.mean(dim=0)
    )


@pytest.mark.parametrize(("codec", "times"), [("int8", 3.9), ("int4", 7.8), ("sparse", 100.0)])
def test_bytes_are_as_many_times_fewer_as_promised(codec: str, times: float) -> None:
    exchange = Exchange(Arm("updates", codec=codec), 117_120)
    exchange.mean(torch.randn(PEERS, 117_120, generator=torch.manual_seed(0)))
    assert FP32_BYTES * 117_120 / (sum(exchange.sent_bytes) / PEERS) > times


@pytest.mark.parametrize("codec", ["int4", "sparse", "sparse/16"])
def test_error_feedback_loses_nothing(codec: str) -> None:
    """With a share of 1 of what was left out, means differ from the true ones by what is still left out."""
    torch.manual_seed(0)
    exchange, sent, true = Exchange(Arm("updates", codec=codec, feedback=1.0), 9000), torch.zeros(9000), 0.0
    for _ in range(5):
        contributions = torch.randn(PEERS, 9000)
        true = true + contributions.mean(dim=0)
        sent += exchange.mean(contributions)
    torch.testing.assert_close(sent + exchange.left_out.mean(dim=0), true, rtol=1e-4, atol=1e-4)


def test_gathered_contributions_have_the_mean_of_what_each_decodes_to() -> None:
    torch.manual_seed(0)
    contributions = torch.randn(PEERS, 3 * 65536)
    arm = Arm("updates", codec="int8", feedback=0.95, gathered=True)
    exchange, (codec, _) = Exchange(arm, contributions.shape[1]), arm.codecs()
    mean = exchange.mean(contributions)
    decoded = contributions - exchange.left_out
    assert torch.equal(mean, (decoded.double().sum(dim=0) / PEERS).float())
    assert not torch.equal(mean, contributions.double().mean(dim=0).float())
    whole = codec.max_bytes(contributions.shape[1])
    assert exchange.sent_bytes == pytest.approx([whole * (PEERS - 1)] * PEERS, rel=1e-3)


def test_sparse_of_other_densities_costs_what_it_says() -> None:
    for low_bits, bits in ((2, 6), (3, 7), (4, 8), (5, 9), (6, 10)):
        assert SparseCodec(low_bits).max_bytes(4096) == 4 + (4096 >> low_bits) * bits / 8


def test_every_arm_is_a_manifest() -> None:
    for family in FAMILIES.values():
        for arm in family.grid:
            assert {arm.codec, arm.mean_codec or arm.codec} <= set(CODECS_TRIED)
            assert arm.manifest(1).seed == 1


@pytest.mark.parametrize("name", CONFIRMED)
def test_manifests_of_confirmed_cells_are_those_of_their_arms(name: str) -> None:
    text = BASE.with_name(name).read_text(encoding="utf-8")
    assert text == FAMILIES[CONFIRMED[name]].grid[0].toml(0), "make them again: python -m bench.frontier_arms"


def made_up(family: str, seed: int, loss: float, sent: float, *, index: int = 0) -> dict[str, Any]:
    arm = plain(FAMILIES[family].grid[index])
    return {"arm": arm, "seed": seed, "losses": {"900": loss + 0.2, "2700": loss}, "bytes_per_token": sent}


def test_the_page_tells_the_best_of_each_grid_and_whether_targets_were_reached(tmp_path: Path) -> None:
    runs = [made_up("whole batch", seed, 1.3 + seed / 100, 1372.5) for seed in range(2)]
    runs += [made_up("updates 1 sparse/32 local", seed, (1.3 + seed / 100) * 1.02, 12.5) for seed in range(2)]
    runs += [made_up("DiLoCo 30", 0, 1.5, 45.75)]
    grids = ("whole batch", "updates 1 sparse/32 local", "DiLoCo 30")
    runs += [made_up(family, 0, 9.0, 12.5, index=index) for family in grids for index in (1, 2)]
    runs += [made_up("DiLoCo 100", 0, 1.0, 13.7), made_up("DiLoCo 100", 0, 1.0, 13.7, index=2)]  # of three rates
    runs += [made_up("updates 2 sparse local", 0, 1.95, 3.5)]
    results = {"runs": runs, "machine": "a machine"}
    found = {point.family.name: point for point in points(results, 2700)}
    ours = found["updates 1 sparse/32 local"]
    assert set(found) == set(grids), "only what had the same effort"
    assert (ours.seeds, round(ours.above, 6), ours.fewer, ours.rate) == (2, 0.02, pytest.approx(109.8), 0.003)
    page = frontier_section(results)
    assert "| 10x | +1% | +2.0% | no | updates 1 sparse/32 local (2 seeds) | DiLoCo 30: +15.4% (1 seed) |" in page
    assert "| 100x | +5% | +2.0% | yes | updates 1 sparse/32 local (2 seeds) |  |" in page
    assert "\n| updates 2 sparse local | 3.5 | 392x | 2.150 | +43.3% | 1.950 | +50.0% |\n" in page
    draw_frontier(results, tmp_path / "chart.png")
    assert (tmp_path / "chart.png").read_bytes().startswith(b"\x89PNG")
