"""Local work of all peers of a swarm at once: the gradients of stacked models.

Small models one after another keep a core waiting for Python; stacked and compiled they take half the time.
tests/unit/test_frontier.py holds this against peer.training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch.func import functional_call, grad_and_value, vmap

from peer.inner import InnerOptimizer, inner_optimizer
from peer.layout import Layout, read_parameters, trained, write_parameters
from peer.optimizers import learning_rate
from peer.tasks import TASKS, build_model
from swarm.manifest import Manifest
from swarm.optimizer import Optimizer

Gradients = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""(float32 [peers, parameters], int64 [peers, batch, length]) -> gradients, likewise, and losses [peers]."""


class _Loss(torch.nn.Module):
    """The task's loss as a module, so that functional_call can give it parameters."""

    def __init__(self, manifest: Manifest):
        super().__init__()
        self.model = build_model(manifest)
        self.model.config._attn_implementation = "eager"  # the same attention in operations that vmap can follow
        self._loss = TASKS[manifest.task].loss

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._loss(self.model, tokens)


def stacked_gradients(manifest: Manifest, *, compiled: bool = True) -> Gradients:
    """Gradients for a flat vector of parameters of each peer. Compiling takes some 20 seconds."""
    module = _Loss(manifest)
    pieces, at = [], 0
    for name, shape in Layout.of(module).shapes:
        size = torch.Size(shape).numel()
        pieces.append((name, shape, at, at + size))
        at += size

    def loss(flat: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        parameters = {name: flat[start:stop].view(shape) for name, shape, start, stop in pieces}
        return functional_call(module, parameters, (tokens,))

    stacked = vmap(grad_and_value(loss))
    return torch.compile(stacked, dynamic=False) if compiled else stacked


class Inner(Protocol):
    """The inner optimizer of all peers."""

    def step(self, parameters: torch.Tensor, gradients: torch.Tensor) -> None:
        """Changes ``parameters``, float32 [peers, parameters], in place, and scratches ``gradients``."""
        ...

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that ``load`` needs to go on from here."""
        ...

    def load(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """Goes on from ``tensors``, after so many steps."""
        ...


class StackedAdamW:
    """Clips and applies gradients for each peer as torch.optim.AdamW does, all peers at once."""

    def __init__(self, settings: Optimizer, shape: torch.Size):
        self._settings = settings
        self.first, self.second = torch.zeros(shape), torch.zeros(shape)
        self.steps = 0

    def step(self, parameters: torch.Tensor, gradients: torch.Tensor) -> None:
        """See Inner."""
        settings, rate = self._settings, learning_rate(self._settings, self.steps)
        self.steps += 1
        (beta1, beta2), clip = settings.betas, settings.clip_norm
        if clip:
            gradients.mul_((clip / (gradients.norm(dim=1, keepdim=True) + 1e-6)).clamp_(max=1.0))
        self.first.lerp_(gradients, 1 - beta1)
        self.second.mul_(beta2).addcmul_(gradients, gradients, value=1 - beta2)
        root = torch.sqrt(self.second, out=gradients)
        root.div_((1 - beta2**self.steps) ** 0.5).add_(settings.eps)
        parameters.mul_(1 - rate * settings.weight_decay)
        parameters.addcdiv_(self.first, root, value=-rate / (1 - beta1**self.steps))

    def tensors(self) -> dict[str, torch.Tensor]:
        """See Inner."""
        return {"first": self.first, "second": self.second}

    def load(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """See Inner."""
        self.first, self.second, self.steps = tensors["first"], tensors["second"], steps


class SeparateOptimizers:
    """The project's own inner optimizer, whatever it is, of one peer after the other: slower than stacked."""

    def __init__(self, manifest: Manifest, peers: int):
        assert manifest.inner is not None
        self._settings = manifest.inner
        self._models = [build_model(manifest) for _ in range(peers)]
        self._optimizers: list[InnerOptimizer] = [inner_optimizer(model, manifest.inner) for model in self._models]
        self.steps = 0

    def step(self, parameters: torch.Tensor, gradients: torch.Tensor) -> None:
        """See Inner."""
        rate, clip = learning_rate(self._settings, self.steps), self._settings.clip_norm
        self.steps += 1
        for model, optimizer, flat, gradient in zip(self._models, self._optimizers, parameters, gradients, strict=True):
            write_parameters(model, flat)
            values = [value for _, value in trained(model)]
            pieces = gradient.split([value.numel() for value in values])
            for value, piece in zip(values, pieces, strict=True):
                value.grad = piece.view_as(value)
            if clip:
                torch.nn.utils.clip_grad_norm_(values, clip)
            optimizer.step(rate)
            flat.copy_(read_parameters(model))

    def tensors(self) -> dict[str, torch.Tensor]:
        """See Inner."""
        return {
            f"peer{peer}.{name}": value
            for peer, optimizer in enumerate(self._optimizers)
            for name, value in optimizer.tensors().items()
        }

    def load(self, tensors: Mapping[str, torch.Tensor], steps: int) -> None:
        """See Inner."""
        self.steps = steps
        for peer, optimizer in enumerate(self._optimizers):
            prefix = f"peer{peer}."
            optimizer.load(
                {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            )
