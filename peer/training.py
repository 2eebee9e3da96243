"""Local work: inner steps from the committed state, until there is enough for a contribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import nn

from peer.layout import read_gradients, read_parameters, write_parameters
from peer.optimizers import learning_rate
from peer.values import Batch, LocalResult
from swarm.manifest import Manifest
from swarm.optimizer import Optimizer

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Batches(Protocol):
    """Where examples come from."""

    def __next__(self) -> Batch:
        """The next batch; waits for it."""


def inner_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """A peer's own optimizer for ``updates``; its state stays local (DiLoCo, Douillard et al. 2023)."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(
            parameters, settings.learning_rate, settings.betas, settings.eps, settings.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


class Trainer:
    """Works on one model in the caller's thread.

    In ``gradients`` mode inner steps add up gradients at the committed parameters; in ``updates`` mode they move
    the parameters away from them.
    """

    def __init__(self, manifest: Manifest, model: nn.Module, loss: Loss, batches: Batches, device: torch.device):
        self.model = model.to(device)
        self.examples = 0
        self.inner_steps = 0
        self._manifest, self._loss, self._batches, self._device = manifest, loss, batches, device
        self._gradients = manifest.round.average == "gradients"
        self._inner = None if manifest.inner is None else inner_optimizer(model, manifest.inner)
        self._total_steps = 0
        self._loss_sum = 0.0
        self._base = read_parameters(model)

    def load(self, parameters: torch.Tensor) -> None:
        """Starts local work afresh from a committed state, float32 [parameters]."""
        self._base = parameters
        write_parameters(self.model, parameters)
        self.model.zero_grad(set_to_none=True)
        self.examples, self.inner_steps, self._loss_sum = 0, 0, 0.0

    @property
    def done(self) -> bool:
        """Whether this peer has done all that the manifest lets one peer do before a round."""
        wanted = self._manifest.round.inner_steps
        if wanted is not None:
            return self.inner_steps >= wanted
        return self.examples + self._manifest.data.batch_size > self._manifest.max_examples_per_peer

    def inner_step(self) -> float:
        """One batch; returns its mean loss."""
        tokens = next(self._batches).tokens.to(self._device)
        self.model.train()
        loss = self._loss(self.model, tokens)
        if self._gradients:
            (loss * len(tokens)).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        else:
            self._update(loss)
        value = float(loss.detach())
        self.examples += len(tokens)
        self.inner_steps += 1
        self._loss_sum += value * len(tokens)
        return value

    def _update(self, loss: torch.Tensor) -> None:
        settings, inner = self._manifest.inner, self._inner
        assert settings is not None and inner is not None
        for group in inner.param_groups:
            group["lr"] = learning_rate(settings, self._total_steps)
        inner.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        inner.step()
        self._total_steps += 1

    def result(self) -> LocalResult:
        """The contribution so far: the mean gradient, or committed - local. A copy."""
        if self._gradients:
            contribution = read_gradients(self.model) / max(1, self.examples)
        else:
            contribution = self._base - read_parameters(self.model)
        loss = self._loss_sum / self.examples if self.examples else math.nan
        return LocalResult(contribution, self.examples, self.inner_steps, loss)

    def forget_inner_state(self) -> None:
        """Starts the inner optimizer afresh: after values that were not finite its moments are not either."""
        if self._inner is not None and self._manifest.inner is not None:
            self._inner = inner_optimizer(self.model, self._manifest.inner)

    @torch.no_grad()
    def validate(self, batches: Sequence[torch.Tensor]) -> float:
        """The mean loss over held-out examples, at the parameters the model holds; nan without examples."""
        self.model.eval()
        total = sum(float(self._loss(self.model, tokens.to(self._device))) * len(tokens) for tokens in batches)
        count = sum(len(tokens) for tokens in batches)
        return total / count if count else math.nan


def choose_device(name: str) -> torch.device:
    """The device of a --device setting.

    Raises:
        RuntimeError: it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this machine has no CUDA device that torch can use")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise RuntimeError(f"there are {torch.cuda.device_count()} CUDA devices, counted from 0")
    return device


def limit_threads(threads: int) -> None:
    """Bounds the CPU threads of tensor work; 0 leaves torch's choice."""
    if threads:
        torch.set_num_threads(threads)
        with suppress(RuntimeError):  # can be set once per process, before any parallel work
            torch.set_num_interop_threads(1)
