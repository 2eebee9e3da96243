"""One swarm of four peers in one process, with the project's codecs, outer optimizers, data and model.

What all peers hold alike, the committed state, is held once: their digests are equal by construction.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.frontier_arms import Arm
from bench.frontier_training import Gradients, Inner, SeparateOptimizers, StackedAdamW
from peer.data import open_stream, validation_batches
from peer.layout import read_parameters, write_parameters
from peer.optimizers import outer_optimizer
from peer.rounds.codec import Codec
from peer.rounds.gates import square_norm
from peer.rounds.partition import chunks, partition
from peer.tasks import TASKS, build_model
from swarm.manifest import Manifest

PEERS = 4


def read_examples(manifest: Manifest, steps: int) -> torch.Tensor:
    """int16 [steps, PEERS, batch, length]: what each peer reads, of the shares 0/4 to 3/4 of the data."""
    streams = [open_stream(manifest, "", data_shard=f"{index}/{PEERS}") for index in range(PEERS)]
    return torch.stack([torch.stack([next(stream).tokens for stream in streams]).short() for _ in range(steps)])


class Exchange:
    """What a round does to contributions, and what it costs. ``sent_bytes``: by each peer, to others."""

    def __init__(self, arm: Arm, parameters: int):
        self._feedback, self._mean_feedback, self._keep = arm.feedback, arm.mean_feedback, arm.keep
        self._gathered = arm.gathered
        self._codec, self._mean_codec = arm.codecs()
        short, longer = divmod(parameters, PEERS)  # peers with equal links have equal parts
        self._parts = partition([short + (peer < longer) for peer in range(PEERS)])
        self.left_out = torch.zeros(PEERS, parameters)
        self.sent_bytes = [0] * PEERS

    def mean(self, contributions: torch.Tensor) -> torch.Tensor:
        """The mean as everyone decodes it, float32 [parameters], of contributions [PEERS, parameters]."""
        wanted = contributions + self.left_out * self._feedback if self._feedback else contributions
        decoded = torch.empty_like(wanted)
        for peer in range(PEERS):
            for reducer, part in enumerate(self._parts):
                size = through(self._codec, wanted[peer], decoded[peer], part)
                self.sent_bytes[peer] += size * (PEERS - 1 if self._gathered else peer != reducer)
        exact = (decoded.double().sum(dim=0) / PEERS).float()
        if self._gathered:
            self.left_out = wanted - decoded
            return exact
        mean = torch.empty_like(exact)
        for reducer, part in enumerate(self._parts):
            self.sent_bytes[reducer] += (PEERS - 1) * through(self._mean_codec, exact, mean, part)
        if self._feedback or self._keep:
            self.left_out = wanted - decoded
            if self._mean_feedback:
                for reducer, part in enumerate(self._parts):  # one of PEERS equal weights
                    self.left_out[reducer, part] += (exact[part] - mean[part]) * PEERS
        return mean


def through(codec: Codec, values: torch.Tensor, decoded: torch.Tensor, part: slice) -> int:
    """Encodes a part of ``values`` chunk by chunk, decodes it into ``decoded``, and returns the bytes."""
    size = 0
    for chunk in chunks(part):
        payload = codec.encode(values[chunk])
        decoded[chunk] = codec.decode(payload, chunk.stop - chunk.start)
        size += len(payload)
    return size


class Swarm:
    """Four peers from the first state on.

    local: float32 [PEERS, parameters], each peer's own. committed: float32 [parameters].
    """

    def __init__(self, arm: Arm, manifest: Manifest, gradients: Gradients, examples: torch.Tensor):
        self._arm, self._manifest, self._gradients, self._examples = arm, manifest, gradients, examples
        self._model = build_model(manifest)
        self.committed = read_parameters(self._model)
        self.local = self.committed.repeat(PEERS, 1)
        self._inner: Inner | None = None
        if manifest.inner is not None:
            adamw = manifest.inner.optimizer == "adamw"
            self._inner = (
                StackedAdamW(manifest.inner, self.local.shape) if adamw else SeparateOptimizers(manifest, PEERS)
            )
        self._outer = outer_optimizer(manifest.outer)
        self._slots = {name: torch.zeros_like(self.committed) for name in self._outer.slots}
        self._exchange = Exchange(arm, self.committed.numel())
        self._sum = torch.zeros_like(self.local)  # of gradients since the last commit
        self._handed_in: torch.Tensor | None = None  # ``local`` when the round in flight began
        self._mean = torch.empty(0)  # of that round
        self.inner_steps = self.outer_steps = 0
        self._validation = Validation(manifest)

    def save(self, path: Path) -> None:
        """All that ``load`` needs to go on from here."""
        tensors = {"local": self.local, "committed": self.committed, "sum": self._sum, "mean": self._mean}
        tensors |= {f"slot.{name}": value for name, value in self._slots.items()}
        tensors["left_out"] = self._exchange.left_out
        if self._handed_in is not None:
            tensors["handed_in"] = self._handed_in
        if self._inner is not None:
            tensors |= self._inner.tensors()
        tensors["counts"] = torch.tensor([self.inner_steps, self.outer_steps, *self._exchange.sent_bytes])
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous() for name, value in tensors.items()}, path)

    def load(self, path: Path) -> None:
        """Goes on from ``save`` of the same arm and seed."""
        tensors = load_file(path)
        self.local, self.committed, self._sum = tensors["local"], tensors["committed"], tensors["sum"]
        self._mean, self._handed_in = tensors["mean"], tensors.get("handed_in")
        self._slots = {name: tensors[f"slot.{name}"] for name in self._slots}
        self._exchange.left_out = tensors["left_out"]
        self.inner_steps, self.outer_steps, *self._exchange.sent_bytes = tensors["counts"].tolist()
        if self._inner is not None:
            self._inner.load(tensors, self.inner_steps)

    @property
    def bytes_per_token(self) -> float:
        """Sent by a peer, for each token that it trained on."""
        data = self._manifest.data
        tokens = self.inner_steps * data.batch_size * data.sequence_length
        return sum(self._exchange.sent_bytes) / PEERS / tokens

    def advance(self, steps: int) -> None:
        """Inner steps up to the number ``steps``, and the outer ones that fall due."""
        while self.inner_steps < steps:
            tokens = self._examples[self.inner_steps].long()
            gradients, _ = self._gradients(self.local, tokens)
            if self._inner is None:
                self._sum += gradients
            else:
                self._inner.step(self.local, gradients)
            self.inner_steps += 1
            if self._arm.kind == "sparta":
                self._average_some()
            elif self._arm.kind != "alone" and self.inner_steps % self._arm.inner_steps == 0:
                self._round()

    def _round(self) -> None:
        if self._inner is None:
            self._commit(self._exchange.mean(self._sum / self._arm.inner_steps))
            self._sum.zero_()
        elif not self._arm.overlap:
            self._commit(self._exchange.mean(self.committed - self.local))
        else:  # CoCoD-SGD (Shen et al. 2019), algorithm 1: the mean of the last round, then the next begins
            if self._handed_in is not None:
                self.committed, self._slots = self._next(self._mean)
                self.outer_steps += 1
                self.local += (self._fresh() - self._handed_in) * self._arm.mixing
            self._handed_in = self.local.clone()
            self._mean = self._exchange.mean(self.committed - self.local)

    def _commit(self, mean: torch.Tensor) -> None:
        self.committed, self._slots = self._next(mean)
        self.outer_steps += 1
        self.local = self._fresh()

    def _fresh(self) -> torch.Tensor:
        """Where local work begins after a commit, float32 [PEERS, parameters]."""
        start = self.committed.repeat(PEERS, 1)
        return start - self._exchange.left_out if self._arm.keep else start

    def _next(self, mean: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self._outer.step(self.committed, self._slots, mean, square_norm(mean), self.outer_steps)

    def _average_some(self) -> None:
        """SPARTA (Baioumy and Cheema 2025): the indices follow from the step, and need not travel."""
        parameters = self.committed.numel()
        random = torch.Generator().manual_seed(self.inner_steps)
        chosen = torch.randperm(parameters, generator=random)[: round(self._arm.share * parameters)]
        self.local[:, chosen] = self.local[:, chosen].mean(dim=0)
        for peer in range(PEERS):
            self._exchange.sent_bytes[peer] += 2 * (PEERS - 1) * 4 * len(chosen) // PEERS

    def loss(self) -> float:
        """Validation loss of the committed state, with the round in flight, if there is one, at its end.

        Of peers that commit nothing: of their parameters' mean ("sparta"), their mean loss ("alone").
        """
        if self._arm.kind == "alone":
            return sum(self._validation.loss(self._model, one) for one in self.local) / PEERS
        state = self.committed
        if self._arm.kind == "sparta":
            state = self.local.mean(dim=0)
        elif self._handed_in is not None:
            state, _ = self._next(self._mean)
        return self._validation.loss(self._model, state)


class Validation:
    """The held-out examples of a manifest."""

    def __init__(self, manifest: Manifest):
        self._batches = torch.cat(validation_batches(manifest)).split(64)
        self._loss = TASKS[manifest.task].loss

    @torch.no_grad()
    def loss(self, model: torch.nn.Module, flat: torch.Tensor) -> float:
        """Mean over them, at the parameters ``flat``."""
        write_parameters(model, flat)
        total = sum(float(self._loss(model, tokens)) * len(tokens) for tokens in self._batches)
        return total / sum(len(tokens) for tokens in self._batches)
