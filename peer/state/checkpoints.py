"""The checkpoints of one run in the data directory: written while training goes on, found again at the next start."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import structlog
from pydantic import ValidationError

from peer.layout import Layout
from peer.state.files import Checkpoint, load_checkpoint, save_checkpoint
from swarm.errors import StateError
from swarm.files import WRITING, write_bytes
from swarm.history import Ballot

log = structlog.get_logger(__name__)

SET_ASIDE = ".set-aside"
_NAME = re.compile(r"step-([0-9]{1,16})\.safetensors")
_PROMISE = "promise.json"
_MANIFEST = "manifest.json"


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first."""
    found = [(int(match[1]), path) for path in folder.glob("step-*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def run_folder(data_dir: Path, run_id: str) -> Path:
    """Where the checkpoints of a run are."""
    return data_dir / "checkpoints" / run_id


class Checkpoints:
    """Belongs to the main thread, except that one thread of its own writes.

    keep: how many to keep, the newest.
    """

    def __init__(self, folder: Path, run_id: str, layout: Layout, slot_names: Sequence[str], keep: int):
        self.folder = folder
        self._run_id, self._layout, self._slot_names, self._keep = run_id, layout, slot_names, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    # -- at the start ----------------------------------------------------------------------------------------

    def open(self, manifest: bytes) -> None:
        """Makes the folder, with the manifest in canonical form, and clears what was never finished.

        Raises:
            StateError: it cannot be written.
        """
        try:
            write_bytes(self.folder / _MANIFEST, manifest)
            for unfinished in self.folder.glob(f"*{WRITING}"):
                unfinished.unlink()
        except OSError as error:
            raise StateError(
                f"{self.folder}: cannot be written ({error.strerror}); free some space or choose another --data-dir"
            ) from error

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be believed. One that cannot is set aside, never deleted."""
        for path in checkpoint_files(self.folder):
            try:
                return load_checkpoint(path, self._run_id, self._layout, self._slot_names)
            except StateError as error:
                self.set_aside(path, str(error))
        return None

    def set_aside(self, path: Path, why: str) -> None:
        """Takes a checkpoint out of the way under another name, and says why."""
        aside = next(one for one in _asides(path) if not one.exists())
        path.rename(aside)
        log.warning("a checkpoint is set aside", file=aside.name, why=why)

    # -- while training --------------------------------------------------------------------------------------

    def begin(self, checkpoint: Checkpoint) -> Future[Path] | None:
        """Writes in the background; None, and nothing is written, while the last one is still being written.

        Raises:
            StateError: the last one could not be written.
        """
        if self._writing is not None:
            if not self._writing.done():
                return None
            self._writing.result()
        self._writing = self._writer.submit(self.write, checkpoint)
        return self._writing

    def write(self, checkpoint: Checkpoint) -> Path:
        """Writes and removes what is too many. Raises StateError."""
        path = self.folder / f"step-{checkpoint.state.outer_step:010d}.safetensors"
        save_checkpoint(path, self._run_id, self._layout, checkpoint)
        for old in checkpoint_files(self.folder)[self._keep :]:
            with contextlib.suppress(OSError):  # one too many does no harm
                old.unlink()
        return path

    def finish(self, checkpoint: Checkpoint | None) -> Path | None:
        """Waits for what is being written, then writes ``checkpoint``. Raises StateError."""
        self._writer.shutdown(wait=True)
        if self._writing is not None and checkpoint is None:
            self._writing.result()
        return None if checkpoint is None else self.write(checkpoint)

    # -- what we promised ------------------------------------------------------------------------------------

    def remember(self, digest: str, promised: Ballot | None) -> None:
        """Notes, on leaving in order, that this peer voted for nothing after ``digest``, and what it promised.

        Raises:
            StateError: it cannot be written.
        """
        note = {"digest": digest, "promised": None if promised is None else promised.model_dump()}
        try:
            write_bytes(self.folder / _PROMISE, json.dumps(note).encode())
        except OSError as error:
            raise StateError(f"{self.folder / _PROMISE}: cannot be written ({error.strerror})") from error

    def recall(self, digest: str) -> tuple[bool, Ballot | None]:
        """Whether this peer knows all that it promised at ``digest``, and the ballot. Asked once: the note is removed.

        A note that outlived a vote would let this peer break its word.
        """
        path = self.folder / _PROMISE
        try:
            note = json.loads(path.read_bytes())
            path.unlink()
            promised = None if note["promised"] is None else Ballot.model_validate(note["promised"])
        except (OSError, ValueError, KeyError, TypeError, ValidationError):
            with contextlib.suppress(OSError):
                path.unlink()
            return False, None
        return (True, promised) if note["digest"] == digest else (False, None)


def _asides(path: Path) -> Iterator[Path]:
    yield path.with_name(path.name + SET_ASIDE)
    number = 1
    while True:
        yield path.with_name(f"{path.name}{SET_ASIDE}-{number}")
        number += 1
