"""Local work of all peers of a swarm at once: the gradients of stacked models.

Small models one after another keep a core waiting for Python; stacked and compiled they take half the time.
tests/unit/test_frontier.py holds this against peer.training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.func import functional_call, grad_and_value, vmap

from peer.layout import Layout
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


class StackedAdamW:
    """Clips and applies gradients for each peer as torch.optim.AdamW does, all peers at once."""

    def __init__(self, settings: Optimizer, shape: torch.Size):
        self._settings = settings
        self.first, self.second = torch.zeros(shape), torch.zeros(shape)
        self.steps = 0

    def step(self, parameters: torch.Tensor, gradients: torch.Tensor) -> None:
        """Changes ``parameters``, float32 [peers, parameters], in place, and scratches ``gradients``."""
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
