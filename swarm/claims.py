"""A folder or key file for one process at a time: whoever comes second is refused at once.

The kernel keeps the claim (flock(2)) and drops it when the process ends, however it ends, so nothing stale is left
behind by SIGKILL. It is on the file itself: no lock file is written, and a key on a read-only mount can be claimed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from pathlib import Path

import structlog

from swarm.errors import IdentityError, StateError

log = structlog.get_logger(__name__)

_HELD = (errno.EWOULDBLOCK, errno.EACCES)
_LOCKS = Path("/proc/locks")


class Claim:
    """Holds what was claimed until it is released or the process ends."""

    def __init__(self, handle: int | None):
        self._handle = handle

    def release(self) -> None:
        """Lets others have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


class _HeldError(Exception):
    """Somebody else has it. who: words for a message."""

    def __init__(self, who: str):
        super().__init__(who)
        self.who = who


def claim_folder(folder: Path) -> Claim:
    """Makes a data directory if need be, and claims it.

    Raises StateError: it cannot be written, or another process has it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        can_write(folder)
        return _claim(folder)
    except _HeldError as held:
        raise StateError(
            f"data_dir {folder}: in use by {held.who}; stop that peer, or give this one its own --data-dir"
        ) from None
    except OSError as error:
        raise _unwritable(folder, error) from error


def can_write(folder: Path) -> Path:
    """Asks the disk itself, and leaves nothing. A folder that is not there has to have a parent that can be written.

    Returns the folder that was written into. Raises StateError.
    """
    where = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"bee")
    except OSError as error:
        raise _unwritable(folder, error) from error
    return where


def _unwritable(folder: Path, error: OSError) -> StateError:
    why = os.strerror(errno.EEXIST) if error.errno == errno.ENOTDIR else error.strerror
    return StateError(f"data_dir {folder}: cannot be written ({why}); mend that, or choose another --data-dir")


def claim_identity(path: Path) -> Claim:
    """Claims a key file that exists. Raises IdentityError: another process lives with it."""
    try:
        return _claim(path)
    except _HeldError as held:
        raise IdentityError(
            f"identity {path}: in use by {held.who}; stop that one, or give this one its own --identity"
        ) from None
    except OSError as error:
        raise IdentityError(f"identity {path}: cannot be read ({error.strerror}); fix its permissions") from error


def holder(path: Path) -> str:
    """Who has claimed a folder or file, as words; empty when nobody has. Raises OSError: it cannot be opened."""
    try:
        _claim(path).release()
    except _HeldError as held:
        return held.who
    return ""


def _claim(path: Path) -> Claim:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = _who(os.fstat(handle).st_ino)
        os.close(handle)
        if error.errno in _HELD:
            raise _HeldError(who) from None
        # A network or shared folder without locks: no reason to keep anybody from training.
        log.warning("this file system has no locks; see that no second peer uses it", path=str(path))
        return Claim(None)
    return Claim(handle)


def _who(inode: int) -> str:
    """From /proc/locks (proc(5)): "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END".

    The device is not compared: overlay file systems show another one there than stat(2) does.
    """
    with contextlib.suppress(OSError):
        for line in _LOCKS.read_text(encoding="ascii").splitlines():
            fields = line.split()
            if len(fields) == 8 and fields[1] == "FLOCK" and fields[5].endswith(f":{inode}") and int(fields[4]) > 0:
                return f"process {fields[4]}"
    return "another process"
