"""Optimizers for the committed state: the same bits on every machine.

A commit needs every peer to compute the same digest, on whatever hardware. Each operation here is one torch call on
float32 CPU tensors, so each is rounded once, as IEEE 754 demands of +, -, *, / and sqrt. Fused calls (``add`` with
``alpha``, ``addcmul``, ``lerp``, multi-tensor kernels) may or may not contract to fused multiply-adds and are not
used. docs/adr/0003 has the reasoning; tests compare with torch.optim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch

from swarm.optimizer import Optimizer

Slots = Mapping[str, torch.Tensor]


class OuterOptimizer(Protocol):
    """Applies a mean to the committed parameters, to each value by itself, so that a state can be computed in pieces.

    Changes nothing in place.
    """

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the vectors it keeps, in the order of transfer."""
        ...

    def step(
        self, parameters: torch.Tensor, slots: Slots, mean: torch.Tensor, square_norm: float, outer_step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The new parameters and slots, each float32 [parameters].

        Args:
            mean: mean gradient or pseudo-gradient. square_norm: its squared norm, as the reducers sent it: a sum
                computed here could differ from peer to peer in its last bit.
            outer_step: committed steps so far; 0 for the first.
        """
        ...


def power(base: float, exponent: int) -> float:
    """``base ** exponent`` by squaring: libm's pow may differ between machines."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def _clipped(mean: torch.Tensor, square_norm: float, clip_norm: float) -> torch.Tensor:
    norm = math.sqrt(square_norm)
    return mean * (clip_norm / norm) if clip_norm and norm > clip_norm else mean


class SGD:
    """Stochastic gradient descent with momentum, as torch.optim.SGD without dampening."""

    def __init__(self, settings: Optimizer):
        self._settings = settings
        self._slots = ("momentum",) if settings.momentum else ()

    @property
    def slots(self) -> tuple[str, ...]:
        """See OuterOptimizer."""
        return self._slots

    def step(
        self, parameters: torch.Tensor, slots: Slots, mean: torch.Tensor, square_norm: float, outer_step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See OuterOptimizer."""
        settings = self._settings
        update = _clipped(mean, square_norm, settings.clip_norm)
        if settings.weight_decay:
            update = update + parameters * settings.weight_decay
        new: dict[str, torch.Tensor] = {}
        if settings.momentum:
            momentum = slots["momentum"] * settings.momentum + update
            new["momentum"] = momentum
            update = update + momentum * settings.momentum if settings.nesterov else momentum
        return parameters - update * learning_rate(settings, outer_step), new


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW."""

    slots = ("first_moment", "second_moment")

    def __init__(self, settings: Optimizer):
        self._settings = settings

    def step(
        self, parameters: torch.Tensor, slots: Slots, mean: torch.Tensor, square_norm: float, outer_step: int
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See OuterOptimizer."""
        settings = self._settings
        beta1, beta2 = settings.betas
        rate = learning_rate(settings, outer_step)
        gradient = _clipped(mean, square_norm, settings.clip_norm)
        first = slots["first_moment"] * beta1 + gradient * (1.0 - beta1)
        second = slots["second_moment"] * beta2 + gradient * gradient * (1.0 - beta2)
        root = second.sqrt() / math.sqrt(1.0 - power(beta2, outer_step + 1)) + settings.eps
        decayed = parameters * (1.0 - rate * settings.weight_decay)
        update = first / root * (rate / (1.0 - power(beta1, outer_step + 1)))
        return decayed - update, {"first_moment": first, "second_moment": second}


def learning_rate(settings: Optimizer, step: int) -> float:
    """The learning rate at ``step``, by the schedule."""
    return settings.learning_rate * settings.schedule.factor(step)


def outer_optimizer(settings: Optimizer) -> OuterOptimizer:
    """The optimizer a manifest names."""
    return AdamW(settings) if settings.optimizer == "adamw" else SGD(settings)
