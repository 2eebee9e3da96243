"""What bench/frontier.py compares: how four peers exchange, by name, each with a small grid of learning rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from peer.rounds.codec import CODECS, Codec, SparseCodec
from swarm.manifest import Manifest

BASE = Path(__file__).resolve().parent / "frontier.toml"
Kind = Literal["updates", "gradients", "alone", "sparta"]
CODECS_TRIED: dict[str, Callable[[], Codec]] = {
    **CODECS,
    **{f"sparse/{1 << bits}": lambda bits=bits: SparseCodec(bits) for bits in (2, 3, 4, 5)},  # type: ignore[misc]
}
"""Those of the project, and sparse at other densities: one value in 4, 8, 16, 32 instead of 64."""


@dataclass(frozen=True)
class Arm:
    """How the peers of one run exchange.

    kind: what is averaged, as in a manifest; or "alone", four peers that never exchange; or "sparta", whose peers
    average a random share of the parameters after each inner step. keep: what a peer could not send stays in its own
    parameters, and so in its next contribution; ``feedback`` is then 0. mean_codec: where the mean has another one.
    outer: of SGD; AdamW as the inner one with "gradients". share: of the parameters, with "sparta".
    """

    kind: Kind
    inner_steps: int = 1
    codec: str = "fp32"
    mean_codec: str = ""
    feedback: float = 0.0
    mean_feedback: bool = True
    overlap: bool = False
    keep: bool = False
    learning_rate: float = 0.003
    outer_rate: float = 1.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    share: float = 0.0

    def codecs(self) -> tuple[Codec, Codec]:
        """Of contributions, of the mean."""
        codec = CODECS_TRIED[self.codec]()
        return codec, CODECS_TRIED[self.mean_codec]() if self.mean_codec else codec.for_mean

    def toml(self, seed: int, base: Path = BASE) -> str:
        """The manifest with which real peers do the same, as far as manifests can say it."""
        text = base.read_text(encoding="utf-8").replace("seed = 0", f"seed = {seed}", 1)
        head, rest = text.split("[inner]\n")
        inner, rest = rest.split("[outer]\n")
        inner = inner.replace("learning_rate = 0.003", f"learning_rate = {self.learning_rate}")
        inner = inner.replace("betas = [0.9, 0.95]", f"betas = [{self.betas[0]}, {self.betas[1]}]")
        sgd = [f'optimizer = "sgd"\nlearning_rate = {self.outer_rate}\n']
        if self.momentum:
            sgd.append(f"momentum = {self.momentum}\nnesterov = true\n")
        gradients = self.kind == "gradients"
        round_ = (
            f'[round]\naverage = "{"gradients" if gradients else "updates"}"\ninner_steps = {self.inner_steps}\n'
            f'codec = "{self.codec.partition("/")[0]}"\nerror_feedback = {self.feedback}\nmin_group_size = 4\n\n'
        )
        optimizers = (
            "[outer]\n" + inner.replace("[inner.", "[outer.")
            if gradients
            else "[inner]\n" + inner + "[outer]\n" + "".join(sgd) + "\n"
        )
        return head + optimizers + round_ + "[validation]" + rest.split("[validation]")[1]

    def manifest(self, seed: int, base: Path = BASE) -> Manifest:
        """``toml``, read."""
        return Manifest.from_toml(self.toml(seed, base))


@dataclass(frozen=True)
class Family:
    """One row of the table: arms that differ in a learning rate, of which the best at the shorter length is kept.

    published: where the recipe is from, if it is not ours.
    """

    name: str
    grid: tuple[Arm, ...]
    published: str = ""
    tags: tuple[str, ...] = field(default=())


RATES = (0.003, 0.002, 0.0045)
"""The grid of every family: learning rates of the inner optimizer, or of the outer AdamW with "gradients"."""


def _family(name: str, arm: Arm, published: str = "") -> Family:
    return Family(name, tuple(replace(arm, learning_rate=rate) for rate in RATES), published)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("whole batch", Arm("gradients")),
        _family("updates 1 fp32", Arm("updates")),
        _family("gradients 1 sparse/32", Arm("gradients", codec="sparse/32", feedback=0.999)),
        _family("updates 1 sparse/32 kept", Arm("updates", codec="sparse/32", keep=True)),
        _family("updates 5 sparse/4 kept", Arm("updates", 5, codec="sparse/4", keep=True)),
        _family("gradients 1 sparse/4", Arm("gradients", codec="sparse/4", feedback=0.999)),
        _family("updates 1 sparse/4 kept", Arm("updates", codec="sparse/4", keep=True)),
        _family("updates 10 fp32", Arm("updates", 10)),
    )
}
