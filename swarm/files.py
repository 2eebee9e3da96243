"""Files that are there whole or not at all, whenever the power goes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

WRITING = ".writing"
"""How the name of a file ends that was never finished."""


def write_whole(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """``write`` makes a file beside ``path``, which then takes its place in one step. Makes the folder.

    replace: whether a file that is there already gives way.

    Raises:
        FileExistsError: one is there and stays.
        OSError: it cannot be written; or what ``write`` raises. What was at ``path`` stays, nothing half-written does.
    """
    temporary = path.with_name(path.name + WRITING)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)  # a link never replaces what another process put there meanwhile
            temporary.unlink()
        _settle(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first failure is the one to tell
            temporary.unlink()
        raise


def write_bytes(path: Path, data: bytes, *, replace: bool = True) -> None:
    """``write_whole`` for data that is at hand."""
    write_whole(path, lambda temporary: temporary.write_bytes(data), replace=replace)


def _settle(folder: Path) -> None:
    """A new name is on disk only when its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
