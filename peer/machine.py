"""What this machine has left, under every limit it is given, and whether a run fits."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from peer.needs import Memory, checkpoint_bytes, in_units, memory
from swarm.errors import OutOfMemoryError, StateError
from swarm.manifest import Manifest

_CGROUPS = Path("/sys/fs/cgroup")
_OURS = Path("/proc/self/cgroup")


def free_memory(cgroups: Path = _CGROUPS, ours: Path = _OURS) -> int:
    """Bytes that a process may still take: the machine's, or less where a control group (a container) limits it.

    cgroups: where they are mounted. ours: which ones this process is in (cgroups(7)).
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups(cgroups, ours)])


def free_device_memory(device: torch.device) -> int | None:
    """Bytes left on the device that trains; None where that is the machine's own memory."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return int(free)


def free_disk(folder: Path) -> int:
    """Bytes that we may still write into ``folder``."""
    return shutil.disk_usage(folder).free


def check_memory(need: Memory, free: int, free_on_device: int | None) -> None:
    """Refuses what cannot fit: activations, data and the program itself come on top of ``need``.

    free, free_on_device: bytes, as ``free_memory`` and ``free_device_memory`` tell. Raises OutOfMemoryError.
    """
    here = need.total if free_on_device is None else need.swarm
    advice = "close other programs, raise the container's limit, or take part in a run with a smaller model"
    if here > free:
        raise OutOfMemoryError(f"memory: this run needs {in_units(here)}, and {in_units(free)} are free; {advice}")
    if free_on_device is not None and need.training > free_on_device:
        raise OutOfMemoryError(
            f"device: this run needs {in_units(need.training)} of its memory, and {in_units(free_on_device)} are free; "
            "close other programs that use it, or choose --device cpu"
        )


def check_disk(folder: Path, need: int, free: int) -> None:
    """Refuses a folder without room for ``need`` bytes of checkpoints. Raises StateError."""
    if need > free:
        raise StateError(
            f"data_dir {folder}: checkpoints need {in_units(need)}, and {in_units(free)} are free; "
            "free some space or choose another --data-dir"
        )


def disk_bytes(manifest: Manifest, parameters: int, kept: int) -> int:
    """What the checkpoints take: ``kept`` of them, and the next while it is written."""
    return (kept + 1) * checkpoint_bytes(manifest, parameters)


def check_machine(manifest: Manifest, parameters: int, folder: Path, kept: int, device: torch.device) -> None:
    """Refuses a run whose model, of so many parameters, or whose checkpoints cannot fit here.

    kept: how many checkpoints. Raises OutOfMemoryError, StateError.
    """
    check_memory(memory(manifest, parameters), free_memory(), free_device_memory(device))
    check_disk(folder, disk_bytes(manifest, parameters, kept), free_disk(folder))


def _left_in_groups(cgroups: Path, ours: Path) -> Iterator[int]:
    """Bytes left in each group above us that has a limit, whether it is version 1 or 2.

    Pages of files that the kernel would give up first count as left.
    """
    for line in _lines(ours):
        _, controllers, name = line.split(":", 2)
        if controllers == "":
            root, files = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the name may be the host's, and what is mounted is our own group.
        inside = root / name.lstrip("/")
        for group in (inside, *inside.parents) if inside.is_dir() else (root,):
            if not group.is_relative_to(root):
                break
            yield from _left(group, *files)


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    most, used = _number(group / limit), _number(group / usage)
    if most is None or used is None:
        return
    pages = dict(line.split(" ", 1) for line in _lines(group / "memory.stat") if " " in line)
    yield max(0, most - used + int(pages.get(reclaimable, "0")))


def _number(path: Path) -> int | None:
    """The number in a file; None where there is none ("max": no limit)."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:  # not this version of control groups, or none at all
        return []
