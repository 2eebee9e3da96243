"""A model's parameters as one flat vector, and the digest that names a state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from peer.values import Pending

DIGEST_CHUNK_BYTES = 1 << 20
"""A state is hashed in chunks and named by the hash of their hashes, so that a part can be checked by itself."""
CHUNK_VALUES = DIGEST_CHUNK_BYTES // 4
HASH_BYTES = 32


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the trained parameters, in the order in which they lie in the flat vector.

    Tied weights appear once, under their first name.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """The layout of a model."""
        return cls(tuple((name, tuple(value.shape)) for name, value in trained(model)))

    @property
    def size(self) -> int:
        """Values in the flat vector."""
        return sum(torch.Size(shape).numel() for _, shape in self.shapes)

    def header(self) -> bytes:
        """The bytes that go into every digest."""
        return json.dumps(self.shapes, separators=(",", ":")).encode()

    def unflatten(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Views of ``flat``, float32 [size], by parameter name."""
        pieces = torch.split(flat, [torch.Size(shape).numel() for _, shape in self.shapes])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes, pieces, strict=True)}


def trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters that are trained, each once."""
    return [(name, value) for name, value in model.named_parameters() if value.requires_grad]


def read_parameters(model: nn.Module) -> torch.Tensor:
    """The model's parameters as float32 [parameters] on the CPU, a copy."""
    return torch.cat([value.detach().reshape(-1).to("cpu", torch.float32) for _, value in trained(model)])


def read_gradients(model: nn.Module) -> torch.Tensor:
    """The model's gradients as float32 [parameters] on the CPU, a copy; zeros where there is none."""
    return torch.cat(
        [
            (torch.zeros_like(value) if value.grad is None else value.grad).reshape(-1).to("cpu", torch.float32)
            for _, value in trained(model)
        ]
    )


@torch.no_grad()
def write_parameters(model: nn.Module, flat: torch.Tensor) -> None:
    """Copies ``flat``, float32 [parameters], into the model."""
    offset = 0
    for _, value in trained(model):
        value.copy_(flat[offset : offset + value.numel()].view_as(value))
        offset += value.numel()


def chunk_slices(size: int) -> list[slice]:
    """Where each chunk of a vector of ``size`` values lies in it."""
    return [slice(start, min(start + CHUNK_VALUES, size)) for start in range(0, size, CHUNK_VALUES)]


def chunk_bytes(values: torch.Tensor) -> memoryview:
    """Float32 values as they are hashed, sent and saved: little-endian, uncopied where the machine is."""
    return memoryview(values.numpy().astype("<f4", copy=False).data).cast("B")


def chunk_hashes(parameters: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> bytes:
    """sha256 of each chunk, 32 bytes each: of the parameters, then of each slot in the order of names."""
    hashes = bytearray()
    for values in (parameters, *(slots[name] for name in sorted(slots))):
        raw = chunk_bytes(values)
        for start in range(0, len(raw), DIGEST_CHUNK_BYTES):
            hashes += hashlib.sha256(raw[start : start + DIGEST_CHUNK_BYTES]).digest()
    return bytes(hashes)


def digest_of(layout: Layout, outer_step: int, slot_names: Iterable[str], hashes: bytes) -> str:
    """The digest of the state whose chunks have these hashes: the root of a tree with one level below it.

    hashes: as ``chunk_hashes`` returns them; of another length they name no state of this layout.
    """
    top = hashlib.sha256(b"waggle state 1\0" + layout.header() + b"\0" + str(outer_step).encode())
    each = HASH_BYTES * len(chunk_slices(layout.size))
    for index, name in enumerate(("parameters", *sorted(slot_names))):
        top.update(b"\0" + name.encode() + b"\0")
        top.update(hashes[index * each : (index + 1) * each])
    return top.hexdigest()


def state_digest(layout: Layout, outer_step: int, parameters: torch.Tensor, slots: Mapping[str, torch.Tensor]) -> str:
    """Names a state: sha256, hex, over the layout, the outer step and the hashes of all chunks."""
    return digest_of(layout, outer_step, slots, chunk_hashes(parameters, slots))


def named_state(
    layout: Layout, outer_step: int, parameters: torch.Tensor, slots: Mapping[str, torch.Tensor]
) -> Pending:
    """A state with its hashes and the digest that follows from them."""
    hashes = chunk_hashes(parameters, slots)
    return Pending(outer_step, parameters, slots, digest_of(layout, outer_step, slots, hashes), hashes)
