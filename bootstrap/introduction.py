"""The introduction: a settings file for `waggle peer --config`, written by the bootstrap that peers share a disk with.

A bootstrap's peer id is made at its first start, so nobody can know it beforehand. Containers that are started
together share a folder instead, and nobody has to copy an address.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from swarm.errors import StateError


def write_introduction(path: Path, maddrs: Sequence[str]) -> None:
    """Writes ``maddrs`` as ``initial_peers`` in TOML, readable by all; whoever reads sees the old file or the new.

    Raises:
        StateError: the file cannot be written.
    """
    # Multiaddrs are ASCII without quotes, so JSON's strings are TOML's.
    text = f"# Written by waggle bootstrap, for waggle peer --config.\ninitial_peers = {json.dumps(list(maddrs))}\n"
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise StateError(
            f"introduction {path}: cannot be written ({error.strerror}); choose another place with --introduction"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)  # it is gone unless something failed
