"""A peer that trains on a GPU, beside one that trains on a CPU: whatever computed the values, the state is the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from swarm.errors import ExitCode
from tests.processes import START_SECONDS, House, Peer, manifest, write_corpus

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
    pytest.mark.timeout(300),
]

STEPS, MORE_STEPS = 6, 12
DEVICES = ("cuda", "cpu")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("cuda")) as house:
        write_corpus(house.folder / "corpus.txt")
        house.bootstrap("bootstrap")
        yield house


def train(house: House, prefix: str, run: str, until: int, devices: tuple[str, ...] = DEVICES) -> list[Peer]:
    """A peer for each device commits until this outer step and leaves."""
    flags = {f"{prefix}-{index}": ("--device", device) for index, device in enumerate(devices)}
    return house.train(flags, run, until, house.programs[0].maddrs)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("average", "rules"),
    [
        ("gradients", {}),
        ("updates", {"inner_steps": 20}),
        ("updates", {"inner_steps": 20, "overlap": 1, "codec": "sparse", "keep_one_in": 4, "residual": "local"}),
    ],
    ids=["gradients", "updates", "overlapped"],
)
def test_gpu_and_cpu_agree_and_go_on_from_their_checkpoints(
    house: House, request: pytest.FixtureRequest, average: str, rules: dict[str, object]
) -> None:
    run = manifest(house.folder / "corpus.txt", average, min_group_size=2, isolation_seconds=3600, **rules)
    name = request.node.callspec.id
    train(house, name, run, STEPS)
    on_gpu, on_cpu = train(house, name, run, MORE_STEPS)
    assert on_gpu.hear("peer started")["device"].startswith("cuda")
    assert on_cpu.hear("peer started")["device"] == "cpu"
    assert [event["outer_step"] for event in on_gpu.events("resume")] == [STEPS]
    assert sorted(on_gpu.digests) == list(range(1, MORE_STEPS + 1))
    assert on_gpu.digests == on_cpu.digests
    for commit in on_gpu.events("commit"):
        assert len(commit["participants"]) == 2
        assert all(commit["participants"].values())


def test_a_run_stopped_on_a_gpu_equals_one_never_stopped(house: House) -> None:
    """Its random numbers, its optimizer's state and its place in the data come back to the GPU."""
    run = manifest(house.folder / "corpus.txt", inner_steps=5, min_group_size=1, isolation_seconds=3600)
    (never,) = train(house, "never", run, MORE_STEPS, ("cuda",))
    train(house, "stopped", run, STEPS, ("cuda",))
    (stopped,) = train(house, "stopped", run, MORE_STEPS, ("cuda",))
    assert sorted(never.digests) == list(range(1, MORE_STEPS + 1))
    assert stopped.digests == never.digests


def test_a_gpu_that_is_not_there(house: House, tmp_path: Path) -> None:
    index = torch.cuda.device_count()
    peer = house.peer("missing", manifest(house.folder / "corpus.txt"), "--device", f"cuda:{index}")
    assert peer.wait(START_SECONDS) == ExitCode.DEVICE
    assert f"--device cuda:{index}" in peer.words
    assert "Traceback" not in peer.words
