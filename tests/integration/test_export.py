"""A checkpoint becomes a plain transformers folder, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from peer.layout import Layout, read_parameters
from peer.state.files import load_checkpoint
from peer.tasks import build_model
from swarm.errors import ExitCode
from swarm.manifest import Manifest
from tests.processes import REPOSITORY, START_SECONDS, House, Peer, manifest, write_corpus
from waggle.export import committed_model, saved_manifest

WAGGLE = "from waggle.cli import main; main()"


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A peer that trained alone and left."""
    with House(tmp_path_factory.mktemp("export")) as house:
        run = manifest(write_corpus(house.folder / "corpus.txt"), inner_steps=5, min_group_size=1)
        peer = house.peer("alone", run, "--max-outer-steps", "3")
        assert peer.wait(START_SECONDS) == 0, peer.words
        yield peer


def export(peer: Peer, output: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WAGGLE_")}
    command = [sys.executable, "-c", WAGGLE, "export", "--data-dir", str(peer.folder), "--output", str(output), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=REPOSITORY, env=clean, check=False)


def test_from_pretrained_loads_the_committed_parameters(peer: Peer, tmp_path: Path) -> None:
    output = tmp_path / "new" / "model"
    done = export(peer, output)
    assert (done.returncode, done.stdout) == (0, f"written to {output}\n"), done.stderr
    model = AutoModelForCausalLM.from_pretrained(output)
    run = saved_manifest(peer.folder, None)
    committed = committed_model(run, peer.folder)
    assert torch.equal(read_parameters(model), read_parameters(committed))
    assert not torch.equal(read_parameters(model), read_parameters(build_model(run))), "it has learned"
    assert AutoConfig.from_pretrained(output).n_embd == 16
    card = (output / "README.md").read_text()
    assert run.run_id in card
    assert peer.events("commit")[-1]["digest"] in card
    assert not list(output.glob("*.bin")), "no pickle"
    assert [one.name for one in output.parent.iterdir()] == ["model"]


def test_what_is_there_is_never_replaced(peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    done = export(peer, tmp_path / "mine")
    assert done.returncode == ExitCode.USAGE
    assert done.stderr == f"waggle: --output {tmp_path / 'mine'}: is there already; choose another folder\n"


def test_a_run_that_is_not_there(peer: Peer, tmp_path: Path) -> None:
    run_id = saved_manifest(peer.folder, None).run_id
    done = export(peer, tmp_path / "model", "--run", "other@0123456789abcdef")
    assert done.returncode == ExitCode.USAGE
    assert f"it holds {run_id}" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_believed_is_not_exported(peer: Peer, tmp_path: Path) -> None:
    newest = peer.checkpoints[0]
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        done = export(peer, tmp_path / "model")
    finally:
        newest.write_bytes(content)
    assert done.returncode == ExitCode.STATE
    assert done.stderr.startswith(f"waggle: {newest}: ")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_saved_manifest_is_the_run(peer: Peer) -> None:
    run = saved_manifest(peer.folder, None)
    assert isinstance(run, Manifest)
    checkpoint = load_checkpoint(peer.checkpoints[0], run.run_id, Layout.of(build_model(run)), ())
    assert checkpoint.state.outer_step == 3
    assert len(checkpoint.chain) == 3
