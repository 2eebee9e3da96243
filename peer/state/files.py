"""A checkpoint as a file: safetensors with its lineage, written whole or not at all, believed only with its digest."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peer.layout import Layout, named_state
from peer.values import LocalWork, Pending
from swarm.errors import StateError
from swarm.files import write_whole
from swarm.history import Certificate

FORMAT = "waggle checkpoint 1"


@dataclass(frozen=True)
class Checkpoint:
    """A committed state, the newest links that lead to it, and what the peer had beside it.

    local: None when nothing but the committed state is known.
    """

    state: Pending
    chain: Sequence[Certificate]
    local: LocalWork | None = None


def save_checkpoint(path: Path, run_id: str, layout: Layout, checkpoint: Checkpoint) -> None:
    """Writes the parameters by name, the optimizer's slots and the local work; replaces ``path`` in one step.

    Raises:
        StateError: the folder cannot be written.
    """
    state, local = checkpoint.state, checkpoint.local
    tensors = {f"parameters.{name}": value.contiguous() for name, value in layout.unflatten(state.parameters).items()}
    tensors.update({f"slots.{name}": value for name, value in state.slots.items()})
    links = msgpack.packb([one.model_dump() for one in checkpoint.chain])
    metadata = {
        "format": FORMAT,
        "run_id": run_id,
        "outer_step": str(state.outer_step),
        "digest": state.digest,
        "history": base64.b64encode(links).decode(),
    }
    if local is not None:
        tensors.update({f"local.{name}": value.contiguous() for name, value in local.tensors.items()})
        metadata["local"] = json.dumps(dict(local.facts))
    metadata["checksum"] = _checksum(metadata, tensors)
    try:
        write_whole(path, lambda temporary: save_file(tensors, temporary, metadata))
    except (OSError, SafetensorError) as error:  # safetensors wraps what the system says
        reason = _strerror(error)
        raise StateError(f"{path}: cannot be written ({reason}); free some space or change --data-dir") from error


def load_checkpoint(path: Path, run_id: str, layout: Layout, slot_names: Sequence[str]) -> Checkpoint:
    """Reads what ``save_checkpoint`` wrote.

    Raises:
        StateError: unreadable, of another run or model, or its contents do not have its digest.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path}: not a readable checkpoint ({error})") from error
    if metadata.get("format") != FORMAT:
        raise StateError(f"{path}: not a checkpoint that this version reads ({metadata.get('format')})")
    if metadata.get("run_id") != run_id:
        raise StateError(f"{path}: a state of {metadata.get('run_id')}, not of {run_id}")
    try:
        state = _state(tensors, metadata, layout, slot_names)
        links = msgpack.unpackb(base64.b64decode(metadata["history"], validate=True))
        chain = [Certificate.model_validate(one) for one in links]
        local = _local(tensors, metadata)
    except (KeyError, ValueError, TypeError, RuntimeError, ValidationError, msgpack.UnpackException) as error:
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise StateError(f"{path}: not a state of this model ({reason})") from error
    if state.digest != metadata.get("digest") or _checksum(metadata, tensors) != metadata.get("checksum"):
        raise StateError(f"{path}: its contents do not match its digest")
    return Checkpoint(state, chain, local)


def _strerror(error: Exception) -> str:
    """What the system said, also where safetensors wrapped it: "... (os error 28)"."""
    wrapped = re.search(r"\(os error ([0-9]+)\)", str(error))
    return os.strerror(int(wrapped[1])) if wrapped else getattr(error, "strerror", None) or str(error)


def _checksum(metadata: Mapping[str, str], tensors: Mapping[str, torch.Tensor]) -> str:
    """sha256, hex, of all that the digest does not cover: lineage and local work."""
    facts = sorted(item for item in metadata.items() if item[0] != "checksum")
    checksum = hashlib.sha256(json.dumps(facts).encode())
    for name, value in sorted(tensors.items()):
        if name.startswith("local."):
            checksum.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            checksum.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def _state(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str], layout: Layout, slot_names: Sequence[str]
) -> Pending:
    slots = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("slots.")}
    committed = [tensors[f"parameters.{name}"] for name, _ in layout.shapes]
    strange = {str(value.dtype) for value in (*committed, *slots.values())} - {"torch.float32"}
    if strange:
        raise ValueError(f"values of {', '.join(sorted(strange))}")
    flat = torch.cat([value.reshape(-1) for value in committed])
    if sorted(slots) != sorted(slot_names) or any(value.shape != flat.shape for value in slots.values()):
        raise ValueError(f"optimizer state {sorted(slots)} where {sorted(slot_names)} is due")
    return named_state(layout, int(metadata["outer_step"]), flat, slots)


def _local(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> LocalWork | None:
    if "local" not in metadata:
        return None
    facts: Any = json.loads(metadata["local"])
    if not isinstance(facts, dict):
        raise ValueError("local work is not a table")
    own = {name.partition(".")[2]: value for name, value in tensors.items() if name.startswith("local.")}
    return LocalWork(own, facts)
