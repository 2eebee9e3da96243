"""What bench/frontier.py compares: how four peers exchange, by name, each with a small grid of learning rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peer.rounds.codec import CODECS, Codec, SparseCodec
from swarm.manifest import Manifest

BASE = Path(__file__).resolve().parent / "frontier.toml"
Kind = Literal["updates", "gradients", "alone", "sparta"]
CODECS_TRIED: dict[str, Callable[[], Codec]] = {
    **CODECS,
    **{f"sparse/{1 << bits}": lambda bits=bits: SparseCodec(bits) for bits in (2, 3, 4, 5, 7, 8)},  # type: ignore[misc]
}
"""Those of the project, and sparse at other densities: one value in 4, 8, 16, 32, 128, 256 instead of 64."""


@dataclass(frozen=True)
class Arm:
    """How the peers of one run exchange.

    kind: what is averaged, as in a manifest; or "alone", four peers that never exchange; or "sparta", whose peers
    average a random share of the parameters after each inner step. mixing: how far an overlapped mean moves a peer from
    where it was when it handed in, towards the committed state. keep: what a peer could not send stays in its own
    parameters, and so in its next contribution; ``feedback`` is then 0. mean_codec: where the mean has another one.
    outer: of SGD; AdamW as the inner one with "gradients". share: of the parameters, with "sparta". gathered: everyone
    sends its whole contribution to everyone, who takes the mean of what it decodes; else parts go to their reducers.
    muon: inside, for the hidden matrices, instead of AdamW.
    """

    kind: Kind
    inner_steps: int = 1
    codec: str = "fp32"
    mean_codec: str = ""
    feedback: float = 0.0
    mean_feedback: bool = True
    overlap: bool = False
    mixing: float = 1.0
    keep: bool = False
    learning_rate: float = 0.003
    outer_rate: float = 1.0
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    share: float = 0.0
    gathered: bool = False
    muon: bool = False

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
        if self.muon:
            inner = inner.replace('optimizer = "adamw"', 'optimizer = "muon"')
        inner = inner.replace("betas = [0.9, 0.95]", f"betas = [{self.betas[0]}, {self.betas[1]}]")
        sgd = [f'optimizer = "sgd"\nlearning_rate = {self.outer_rate}\n']
        if self.momentum:
            sgd.append(f"momentum = {self.momentum}\nnesterov = true\n")
        gradients = self.kind == "gradients"
        codec, _, one_in = self.codec.partition("/")
        round_ = [f'average = "{"gradients" if gradients else "updates"}"', f"inner_steps = {self.inner_steps}"]
        round_ += [f'codec = "{codec}"', f"overlap = {int(self.overlap)}", "min_group_size = 4"]
        if self.overlap:
            round_.append(f"overlap_mixing = {self.mixing}")
        if one_in:
            round_.append(f"keep_one_in = {one_in}")
        if self.mean_codec:
            assert codec == "sparse" and self.mean_codec.startswith("sparse"), "manifests have no other second codec"
            round_.append(f"mean_keep_one_in = {self.mean_codec.partition('/')[2] or 64}")
        if self.keep:
            round_.append('residual = "local"')
        elif self.feedback:
            round_ += ['residual = "feedback"', f"error_feedback = {self.feedback}"]
        else:
            round_.append('residual = "dropped"')
        optimizers = (
            "[outer]\n" + inner.replace("[inner.", "[outer.")
            if gradients
            else "[inner]\n" + inner + "[outer]\n" + "".join(sgd) + "\n"
        )
        lines = "[round]\n" + "\n".join(round_) + "\n\n"
        head = head.replace("every arm; the arm says how the four peers exchange.", "every arm; this is one of them.")
        return head + optimizers + lines + "[validation]" + rest.split("[validation]")[1]

    def manifest(self, seed: int, base: Path = BASE) -> Manifest:
        """``toml``, read."""
        return Manifest.from_toml(self.toml(seed, base))


def plain(arm: Arm) -> dict[str, Any]:
    """Its settings as JSON has them."""
    settings: dict[str, Any] = json.loads(json.dumps(asdict(arm)))
    return settings


DEFAULTS = plain(Arm("updates"))


def runs_of(results: dict[str, Any], arm: Arm) -> list[dict[str, Any]]:
    """Those of ``arm`` in bench/results/frontier.json; settings that came later have their defaults."""
    settings = plain(arm)
    return [run for run in results["runs"] if {**DEFAULTS, **run["arm"]} == settings]


SHORT, LONG = 900, 2700
"""The two lengths, in inner steps."""


@dataclass(frozen=True)
class Family:
    """One row of the table: arms that differ in a learning rate, of which the best at the shorter length is kept.

    published: where the recipe is from, if it is not ours. tried: a dead end, or a variation to learn from; it has one
    rate, one seed and the shorter length only, and a table of its own.
    """

    name: str
    grid: tuple[Arm, ...]
    published: str = ""
    tried: bool = False


RATES = (0.003, 0.002, 0.0045)
"""The grid of every family: learning rates of the inner optimizer, or of the outer AdamW with "gradients"."""


def _family(name: str, arm: Arm, published: str = "") -> Family:
    return Family(name, tuple(replace(arm, learning_rate=rate) for rate in RATES), published)


def _tried(family: Family) -> Family:
    return replace(family, grid=family.grid[:1], tried=True)


def _overlapped(mixing: float) -> str:
    return " overlapped" if mixing == 1 else f" overlapped, mixed {mixing:g}"


def _late(inner_steps: int, mixing: float) -> Family:
    arm = Arm("updates", inner_steps, overlap=True, mixing=mixing)
    return _family(f"updates {inner_steps} fp32{_overlapped(mixing)}", arm)


def _local(inner_steps: int, codec: str, **more: object) -> Family:
    arm = replace(Arm("updates", inner_steps, codec=codec, keep=True), **more)  # type: ignore[arg-type]
    said = (_overlapped(arm.mixing) if arm.overlap else "") + (f", mean {arm.mean_codec}" if arm.mean_codec else "")
    said += ("" if arm.mean_feedback else ", mean's rest lost") + (" muon" if arm.muon else "")
    said += " nesterov.5" if arm.momentum else ""
    return _family(f"updates {inner_steps} {codec} local{said}", arm)


DILOCO = "DiLoCo, Douillard et al. 2023"
SPARSELOCO = "SparseLoCo, Sarfi et al. 2025"
MULOCO = "MuLoCo, Thérien et al. 2025"
SPARTA = "SPARTA, Baioumy and Cheema 2025"
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        _family("whole batch", Arm("gradients")),
        _family("alone", Arm("alone")),
        _family("gradients 1 int8", Arm("gradients", codec="int8")),
        _family("gradients 1 int4 ef.999", Arm("gradients", codec="int4", feedback=0.999)),
        *(_family(f"updates {steps} fp32", Arm("updates", steps)) for steps in (1, 2, 5, 10, 30, 100)),
        _family("updates 10 int8", Arm("updates", 10, codec="int8")),
        *(_late(steps, mixing) for steps in (10, 30) for mixing in (0.5, 1.0)),
        _family("updates 10 fp32 muon", Arm("updates", 10, muon=True)),
        _family("updates 30 fp32 nesterov.5", Arm("updates", 30, momentum=0.5, outer_rate=0.7)),
        *(
            _family(
                f"updates {steps} {codec} ef{feedback:.2g}".replace("0.", ".") + f", mean {mean}",
                Arm("updates", steps, codec=codec, mean_codec=mean, feedback=feedback),
            )
            for steps, codec, mean, feedback in ((5, "sparse/256", "sparse", 0.99), (10, "sparse/256", "sparse", 0.99))
        ),
        _local(1, "int4"),
        _local(1, "sparse/8"),
        _local(1, "sparse/32"),
        _local(1, "sparse"),
        _local(5, "sparse/8"),
        _local(5, "sparse/16"),
        _local(10, "sparse/4"),
        *(_local(steps, "int4") for steps in (30, 100)),
        _local(30, "int4", muon=True),
        _local(30, "int4", muon=True, overlap=True, mixing=0.5),
        *(_local(5, "sparse/16", overlap=True, mixing=mixing) for mixing in (0.5, 1.0)),
        *(
            _family(f"DiLoCo {steps}", Arm("updates", steps, momentum=0.9, outer_rate=0.7), DILOCO)
            for steps in (30, 100)
        ),
        *(
            _family(
                f"SparseLoCo {steps}",
                Arm("updates", steps, codec="sparse", feedback=0.95, gathered=True),
                SPARSELOCO,
            )
            for steps in (15, 30)
        ),
        *(_family(f"SPARTA {share:.1%}", Arm("sparta", share=share), SPARTA) for share in (0.005, 0.05)),
        *map(
            _tried,
            (
                _family("gradients 1 sparse/32 ef.999", Arm("gradients", codec="sparse/32", feedback=0.999)),
                # All that differs from "updates 1 sparse/32 local" is where local work begins.
                _family("updates 1 sparse/32 ef.999", Arm("updates", codec="sparse/32", feedback=0.999)),
                *(
                    _family(f"updates {steps} {codec} ef.95", Arm("updates", steps, codec=codec, feedback=0.95))
                    for steps, codec in (
                        (1, "sparse"),
                        (5, "sparse"),
                        (10, "int4"),
                        (15, "sparse"),
                        (30, "sparse"),
                        (30, "sparse/32"),
                        (50, "sparse/16"),
                        (100, "sparse/8"),
                    )
                ),
                _local(1, "sparse/256"),
                _local(2, "sparse"),
                _local(5, "sparse"),
                _local(10, "int4"),
                _local(10, "sparse/4", overlap=True, mixing=0.5),
                _local(15, "sparse"),
                _local(1, "sparse", mean_codec="sparse/16"),
                _local(1, "sparse", mean_feedback=False),
                _local(1, "sparse", overlap=True),
                _local(5, "sparse", overlap=True),
                *(_family(f"gradients {steps} fp32", Arm("gradients", steps)) for steps in (2, 5, 10, 30, 100)),
                *(_late(steps, mixing) for steps, mixing in ((5, 1.0), (5, 0.5), (30, 0.25), (30, 0.75))),
                _late(10, 0.25),
                _local(1, "sparse", overlap=True, mixing=0.5),
                _local(30, "int4", muon=True, overlap=True),
                _family(
                    "DiLoCo 30 overlapped, mixed 0.5",
                    Arm("updates", 30, momentum=0.9, outer_rate=0.7, overlap=True, mixing=0.5),
                ),
                _family("alone muon", Arm("alone", muon=True)),
                _family("updates 1 fp32 muon", Arm("updates", muon=True)),
                _family("MuLoCo 30", Arm("updates", 30, muon=True, momentum=0.9, outer_rate=0.7), MULOCO),
                _local(1, "sparse/32", muon=True),
                _local(30, "int4", muon=True, momentum=0.5, outer_rate=0.7),
                _local(30, "int4", momentum=0.5, outer_rate=0.7),
            ),
        ),
    )
}

CONFIRMED = {
    "frontier_sparse.toml": "updates 1 sparse/32 local",
    "frontier_overlapped.toml": "updates 5 sparse/16 local overlapped",
    "frontier_mixed.toml": "updates 30 fp32 overlapped, mixed 0.5",
    "frontier_sparser.toml": "updates 5 sparse/256 ef.99, mean sparse",
    "frontier_fp32.toml": "updates 10 fp32",
    "frontier_muon.toml": "updates 30 int4 local muon nesterov.5",
}
"""Manifests beside this file with which real peers, of data shards 0/4 to 3/4, do what the simulator did on seed 0."""


def main() -> None:
    """Writes them."""
    for name, family in CONFIRMED.items():
        BASE.with_name(name).write_text(FAMILIES[family].grid[0].toml(0), encoding="utf-8")


if __name__ == "__main__":
    main()
