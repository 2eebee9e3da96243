"""The optimizers a manifest may name, with their schedules. The arithmetic of a step is the peer's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from swarm.sections import Beta, NotNegative, Positive, Problem, Section, Share, as_tuple

Steps = Annotated[int, Field(ge=0, le=10**9)]
Count = Annotated[int, Field(ge=1, le=10**9)]


class Schedule(Section):
    """``[inner.schedule]``, ``[outer.schedule]``: the learning rate over its peak, by step."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Steps = 0
    total_steps: Count | None = None
    final_ratio: Share = 0.1

    def unused(self) -> Mapping[str, str]:
        if self.kind != "constant":
            return {}
        return dict.fromkeys(("total_steps", "final_ratio"), "only with kind = 'linear' or 'cosine'")

    def problems(self) -> Iterator[Problem]:
        if self.kind == "constant":
            return
        if self.total_steps is None:
            yield "total_steps", f"is required with kind = '{self.kind}'"
        elif self.warmup_steps > self.total_steps:
            yield "warmup_steps", f"must be at most total_steps ({self.total_steps}), not {self.warmup_steps}"

    def factor(self, step: int) -> float:
        """What multiplies the peak learning rate at ``step`` = 0, 1, ...; 0 < factor <= 1 until total_steps.

        It rises as (step + 1) / warmup_steps, so that step 0 already learns, then falls over
        warmup_steps .. total_steps to final_ratio, and stays there.
        """
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        if self.kind == "constant" or self.total_steps is None:
            return 1.0
        if step >= self.total_steps:
            return self.final_ratio
        done = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        fallen = done if self.kind == "linear" else (1.0 - math.cos(math.pi * done)) / 2.0
        return 1.0 - (1.0 - self.final_ratio) * fallen


MUON_MOMENTUM = 0.95
"""Muon's own default, with Nesterov's: that of Jordan 2024 and of torch.optim.Muon."""


class Optimizer(Section):
    """``[inner]``, ``[outer]``: an optimizer and its schedule. ``clip_norm`` 0 is off.

    ``muon`` is for [inner] only: it takes ``momentum`` and ``nesterov`` for the hidden matrices, ``betas`` and ``eps``
    for AdamW, which has the rest.
    """

    optimizer: Literal["adamw", "sgd", "muon"]
    learning_rate: Positive
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(as_tuple)] = (0.9, 0.95)
    eps: Positive = 1e-8
    momentum: Beta = 0.0
    nesterov: bool = False
    weight_decay: NotNegative = 0.0
    clip_norm: NotNegative = 0.0
    schedule: Schedule = Schedule()

    @model_validator(mode="before")
    @classmethod
    def _momentum_of_muon(cls, values: Any) -> Any:
        """Fills in the defaults that are Muon's own."""
        if not isinstance(values, dict) or values.get("optimizer") != "muon":
            return values
        momentum = values.get("momentum", MUON_MOMENTUM)
        return {"momentum": momentum, "nesterov": momentum != 0, **values}

    def unused(self) -> Mapping[str, str]:
        if self.optimizer == "adamw":
            return dict.fromkeys(("momentum", "nesterov"), "only with optimizer = 'sgd' or 'muon'")
        if self.optimizer == "sgd":
            return dict.fromkeys(("betas", "eps"), "only with optimizer = 'adamw' or 'muon'")
        return {}

    def problems(self) -> Iterator[Problem]:
        if self.optimizer != "adamw" and self.nesterov and self.momentum == 0:
            yield "nesterov", "needs momentum above 0"
