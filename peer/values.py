"""The values that pass between the parts of a peer: frozen, no behaviour beyond their own arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch


@dataclass(frozen=True)
class Cursor:
    """The exact place in a peer's stream of examples, to resume from.

    shard_number: how many shards this peer has finished (it keeps counting across epochs).
    block: examples already taken from the shard being read.
    """

    shard_number: int = 0
    block: int = 0


@dataclass(frozen=True)
class Batch:
    """Examples for one inner step, and the cursor that stands behind them.

    tokens: int64 [batch_size, sequence_length].
    cursor: where the stream continues after this batch.
    """

    tokens: torch.Tensor
    cursor: Cursor


@dataclass(frozen=True)
class LocalResult:
    """What one peer did since the last commit.

    contribution: float32 [parameters] on the CPU, flat: the mean gradient, or committed - local (pseudo-gradient).
    It belongs to the round that it is handed to, which writes the mean over it, and the next state over that.
    examples: the weight, in examples. loss: mean training loss over them (nan when there are none).
    """

    contribution: torch.Tensor
    examples: int
    inner_steps: int
    loss: float


@dataclass(frozen=True)
class LocalWork:
    """What a peer has beside the committed state, to go on exactly where it was.

    tensors: its model, the state of its inner optimizer, random states. facts: counters and the cursor, JSON types.
    """

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Pending:
    """The state after an outer step, be it committed or not yet.

    parameters: float32 [parameters]; slots: optimizer state, each float32 [parameters]. hashes: sha256 of each
    chunk of ``peer.layout``, 32 bytes each, from which the digest is made.
    """

    outer_step: int
    parameters: torch.Tensor
    slots: Mapping[str, torch.Tensor]
    digest: str
    hashes: bytes


@dataclass(frozen=True)
class RoundTimes:
    """Seconds spent in each stage of a round. codec: on values, within the exchange, in all threads together."""

    group: float = 0.0
    exchange: float = 0.0
    codec: float = 0.0
    commit: float = 0.0


@dataclass(frozen=True)
class RoundResult:
    """How one round ended.

    committed: whether the outer step advanced. reason: empty on commit, else why not, in one word of
    docs/metrics.md. refused: peer id -> reason, for contributions left out. counted: whether ours was not. residual:
    where it is told, what of our contribution the commit lacks, float32 [parameters]; None too when it counted and we
    have the state from others, who cannot know.
    """

    committed: bool
    outer_step: int
    group_size: int
    reason: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    times: RoundTimes = field(default_factory=RoundTimes)
    counted: bool = False
    residual: torch.Tensor | None = None


class Stage(Enum):
    """The stages of an attempt, in order, as one member goes through them."""

    SEATED = "seated"
    READY = "ready"
    GROUPED = "grouped"
    SCATTERED = "scattered"
    RECEIVED = "received"
    INCLUDED = "included"
    GATHERED = "gathered"
    VOTED = "voted"
    COMMITTED = "committed"
