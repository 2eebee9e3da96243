"""The folder of a run's checkpoints: the newest that can be believed, so many kept, and what was promised."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from peer.layout import Layout, named_state
from peer.state.checkpoints import Checkpoints, checkpoint_files, run_folder
from peer.state.files import Checkpoint
from swarm.errors import StateError
from swarm.files import write_bytes, write_whole
from swarm.history import Ballot
from tests.chain import PEERS, RUN_ID, a_chain

LAYOUT = Layout((("weight", (8,)),))
BALLOT = Ballot(number=3, leader=PEERS[1])


def at(outer_step: int) -> Checkpoint:
    return Checkpoint(named_state(LAYOUT, outer_step, torch.full((8,), float(outer_step)), {}), a_chain({0: 1}))


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(run_folder(tmp_path, RUN_ID), RUN_ID, LAYOUT, (), keep=2)
    made.open(b"{}")
    return made


def steps(checkpoints: Checkpoints) -> list[int]:
    return [int(path.name[5:15]) for path in checkpoint_files(checkpoints.folder)]


def test_the_newest_are_kept(checkpoints: Checkpoints) -> None:
    assert checkpoints.newest() is None
    for outer_step in (9, 10, 100):
        checkpoints.write(at(outer_step))
    assert steps(checkpoints) == [100, 10]
    found = checkpoints.newest()
    assert found is not None
    assert found.state.outer_step == 100


def test_writing_goes_on_in_the_background(checkpoints: Checkpoints) -> None:
    first = checkpoints.begin(at(1))
    assert first is not None
    assert first.result(30).name == "step-0000000001.safetensors"
    second = checkpoints.begin(at(2))
    assert second is not None
    assert checkpoints.finish(at(3)) == checkpoints.folder / "step-0000000003.safetensors"
    assert steps(checkpoints) == [3, 2]


def test_a_failure_in_the_background_is_told(checkpoints: Checkpoints) -> None:
    (checkpoints.folder / "step-0000000001.safetensors").mkdir()
    (checkpoints.folder / "step-0000000001.safetensors" / "full").touch()
    writing = checkpoints.begin(at(1))
    assert writing is not None
    writing.exception(30)
    with pytest.raises(StateError, match="cannot be written"):
        checkpoints.begin(at(2))
    with pytest.raises(StateError, match="cannot be written"):
        checkpoints.finish(None)


def test_what_cannot_be_believed_is_set_aside_and_never_deleted(checkpoints: Checkpoints) -> None:
    checkpoints.write(at(1))
    checkpoints.write(at(2))
    newest = checkpoint_files(checkpoints.folder)[0]
    for number, suffix in enumerate((".set-aside", ".set-aside-1", ".set-aside-2")):
        newest.write_bytes(f"rubbish {number}".encode())
        found = checkpoints.newest()
        assert found is not None
        assert found.state.outer_step == 1
        assert newest.with_name(newest.name + suffix).read_bytes() == f"rubbish {number}".encode()
    assert steps(checkpoints) == [1]


def test_a_start_clears_what_was_never_finished(checkpoints: Checkpoints) -> None:
    unfinished = checkpoints.folder / "step-0000000004.safetensors.writing"
    unfinished.write_bytes(b"half")
    checkpoints.open(b'{"name": "x"}')
    assert not unfinished.exists()
    assert (checkpoints.folder / "manifest.json").read_bytes() == b'{"name": "x"}'


@pytest.mark.parametrize("promised", [None, BALLOT])
def test_a_promise_is_recalled_once(checkpoints: Checkpoints, promised: Ballot | None) -> None:
    checkpoints.remember("a" * 64, promised)
    assert checkpoints.recall("a" * 64) == (True, promised)
    assert checkpoints.recall("a" * 64) == (False, None), "what was voted since is not in it"


def test_a_promise_at_another_state_is_void(checkpoints: Checkpoints) -> None:
    checkpoints.remember("a" * 64, BALLOT)
    assert checkpoints.recall("b" * 64) == (False, None)
    assert checkpoints.recall("a" * 64) == (False, None)


@pytest.mark.parametrize("note", [b"", b"[]", b"{}", json.dumps({"digest": "a" * 64, "promised": 3}).encode(), b"\xff"])
def test_a_damaged_promise_is_none(checkpoints: Checkpoints, note: bytes) -> None:
    (checkpoints.folder / "promise.json").write_bytes(note)
    assert checkpoints.recall("a" * 64) == (False, None)
    assert not (checkpoints.folder / "promise.json").exists()


def test_a_file_is_whole_or_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_bytes(path, b"one")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"tw")
        raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match="No space left"):
        write_whole(path, fail)
    assert path.read_bytes() == b"one"
    assert [one.name for one in path.parent.iterdir()] == ["file"]
