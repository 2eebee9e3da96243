"""The introduction: a settings file for `waggle peer --config`, written by the bootstrap that peers share a disk with.

A bootstrap's peer id is made at its first start, so nobody can know it beforehand. Containers that are started
together share a folder instead, and nobody has to copy an address.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from swarm.errors import StateError
from swarm.files import write_whole


def write_introduction(path: Path, maddrs: Sequence[str]) -> None:
    """Writes ``maddrs`` as ``initial_peers`` in TOML, readable by all; whoever reads sees the old file or the new.

    Raises:
        StateError: the file cannot be written.
    """
    # Multiaddrs are ASCII without quotes, so JSON's strings are TOML's.
    text = f"# Written by waggle bootstrap, for waggle peer --config.\ninitial_peers = {json.dumps(list(maddrs))}\n"

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)

    try:
        write_whole(path, write)
    except OSError as error:
        raise StateError(
            f"introduction {path}: cannot be written ({error.strerror}); choose another place with --introduction"
        ) from error
