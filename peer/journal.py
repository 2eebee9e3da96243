"""The peer's own log of what was committed: one JSON line per event, for whoever audits or draws a run."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import time
from pathlib import Path
from typing import Any

from swarm.errors import StateError


class Journal:
    """Appends to ``journal.jsonl`` in the data directory. Events: commit, download, validation, stop."""

    def __init__(self, folder: Path, run_id: str):
        self.path = folder / "journal.jsonl"
        self._run_id = run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise StateError(
                f"data_dir {folder}: cannot be written ({error.strerror}); choose another --data-dir"
            ) from error

    def write(self, event: str, **fields: Any) -> None:
        """One event, whole or not at all. A float that is not finite becomes null. Raises StateError: a full disk."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        event_line = {"event": event, "time": round(time.time(), 3), "run_id": self._run_id, **values}
        line = json.dumps(event_line).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                self._file.truncate(end)
            reason = f"{self.path}: cannot be written ({error.strerror}); free some space or change --data-dir"
            raise StateError(reason) from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
