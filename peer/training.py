"""Local work: inner steps from the committed state, until there is enough for a contribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol

import torch
from torch import nn

from peer.inner import inner_optimizer
from peer.layout import read_gradients, read_parameters, trained, write_parameters
from peer.optimizers import learning_rate
from peer.values import Batch, Cursor, LocalResult, LocalWork
from swarm.manifest import Manifest

Loss = Callable[[nn.Module, torch.Tensor], torch.Tensor]


class Batches(Protocol):
    """Where examples come from."""

    def __next__(self) -> Batch:
        """The next batch; waits for it."""


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
        self._cursor = Cursor()
        self._settled = (self._cursor, 0)

    def load(self, parameters: torch.Tensor) -> None:
        """Starts local work afresh from a committed state, float32 [parameters]."""
        self._base = parameters
        write_parameters(self.model, parameters)
        self.model.zero_grad(set_to_none=True)
        self.examples, self.inner_steps, self._loss_sum = 0, 0, 0.0
        self._settled = (self._cursor, self._total_steps)

    @property
    def done(self) -> bool:
        """Whether this peer has done all that the manifest lets one peer do before a round."""
        wanted = self._manifest.round.inner_steps
        if wanted is not None:
            return self.inner_steps >= wanted
        return self.examples + self._manifest.data.batch_size > self._manifest.max_examples_per_peer

    def inner_step(self) -> float:
        """One batch; returns its mean loss."""
        batch = next(self._batches)
        self._cursor, tokens = batch.cursor, batch.tokens.to(self._device)
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
        inner.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        inner.step(learning_rate(settings, self._total_steps))
        self._total_steps += 1

    def result(self) -> LocalResult:
        """The contribution so far: the mean gradient, or committed - local. A copy."""
        if self._gradients:
            contribution = read_gradients(self.model) / max(1, self.examples)
        else:
            contribution = self._base - read_parameters(self.model)
        loss = self._loss_sum / self.examples if self.examples else math.nan
        return LocalResult(contribution, self.examples, self.inner_steps, loss)

    def save_work(self) -> LocalWork:
        """All that ``load_work`` needs to go on from here, in the middle of local work too. Copies."""
        tensors = {"random.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        if self.examples:
            tensors["work"] = read_gradients(self.model) if self._gradients else read_parameters(self.model)
        if self._inner is not None:
            tensors.update({f"inner.{name}": value for name, value in self._inner.tensors().items()})
        facts = {
            "cursor": asdict(self._cursor), "total_steps": self._total_steps, "examples": self.examples,
            "inner_steps": self.inner_steps, "loss_sum": self._loss_sum,
        }  # fmt: skip
        return LocalWork(tensors, facts)

    def settled_work(self) -> LocalWork:
        """As ``save_work``, but as of the last ``load`` and without tensors: while an inner step is under way."""
        cursor, total_steps = self._settled
        facts = {"cursor": asdict(cursor), "total_steps": total_steps, "examples": 0, "inner_steps": 0, "loss_sum": 0.0}
        return LocalWork({}, facts)

    def load_work(self, work: LocalWork) -> None:
        """Goes on from ``save_work``, after ``load`` of the same committed state.

        Raises:
            KeyError, ValueError, TypeError, RuntimeError: it is not the work of such a trainer.
        """
        facts, tensors = work.facts, work.tensors
        self._cursor, self._total_steps = cursor_of(work), int(facts["total_steps"])
        self._settled = (self._cursor, self._total_steps)
        if self._inner is not None:
            prefix = "inner."
            inner = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            self._inner.load(inner)
        if "work" in tensors:
            (self._write_gradients if self._gradients else self._write_parameters)(tensors["work"])
            self.examples, self.inner_steps = int(facts["examples"]), int(facts["inner_steps"])
            self._loss_sum = float(facts["loss_sum"])
        if "random.cpu" in tensors:
            torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self._device)

    def _write_parameters(self, flat: torch.Tensor) -> None:
        write_parameters(self.model, flat)

    def _write_gradients(self, flat: torch.Tensor) -> None:
        offset = 0
        for _, value in trained(self.model):
            value.grad = flat[offset : offset + value.numel()].view_as(value).to(value.device, copy=True)
            offset += value.numel()

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


def cursor_of(work: LocalWork | None) -> Cursor:
    """Where the data goes on; at its beginning where nothing is known."""
    if work is None:
        return Cursor()
    return Cursor(int(work.facts["cursor"]["shard_number"]), int(work.facts["cursor"]["block"]))


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
