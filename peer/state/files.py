"""The committed state as a file: safetensors, written whole or not at all, with where it comes from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from peer.layout import Layout, state_digest
from peer.values import Pending
from swarm.errors import StateError


def save_state(path: Path, run_id: str, layout: Layout, state: Pending) -> None:
    """Writes the parameters by name and the optimizer's slots; replaces ``path`` in one step.

    Raises:
        StateError: the folder cannot be written.
    """
    tensors = {f"parameters.{name}": value.contiguous() for name, value in layout.unflatten(state.parameters).items()}
    tensors.update({f"slots.{name}": value for name, value in state.slots.items()})
    metadata = {"run_id": run_id, "outer_step": str(state.outer_step), "digest": state.digest}
    temporary = path.with_suffix(".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(save(tensors, metadata))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first failure is the one to tell
            temporary.unlink()
        reason = f"{path}: cannot be written ({error.strerror}); free some space or change --data-dir"
        raise StateError(reason) from error


def load_state(path: Path, run_id: str, layout: Layout) -> Pending:
    """Reads what ``save_state`` wrote.

    Raises:
        StateError: unreadable, of another run or model, or its contents do not have its digest.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError) as error:
        raise StateError(f"{path}: not a readable state ({error})") from error
    if metadata.get("run_id") != run_id:
        raise StateError(f"{path}: a state of {metadata.get('run_id')}, not of {run_id}")
    strange = {str(value.dtype) for value in tensors.values()} - {"torch.float32"}
    if strange:
        raise StateError(f"{path}: not a state of this model (values of {', '.join(sorted(strange))})")
    try:
        flat = torch.cat([tensors[f"parameters.{name}"].reshape(-1) for name, _ in layout.shapes])
        slots = {name[6:]: value for name, value in tensors.items() if name.startswith("slots.")}
        outer_step = int(metadata["outer_step"])
    except (KeyError, ValueError) as error:
        raise StateError(f"{path}: not a state of this model ({error})") from error
    digest = state_digest(layout, outer_step, flat, slots)
    if digest != metadata.get("digest"):
        raise StateError(f"{path}: its contents do not match its digest")
    return Pending(outer_step, flat, slots, digest)
