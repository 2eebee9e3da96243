"""What a run needs of a machine: bytes of memory and of disk, estimated from its manifest alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm.manifest import Manifest
    from swarm.optimizer import Optimizer

MOST_PARTS = 2
"""No part is longer than so many equal ones, however fast a peer's link is: it is held in memory once by every member's
values for it."""
_CODEC_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 2 / 256, "int4": 0.5 + 2 / 256}


def value_bytes(codec: str, keep_one_in: int = 64) -> float:
    """Bytes for each value on the wire, scales and indices included; headers of messages are under 0.1% of fp32."""
    if codec == "sparse":
        # a row of 4096: two scales; for each value that is kept 2 bits for itself and 2 + log2 for its index
        return (4 + 4096 // keep_one_in * (4 + math.log2(keep_one_in)) / 8) / 4096
    return _CODEC_BYTES[codec]


def wire_bytes(codec: str, keep_one_in: int = 64, mean_keep_one_in: int | None = None) -> tuple[float, float]:
    """``value_bytes`` of contributions, and of the mean."""
    return value_bytes(codec, keep_one_in), value_bytes(codec, mean_keep_one_in or keep_one_in)


@dataclass(frozen=True)
class Memory:
    """Bytes that a peer needs for training and rounds, beside activations, data and the program itself.

    parameters: the model in training. gradients: one per parameter. inner_optimizer, outer_optimizer: their
    state. committed: the swarm's parameters, kept beside the model. round: buffers, only during one; at most, if
    no member is in client mode. Where r of n members average a part, what was sent for it takes n / r times as much.
    """

    parameters: int
    gradients: int
    inner_optimizer: int
    outer_optimizer: int
    committed: int
    round: int

    @property
    def training(self) -> int:
        """What lies on the device that trains."""
        return self.parameters + self.gradients + self.inner_optimizer

    @property
    def swarm(self) -> int:
        """What lies in the machine's memory wherever it trains; during a round, when it is most."""
        return self.outer_optimizer + self.committed + self.round

    @property
    def total(self) -> int:
        """During a round: the most."""
        return self.training + self.swarm


def memory(manifest: Manifest, parameters: int) -> Memory:
    """What a peer of this run needs, for a model of that many parameters, all float32.

    The most in any group that the manifest allows, if none of its members is in client mode.
    """
    size = 4 * parameters
    inner = _slots(manifest.inner) if manifest.inner is not None else 0
    outer = _slots(manifest.outer)
    rules = manifest.round
    sent, mean = wire_bytes(rules.codec, rules.keep_one_in, rules.mean_keep_one_in)
    part = min(1.0, MOST_PARTS / rules.min_group_size)  # the largest share of the vector that one peer averages
    # What is left out of the contribution and of our part of the mean now, and what was before.
    residual = {"dropped": 0, "local": size, "feedback": 2 * size}[rules.kept]
    residual += int(part * size) if residual else 0
    ahead = size if rules.overlap else 0  # where the work that was handed in ended
    # The contribution, over which the mean is written; what members sent for our part, which is two encoded
    # vectors at most while every member averages a part; and our part of two means.
    exchange = size + int((MOST_PARTS * sent + 2 * part * mean) * parameters) + residual + ahead
    return Memory(
        parameters=size,
        gradients=size,
        inner_optimizer=inner * size,
        outer_optimizer=outer * size,
        committed=size,
        # Two next states: the newest in the contribution's memory, but an attempt before may have left another.
        round=exchange + 2 * (1 + outer) * size,
    )


def checkpoint_bytes(manifest: Manifest, parameters: int) -> int:
    """The most that one checkpoint takes: committed and local parameters, the state of both optimizers."""
    inner, rules = _slots(manifest.inner) if manifest.inner is not None else 0, manifest.round
    beside = rules.overlap + (rules.kept == "feedback")  # where handed-in work ended; what the codec left out
    return 4 * parameters * (2 + _slots(manifest.outer) + inner + beside)


def in_units(count: int) -> str:
    """A number of bytes in decimal units, as network providers count."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 1000 * size else f"{count / size:,.0f} {unit}"
    return f"{count} bytes"


def _slots(optimizer: Optimizer) -> int:
    """Values that the optimizer keeps for each parameter; with Muon at most, for its matrices need only one."""
    if optimizer.optimizer in ("adamw", "muon"):
        return 2
    return 1 if optimizer.momentum > 0 else 0
