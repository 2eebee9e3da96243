"""Files that are there whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes, replace: bool = True) -> None:
    """Writes ``data`` beside ``path`` and puts it there in one step; makes the folder.

    replace: whether a file that is there already gives way.

    Raises:
        FileExistsError: one is there and stays.
        OSError: the folder cannot be written; then nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)  # mkstemp's is for secrets
        if replace:
            Path(temporary).replace(path)
        else:
            os.link(temporary, path)  # a link never replaces what another process put there meanwhile
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
