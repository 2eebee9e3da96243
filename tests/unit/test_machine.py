"""What a machine has left, and whether a run fits into it."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from peer.machine import check_disk, check_memory, disk_bytes, free_device_memory, free_disk, free_memory
from peer.needs import Memory, checkpoint_bytes, in_units, memory
from swarm.errors import ExitCode, OutOfMemoryError, StateError
from swarm.manifest import Manifest

ROOT = Path(__file__).parents[2]
NEED = Memory(parameters=100, gradients=100, inner_optimizer=200, outer_optimizer=50, committed=100, round=450)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """This process is in a group of version 2 as a container sees it."""
    path = tmp_path / "ours"
    path.write_text("0::/\n")
    return path


def test_without_limits_the_machine_decides(tmp_path: Path, ours: Path) -> None:
    group(tmp_path / "cgroup", memory__max="max", memory__current="1000")
    free = free_memory(tmp_path / "cgroup", ours)
    assert abs(free - psutil.virtual_memory().available) < 1 << 30
    assert free_memory(tmp_path / "nothing", tmp_path / "nothing either") > 0


def test_a_container_of_version_2_limits(tmp_path: Path, ours: Path) -> None:
    group(
        tmp_path / "cgroup", memory__max="10000", memory__current="7000", memory__stat="anon 5000\ninactive_file 1500"
    )
    assert free_memory(tmp_path / "cgroup", ours) == 10000 - 7000 + 1500


def test_every_group_above_us_counts(tmp_path: Path, ours: Path) -> None:
    ours.write_text("0::/system.slice/waggle.service\n")
    group(tmp_path / "cgroup" / "system.slice" / "waggle.service", memory__max="9000", memory__current="1000")
    group(tmp_path / "cgroup" / "system.slice", memory__max="9000", memory__current="4000")
    assert free_memory(tmp_path / "cgroup", ours) == 5000


@pytest.mark.parametrize("name", ["/docker/0123abc", "/"])
def test_version_1_limits_whatever_the_host_calls_it(tmp_path: Path, ours: Path, name: str) -> None:
    ours.write_text(f"5:cpu,cpuacct:{name}\n4:memory:{name}\n0::/\n")
    group(
        tmp_path / "cgroup" / "memory", memory__limit_in_bytes="8000", memory__usage_in_bytes="9000",
        memory__stat="total_inactive_file 500",
    )  # fmt: skip
    assert free_memory(tmp_path / "cgroup", ours) == 0


def test_what_cannot_fit_is_refused_with_numbers() -> None:
    check_memory(NEED, free=1000, free_on_device=None)
    with pytest.raises(OutOfMemoryError) as refused:
        check_memory(NEED, free=999, free_on_device=None)
    assert str(refused.value).startswith("memory: this run needs 1 kB, and 999 bytes are free; close other programs")
    assert refused.value.exit_code is ExitCode.MEMORY


def test_a_gpu_takes_its_part() -> None:
    check_memory(NEED, free=600, free_on_device=400)
    with pytest.raises(OutOfMemoryError, match="memory: this run needs 600 bytes"):
        check_memory(NEED, free=599, free_on_device=400)
    with pytest.raises(OutOfMemoryError, match="device: this run needs 400 bytes of its memory, and 399 bytes"):
        check_memory(NEED, free=600, free_on_device=399)
    assert free_device_memory(torch.device("cpu")) is None


def test_a_full_disk_is_refused_with_numbers(tmp_path: Path) -> None:
    check_disk(tmp_path, 100, 100)
    with pytest.raises(StateError) as refused:
        check_disk(tmp_path, 2_000_000, 1000)
    assert str(refused.value) == (
        f"data_dir {tmp_path}: checkpoints need 2 MB, and 1 kB are free; free some space or choose another --data-dir"
    )
    assert free_disk(tmp_path) > 0


def test_a_checkpoint_has_two_models_and_the_state_of_both_optimizers() -> None:
    demo = Manifest.load(ROOT / "runs" / "demo.toml")
    need = memory(demo, 1000)
    assert checkpoint_bytes(demo, 1000) == 2 * 4000 + need.outer_optimizer + need.inner_optimizer
    assert disk_bytes(demo, 1000, 2) == 3 * checkpoint_bytes(demo, 1000)


@pytest.mark.parametrize(
    "count, text", [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2 * 10**9, "2 GB"), (5 * 10**12, "5,000 GB")]
)
def test_bytes_in_units(count: int, text: str) -> None:
    assert in_units(count) == text
