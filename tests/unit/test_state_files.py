"""The file of a checkpoint: whole or not there, and believed only with its digest."""

from __future__ import annotations

import json
import resource
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from peer.layout import Layout, named_state
from peer.state.files import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from peer.values import LocalWork, Pending
from swarm.errors import ExitCode, StateError
from tests.chain import RUN_ID, a_chain

LAYOUT = Layout((("block.weight", (3, 4)), ("block.bias", (4,)), ("scale", ())))


SLOTS = ("first_moment", "second_moment")


def a_state(outer_step: int = 5, seed: int = 0, slots: tuple[str, ...] = SLOTS) -> Pending:
    random = torch.Generator().manual_seed(seed)
    parameters = torch.randn(LAYOUT.size, generator=random)
    kept = {slot: torch.randn(LAYOUT.size, generator=random) for slot in slots}
    return named_state(LAYOUT, outer_step, parameters, kept)


def save_state(path: Path, run_id: str, layout: Layout, state: Pending) -> None:
    save_checkpoint(path, run_id, layout, Checkpoint(state, []))


def load_state(path: Path, run_id: str, layout: Layout, slots: tuple[str, ...] = SLOTS) -> Pending:
    return load_checkpoint(path, run_id, layout, slots).state


def same(one: Pending, other: Pending) -> bool:
    return (
        (one.outer_step, one.digest, one.slots.keys()) == (other.outer_step, other.digest, other.slots.keys())
        and torch.equal(one.parameters, other.parameters)
        and all(torch.equal(one.slots[slot], other.slots[slot]) for slot in one.slots)
    )


@pytest.mark.parametrize("slots", [(), ("momentum",), ("first_moment", "second_moment")])
def test_what_is_saved_is_loaded(tmp_path: Path, slots: tuple[str, ...]) -> None:
    path = tmp_path / "new" / "state.safetensors"
    for outer_step in (0, 7):
        state = a_state(outer_step, outer_step, slots)
        save_state(path, RUN_ID, LAYOUT, state)
        assert same(load_state(path, RUN_ID, LAYOUT, slots), state)
    assert [one.name for one in path.parent.iterdir()] == ["state.safetensors"]


def test_others_can_read_the_parameters_by_name(tmp_path: Path) -> None:
    path, state = tmp_path / "state.safetensors", a_state()
    save_state(path, RUN_ID, LAYOUT, state)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("parameters.block.weight"), state.parameters[:12].view(3, 4))
        metadata = file.metadata()
    assert {name: metadata[name] for name in ("format", "run_id", "outer_step", "digest")} == {
        "format": FORMAT, "run_id": RUN_ID, "outer_step": "5", "digest": state.digest,
    }  # fmt: skip


def test_local_work_and_lineage_come_back(tmp_path: Path) -> None:
    path, certificates = tmp_path / "state.safetensors", a_chain({0: 1, 1: 2}, {0: 3, 1: 4})
    tensors = {"work": torch.arange(17.0), "random.cpu": torch.arange(9, dtype=torch.uint8), "n": torch.tensor(3.0)}
    work = LocalWork(tensors, {"cursor": {"shard_number": 2, "block": 7}, "loss_sum": 1.5})
    save_checkpoint(path, RUN_ID, LAYOUT, Checkpoint(a_state(), certificates, work))
    found = load_checkpoint(path, RUN_ID, LAYOUT, SLOTS)
    assert list(found.chain) == certificates
    assert found.local is not None
    assert found.local.facts == work.facts
    assert found.local.tensors.keys() == tensors.keys()
    assert all(torch.equal(found.local.tensors[name], value) for name, value in tensors.items())


def refusal(path: Path, run_id: str = RUN_ID, layout: Layout = LAYOUT, slots: tuple[str, ...] = SLOTS) -> str:
    with pytest.raises(StateError) as caught:
        load_state(path, run_id, layout, slots)
    assert caught.value.exit_code is ExitCode.STATE
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    assert "not a readable checkpoint" in refusal(path)
    assert "not a readable checkpoint" in refusal(tmp_path)
    for content in (b"", b"hello", b"\0" * 100, json.dumps({"a": 1}).encode()):
        path.write_bytes(content)
        assert "not a readable checkpoint" in refusal(path)
    save_file({"weight": torch.zeros(3)}, path)
    assert "not a checkpoint that this version reads" in refusal(path)
    save_state(path, "other@0", LAYOUT, a_state())
    assert f"a state of other@0, not of {RUN_ID}" in refusal(path)


def test_the_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, RUN_ID, LAYOUT, a_state())
    more = Layout((*LAYOUT.shapes, ("head", (2,))))
    assert "not a state of this model" in refusal(path, layout=more)
    other_shape = Layout((("block.weight", (4, 3)), *LAYOUT.shapes[1:]))
    refusal(path, layout=other_shape)
    fewer = Layout(LAYOUT.shapes[1:])
    refusal(path, layout=fewer)
    assert "optimizer state" in refusal(path, slots=("momentum",))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16, torch.int32])
def test_values_of_another_type_are_refused(tmp_path: Path, kind: torch.dtype) -> None:
    """Small whole numbers: the digest of their float32 would be right."""
    path, flat = tmp_path / "state.safetensors", torch.arange(17.0)
    for slots in ({}, {"momentum": flat}):
        digest = named_state(LAYOUT, 5, flat, slots).digest
        converted = {f"parameters.{name}": value.to(kind).clone() for name, value in LAYOUT.unflatten(flat).items()}
        if slots:
            converted = {f"parameters.{name}": value.clone() for name, value in LAYOUT.unflatten(flat).items()}
            converted["slots.momentum"] = flat.to(kind)
        save_file(converted, path, {"format": FORMAT, "run_id": RUN_ID, "outer_step": "5", "digest": digest})
        assert "values of torch." in refusal(path, slots=tuple(slots))


@given(st.data())
def test_a_damaged_file_is_refused_or_the_same(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path, state = tmp_path_factory.mktemp("state") / "state.safetensors", a_state()
    work = LocalWork({"work": torch.arange(17.0)}, {"total_steps": 3})
    save_checkpoint(path, RUN_ID, LAYOUT, Checkpoint(state, a_chain({0: 1, 1: 2}), work))
    whole = load_checkpoint(path, RUN_ID, LAYOUT, SLOTS)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="truncate"):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = load_checkpoint(path, RUN_ID, LAYOUT, SLOTS)
        assert same(found.state, state)
        assert list(found.chain) == list(whole.chain)
        assert found.local is not None
        assert found.local.facts == work.facts
        assert torch.equal(found.local.tensors["work"], work.tensors["work"])
    except StateError as error:
        assert "\n" not in str(error)


def test_every_flipped_bit_of_a_value_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, RUN_ID, LAYOUT, a_state())
    content = path.read_bytes()
    (header,) = struct.unpack("<Q", content[:8])
    for index in range(8 + header, len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << index % 8
        path.write_bytes(damaged)
        assert "its contents do not match its digest" in refusal(path)


def test_a_disk_that_fills_up_leaves_the_old_state(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, RUN_ID, LAYOUT, a_state())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))  # bytes of any file; Python ignores the signal
    try:
        with pytest.raises(StateError) as caught:
            save_state(path, RUN_ID, LAYOUT, a_state(6, seed=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value).startswith(f"{path}: cannot be written (")
    assert "File too large" in str(caught.value)
    assert same(load_state(path, RUN_ID, LAYOUT), a_state())
    assert [one.name for one in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    folder = tmp_path / "folder.safetensors"
    (folder / "full").mkdir(parents=True)
    for path in (occupied / "state.safetensors", folder):
        with pytest.raises(StateError, match="cannot be written") as caught:
            save_state(path, RUN_ID, LAYOUT, a_state())
        assert str(caught.value).startswith(f"{path}: ")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder.safetensors"]
