"""A peer's own optimizer for ``updates``: its state stays local (DiLoCo, Douillard et al. 2023).

It is torch's: inner steps need no two machines to agree on their bits, unlike those of peer/optimizers.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from peer.layout import trained
from swarm.errors import ManifestError
from swarm.optimizer import Optimizer


class InnerOptimizer:
    """One torch optimizer, or several that share the parameters out among them and act as one."""

    def __init__(self, parameters: Sequence[nn.Parameter], parts: Sequence[torch.optim.Optimizer]):
        """parameters: all that are trained, in the model's order, which names the state. parts: each has some."""
        self.parts = parts
        self._of = {parameter: part for part in parts for group in part.param_groups for parameter in group["params"]}
        self._parameters = parameters

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def step(self, learning_rate: float) -> None:
        """One update of all parameters by their gradients."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its state as INDEX.NAME -> value on the CPU, copies; INDEX counts the parameters in the model's order."""
        return {
            f"{index}.{name}": value.detach().to("cpu", copy=True)
            for index, parameter in enumerate(self._parameters)
            for name, value in self._of[parameter].state.get(parameter, {}).items()
            if isinstance(value, torch.Tensor)
        }

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Goes on from what ``tensors`` returned. Raises ValueError: it is another optimizer's."""
        for index, parameter in enumerate(self._parameters):
            prefix = f"{index}."
            state = {}
            for name, value in tensors.items():
                if name.startswith(prefix):
                    if value.dim() and value.shape != parameter.shape:
                        raise ValueError(f"inner.{name} has the shape {tuple(value.shape)}")
                    # torch keeps counters on the CPU
                    state[name.removeprefix(prefix)] = value.to(parameter.device) if value.dim() else value
            if state:
                self._of[parameter].state[parameter] = state


def inner_optimizer(model: nn.Module, settings: Optimizer) -> InnerOptimizer:
    """The optimizer a manifest names, for the parameters that are trained.

    ``muon``: Muon (Jordan 2024) for the hidden matrices, AdamW for embeddings, the head and what is no matrix. Muon's
    steps are scaled to the root mean square of AdamW's (Liu et al. 2025, "Muon is scalable"), so that one learning
    rate and one weight decay serve both.

    Raises:
        ManifestError: the installed torch has no such optimizer.
    """
    named = trained(model)
    parameters = [value for _, value in named]
    if settings.optimizer == "sgd":
        return InnerOptimizer(parameters, [_sgd(parameters, settings)])
    if settings.optimizer == "adamw":
        return InnerOptimizer(parameters, [_adamw(parameters, settings)])
    outside = _embeddings(model)
    matrices = [value for value in parameters if value.dim() == 2 and id(value) not in outside]
    taken = {id(value) for value in matrices}
    rest = [value for value in parameters if id(value) not in taken]
    parts: list[torch.optim.Optimizer] = [_muon(matrices, settings)] if matrices else []
    if rest:
        parts.append(_adamw(rest, settings))
    return InnerOptimizer(parameters, parts)


def _embeddings(model: nn.Module) -> set[int]:
    """id of the weights that turn ids or positions into vectors, and of the head that turns vectors into scores."""
    modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    # transformers' way to say which module is the head; it may share its weights with an embedding.
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {id(module.weight) for module in (*modules, head) if module is not None}


def _sgd(parameters: Sequence[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        parameters,
        settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )


def _adamw(parameters: Sequence[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, settings.learning_rate, settings.betas, settings.eps, settings.weight_decay)


def _muon(matrices: Sequence[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise ManifestError(f"inner.optimizer: 'muon' needs torch 2.9 or newer, and this is {torch.__version__}")
    return torch.optim.Muon(
        matrices,
        settings.learning_rate,
        weight_decay=settings.weight_decay,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
