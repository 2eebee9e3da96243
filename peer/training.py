"""Local work: inner steps from the committed state, until there is enough for a contribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any, Protocol

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


@dataclass(frozen=True)
class Period:
    """Local work that was handed in and is not committed yet, while the next goes on from it (``overlap``).

    end: float32 [parameters], where it ended. settled: the cursor and the inner optimizer's steps there.
    """

    end: torch.Tensor
    examples: int
    inner_steps: int
    loss_sum: float
    settled: tuple[Cursor, int]


class Trainer:
    """Works on one model in the caller's thread.

    In ``gradients`` mode inner steps add up gradients at the committed parameters; in ``updates`` mode they move
    the parameters away from them. With ``overlap`` they go on moving while a round is under way, and its result is
    put under what they did meanwhile (CoCoD-SGD, Shen et al. 2019, equation 6), or a mixture of it and where they were
    when it began (after Streaming DiLoCo, Douillard et al. 2025, where the mixture takes in what was done meanwhile).

    What the codec left out of a contribution that counted is not lost. It stays in the local parameters, where local
    work then begins ("local"), or joins the next contribution ("feedback": Seide et al. 2014; SparseLoCo, Sarfi et
    al. 2025), as the manifest says.
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
        self._handed: Period | None = None
        self._residual: torch.Tensor | None = None

    def load(self, parameters: torch.Tensor) -> None:
        """Starts afresh from a committed state, float32 [parameters], that is not the next one of ours."""
        self._handed = self._residual = None
        self._restart(parameters, parameters)

    def _restart(self, parameters: torch.Tensor, start: torch.Tensor) -> None:
        self._base = parameters
        write_parameters(self.model, start)
        self.model.zero_grad(set_to_none=True)
        self.examples, self.inner_steps, self._loss_sum = 0, 0, 0.0
        self._settled = (self._cursor, self._total_steps)

    def commit(self, parameters: torch.Tensor, residual: torch.Tensor | None, *, counted: bool) -> None:
        """Goes on from the next committed state, float32 [parameters], that our contribution led to.

        counted: whether it did. residual: what the codec left out of it, float32 [parameters]; None when it did not
        count, or when nobody can tell.
        """
        start, handed, rules = parameters, self._handed, self._manifest.round
        if not self.contributed and (rules.kept == "local" or handed is not None):
            # There was nothing to send, and what we kept before of our own way is still ours.
            end = read_parameters(self.model) if handed is None else handed.end
            start = parameters + (end - self._base)
        elif rules.kept == "local" and residual is not None:
            start = parameters - residual
        elif counted and rules.kept == "feedback":
            self._residual = residual  # what we kept before was in it, and must not come twice
        self._handed = None
        if handed is None:
            self._restart(parameters, start)
            return
        # What was not counted is not to stay in part: it may have been refused, and for good reasons.
        mixing = rules.mixing if counted else 1.0
        write_parameters(self.model, read_parameters(self.model).add_(start - handed.end, alpha=mixing))
        self._base, self._settled = parameters, handed.settled

    @property
    def done(self) -> bool:
        """Whether there is a contribution: one that was handed in, or all that one peer may do before a round."""
        return self.contributed > 0 if self._handed is not None else self.full

    @property
    def contributed(self) -> int:
        """Examples behind the contribution so far."""
        return self.examples if self._handed is None else self._handed.examples

    @property
    def full(self) -> bool:
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

    def hand_in(self) -> LocalResult:
        """The contribution: the mean gradient, or committed - local, and what the codec left out before. A copy.

        With ``overlap`` it stays the same until ``commit`` or ``load``, whatever is done meanwhile.
        """
        if self._manifest.round.overlap:
            return self._hand_in_ahead()
        if self._gradients:
            contribution = read_gradients(self.model).div_(max(1, self.examples))
        else:
            local = read_parameters(self.model)
            contribution = torch.sub(self._base, local, out=local)  # fresh memory costs more than the subtraction
        return self._result(contribution, self.examples, self.inner_steps, self._loss_sum)

    def _hand_in_ahead(self) -> LocalResult:
        if self._handed is None or not self._handed.examples:
            settled = (self._cursor, self._total_steps)
            end = read_parameters(self.model)
            self._handed = Period(end, self.examples, self.inner_steps, self._loss_sum, settled)
            self.examples, self.inner_steps, self._loss_sum = 0, 0, 0.0
        handed = self._handed
        return self._result(self._base - handed.end, handed.examples, handed.inner_steps, handed.loss_sum)

    def _result(self, contribution: torch.Tensor, examples: int, inner_steps: int, loss_sum: float) -> LocalResult:
        if self._residual is not None and examples:
            contribution.add_(self._residual, alpha=self._manifest.round.feedback)
        return LocalResult(contribution, examples, inner_steps, loss_sum / examples if examples else math.nan)

    def save_work(self) -> LocalWork:
        """All that ``load_work`` needs to go on from here, in the middle of local work too. Copies."""
        tensors = {"random.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        rules = self._manifest.round
        if self.examples or rules.overlap or rules.kept == "local":
            tensors["work"] = read_gradients(self.model) if self._gradients else read_parameters(self.model)
        if self._residual is not None:
            tensors["residual"] = self._residual
        if self._inner is not None:
            tensors.update({f"inner.{name}": value for name, value in self._inner.tensors().items()})
        facts = {
            "cursor": asdict(self._cursor), "total_steps": self._total_steps, "examples": self.examples,
            "inner_steps": self.inner_steps, "loss_sum": self._loss_sum,
        }  # fmt: skip
        if self._handed is not None:
            tensors["handed"] = self._handed.end
            cursor, steps = self._handed.settled
            facts["handed"] = {
                "examples": self._handed.examples, "inner_steps": self._handed.inner_steps,
                "loss_sum": self._handed.loss_sum, "cursor": asdict(cursor), "total_steps": steps,
            }  # fmt: skip
        return LocalWork(tensors, facts)

    def settled_work(self) -> LocalWork:
        """As ``save_work``, but as of the last commit and without what changes: while an inner step is under way."""
        cursor, total_steps = self._settled
        facts = {"cursor": asdict(cursor), "total_steps": total_steps, "examples": 0, "inner_steps": 0, "loss_sum": 0.0}
        return LocalWork({} if self._residual is None else {"residual": self._residual}, facts)

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
        self._residual = self._fitting(tensors.get("residual"))
        if "handed" in facts:
            self._load_handed(self._fitting(tensors["handed"]), facts["handed"])
        if "random.cpu" in tensors:
            torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], self._device)

    def _fitting(self, vector: torch.Tensor | None) -> torch.Tensor | None:
        if vector is not None and (vector.shape != self._base.shape or vector.dtype != torch.float32):
            raise ValueError(f"a vector of {tuple(vector.shape)} {vector.dtype} in the local work")
        return vector

    def _load_handed(self, end: torch.Tensor | None, facts: Mapping[str, Any]) -> None:
        assert end is not None
        settled = (_cursor(facts["cursor"]), int(facts["total_steps"]))
        examples, inner_steps = int(facts["examples"]), int(facts["inner_steps"])
        self._handed = Period(end, examples, inner_steps, float(facts["loss_sum"]), settled)

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
        """The mean loss over held-out examples, at the committed parameters; nan without examples."""
        rules = self._manifest.round
        ahead = read_parameters(self.model) if rules.overlap or rules.kept == "local" else None
        if ahead is not None:
            write_parameters(self.model, self._base)
        self.model.eval()
        total = sum(float(self._loss(self.model, tokens.to(self._device))) * len(tokens) for tokens in batches)
        count = sum(len(tokens) for tokens in batches)
        if ahead is not None:
            write_parameters(self.model, ahead)
        return total / count if count else math.nan


def cursor_of(work: LocalWork | None) -> Cursor:
    """Where the data goes on; at its beginning where nothing is known."""
    if work is None:
        return Cursor()
    return _cursor(work.facts["cursor"])


def _cursor(facts: Mapping[str, Any]) -> Cursor:
    return Cursor(int(facts["shard_number"]), int(facts["block"]))


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
