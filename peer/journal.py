"""The peer's own log of what was committed: one JSON line per event, for whoever audits or draws a run."""

from __future__ import annotations

import contextlib
import json
import math
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
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise StateError(
                f"data_dir {folder}: cannot be written ({error.strerror}); choose another --data-dir"
            ) from error

    def write(self, event: str, **fields: Any) -> None:
        """One event, flushed. A float that is not finite becomes null. Raises StateError: the disk is full."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in fields.items()
        }
        line = {"event": event, "time": round(time.time(), 3), "run_id": self._run_id, **values}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            reason = f"{self.path}: cannot be written ({error.strerror}); free some space or change --data-dir"
            raise StateError(reason) from error

    def close(self) -> None:
        """Closes the file."""
        with contextlib.suppress(OSError):  # a line that could not be written, and ``write`` has said so
            self._file.close()
