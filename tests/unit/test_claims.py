"""Claims: one process at a time, across processes, gone with whoever held them, and nothing is written."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from swarm.claims import claim_folder, claim_identity, holder
from swarm.errors import IdentityError, StateError

HOLD = """
import sys
from pathlib import Path
from swarm import claims
claim = getattr(claims, sys.argv[1])(Path(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(what: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has claimed ``path``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, what, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_folder_is_for_one_process(tmp_path: Path) -> None:
    with held("claim_folder", tmp_path) as other:
        with pytest.raises(StateError) as refused:
            claim_folder(tmp_path)
        assert str(refused.value) == (
            f"data_dir {tmp_path}: in use by process {other.pid}; stop that peer, or give this one its own --data-dir"
        )
        assert holder(tmp_path) == f"process {other.pid}"
    assert list(tmp_path.iterdir()) == []


def test_a_key_is_for_one_process(tmp_path: Path) -> None:
    key = tmp_path / "identity.key"
    key.write_bytes(b"key")
    key.chmod(0o400)
    with held("claim_identity", key) as other, pytest.raises(IdentityError, match=f"in use by process {other.pid};"):
        claim_identity(key)
    assert [key] == list(tmp_path.iterdir())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_claim_ends_with_its_process(tmp_path: Path, signum: signal.Signals) -> None:
    with held("claim_folder", tmp_path) as other:
        other.send_signal(signum)
        other.wait(10)
        claim_folder(tmp_path).release()


def test_a_released_claim_is_free(tmp_path: Path) -> None:
    claim = claim_folder(tmp_path / "new" / "folder")
    assert holder(tmp_path / "new" / "folder")
    claim.release()
    claim.release()
    assert holder(tmp_path / "new" / "folder") == ""


def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path: Path) -> None:
    taken = tmp_path / "data"
    taken.write_text("mine", encoding="utf-8")
    with pytest.raises(StateError, match=r"data_dir .*data: cannot be written \(File exists\); mend that, or"):
        claim_folder(taken)
    assert taken.read_text(encoding="utf-8") == "mine"
