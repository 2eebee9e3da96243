"""The run manifest: what all peers of a run share. TOML -> validated -> canonical bytes -> digest -> run_id.

docs/manifest.md explains every field. Nothing here reads data, builds a model or touches the network.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from swarm.errors import ManifestError
from swarm.identity import is_peer_id
from swarm.optimizer import Count, Optimizer, Schedule
from swarm.sections import (
    Line,
    Problem,
    Seconds,
    Section,
    as_tuple,
    plain_problems,
    printable,
    show,
    unsigned,
    validate,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Data", "Manifest", "Model", "Optimizer", "Round", "Schedule", "Tokenizer", "Validation", "is_run_id"]

FORMAT = 1
MAX_MANIFEST_BYTES = 64 * 1024
MAX_CONFIG_DEPTH = 8
_NAME = r"[a-z0-9][a-z0-9-]{0,39}"


def is_run_id(text: str) -> bool:
    """Whether ``text`` has the form of a run id, NAME@DIGEST; it says nothing of whether there is such a run."""
    return re.fullmatch(_NAME + "@[0-9a-f]{16}", text) is not None


def run_id_of(name: str, canonical: bytes) -> str:
    """The run id of the manifest with this name and these canonical bytes."""
    return f"{name}@{hashlib.sha256(canonical).hexdigest()[:16]}"


def _format(value: int) -> int:
    if value != FORMAT:
        raise ValueError(
            f"must be {FORMAT}, the manifest format that this Waggle reads, not {show(value)}: "
            "take a Waggle that reads it"
        )
    return value


def _name(value: str) -> str:
    if not re.fullmatch(_NAME, value):
        raise ValueError(f"must be 1 to 40 of a-z, 0-9 and -, not beginning with -, not {show(value)}")
    return value


def _author(value: str) -> str:
    if not is_peer_id(value):
        raise ValueError(f"must be the public id of a key, 12D3KooW..., as waggle run new writes it, not {show(value)}")
    return value


GroupSize = Annotated[int, Field(ge=1, le=64)]


class Model(Section):
    """``[model]``: built from a transformers configuration (type, config), or weights (hub, revision)."""

    type: Line | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    hub: Line | None = None
    revision: Line | None = None

    def problems(self) -> Iterator[Problem]:
        if (self.type is None) == (self.hub is None):
            yield "type", "give exactly one of type and hub"
        if self.hub is None and self.revision is not None:
            yield "revision", "only with hub"
        if self.hub is not None and self.config:
            yield "config", "only with type"
        yield from plain_problems("config", self.config, MAX_CONFIG_DEPTH)


class Tokenizer(Section):
    """``[tokenizer]``: ``bytes``, or a path or hub id of a transformers tokenizer."""

    name: Line
    revision: Line | None = None

    def problems(self) -> Iterator[Problem]:
        if self.revision is not None and (self.name == "bytes" or self.name.startswith((".", "/", "~"))):
            yield "revision", "only with a hub id as name"


class Data(Section):
    """``[data]``: where documents come from, and how they are cut into examples."""

    source: Literal["stdlib", "text", "hub"]
    paths: Annotated[tuple[Line, ...], BeforeValidator(as_tuple), Field(min_length=1, max_length=1000)] = ()
    field: Line = "text"
    dataset: Line = ""
    config: Line | None = None
    split: Line = "train"
    revision: Line | None = None
    sequence_length: Annotated[int, Field(ge=2, le=2**20)]
    batch_size: Annotated[int, Field(ge=1, le=2**16)]

    def unused(self) -> Mapping[str, str]:
        hub = {} if self.source == "hub" else dict.fromkeys(_HUB_FIELDS, "only with source = 'hub'")
        text = {} if self.source == "text" else {"paths": "only with source = 'text'"}
        field = {"field": "only with source = 'text' or 'hub'"} if self.source == "stdlib" else {}
        return {**text, **field, **hub}

    def problems(self) -> Iterator[Problem]:
        if self.source == "text" and not self.paths:
            yield "paths", "is required with source = 'text'"
        if self.source == "hub" and not self.dataset:
            yield "dataset", "is required with source = 'hub'"


_HUB_FIELDS = ("dataset", "config", "split", "revision")


KeepOneIn = Literal[4, 8, 16, 32, 64, 128, 256]
"""The densities of ``sparse``."""


class Round(Section):
    """``[round]``: what is averaged, when a round starts, in which group, and how long each part may take."""

    average: Literal["gradients", "updates"]
    inner_steps: Count | None = None
    target_batch: Count | None = None
    codec: Literal["fp32", "fp16", "int8", "int4", "sparse"] = "fp32"
    keep_one_in: KeepOneIn = 64
    mean_keep_one_in: KeepOneIn | None = None
    residual: Literal["local", "feedback", "dropped"] | None = None
    error_feedback: Annotated[float, Field(ge=0, lt=1), unsigned] | None = None
    overlap: Annotated[int, Field(ge=0, le=1)] = 0
    overlap_mixing: Annotated[float, Field(gt=0, le=1)] | None = None
    min_group_size: GroupSize = 2
    max_group_size: GroupSize = 64
    max_norm_ratio: Annotated[float, Field(gt=1)] = 20.0
    patience_seconds: Seconds = 30.0
    assemble_seconds: Seconds = 10.0
    exchange_seconds: Seconds = 60.0
    commit_seconds: Seconds = 60.0
    isolation_seconds: Seconds = 120.0

    def unused(self) -> Mapping[str, str]:
        densities = ("keep_one_in", "mean_keep_one_in")
        sparse = {} if self.codec == "sparse" else dict.fromkeys(densities, "only with codec = 'sparse'")
        late = {} if self.overlap else {"overlap_mixing": "only with overlap = 1"}
        return {**sparse, **late}

    def problems(self) -> Iterator[Problem]:
        if (self.inner_steps is None) == (self.target_batch is None):
            yield "inner_steps", "give exactly one of inner_steps and target_batch"
        if self.min_group_size > self.max_group_size:
            limit = self.max_group_size
            yield "min_group_size", f"must be at most max_group_size ({limit}), not {self.min_group_size}"
        if self.overlap and self.average == "gradients":
            yield "overlap", "only with average = 'updates': gradients are of the committed parameters"
        if self.overlap_mixing not in (None, 1.0) and self.kept == "feedback":
            yield "overlap_mixing", "must be 1 with error feedback: what a peer keeps of its way would come twice"
        if self.error_feedback is not None and self.residual in ("local", "dropped"):
            yield "error_feedback", "only with residual = 'feedback'"
        if self.residual == "local" and self.average == "gradients":
            yield "residual", "'local' is only for average = 'updates': gradients leave the parameters where they are"

    @property
    def kept(self) -> Literal["local", "feedback", "dropped"]:
        """What becomes of what the codec left out of a contribution."""
        if self.residual is not None:
            return self.residual
        if self.error_feedback is not None:
            return "feedback" if self.error_feedback else "dropped"
        return "feedback" if self.codec == "sparse" else "dropped"

    @property
    def feedback(self) -> float:
        """How much of what the codec left out joins the next contribution, where it is kept for that."""
        if self.kept != "feedback":
            return 0.0
        return 0.95 if self.error_feedback is None else self.error_feedback

    @property
    def mixing(self) -> float:
        """How far a late mean moves a peer towards the committed state, from where it was when it handed in."""
        if self.overlap_mixing is not None:
            return self.overlap_mixing
        return 1.0 if self.codec == "sparse" or self.kept == "feedback" else 0.5


class Validation(Section):
    """``[validation]``: the documents held out of training, and how often the loss on them is measured."""

    fraction: Annotated[float, Field(ge=0, le=0.5), unsigned] = 0.02
    examples: Annotated[int, Field(ge=0, le=2**20)] = 64
    every: Count = 5

    def problems(self) -> Iterator[Problem]:
        if self.examples and not self.fraction:
            yield "fraction", "must be above 0 while validation.examples is"


class Manifest(Section):
    """A run. Change one value and it is another run: ``run_id`` carries the digest of all of them."""

    waggle: Annotated[int, AfterValidator(_format)]
    name: Annotated[str, AfterValidator(_name)]
    description: Annotated[str, Field(max_length=500), AfterValidator(printable)] = ""
    author: Annotated[str, AfterValidator(_author)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    task: Literal["causal-lm"] = "causal-lm"
    model: Model
    tokenizer: Tokenizer
    data: Data
    inner: Optimizer | None = None
    outer: Optimizer = Optimizer(optimizer="sgd", learning_rate=1.0)
    round: Round
    validation: Validation = Validation()

    def problems(self) -> Iterator[Problem]:
        if self.round.average == "gradients":
            if self.inner is not None:
                yield "inner", "only with round.average = 'updates': gradients are applied by [outer]"
            if "outer" not in self.model_fields_set:
                yield "outer", "is required with round.average = 'gradients'"
        elif self.inner is None:
            yield "inner", "is required with round.average = 'updates'"
        if self.outer.optimizer == "muon":
            yield "outer.optimizer", "must be 'adamw' or 'sgd', not 'muon', which is for [inner]"
        target, batch = self.round.target_batch, self.data.batch_size
        if target is not None and target < batch:
            yield "round.target_batch", f"must be at least data.batch_size ({batch}), not {target}"

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """The manifest in a TOML file. Raises ManifestError: one line for each problem."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_MANIFEST_BYTES + 1)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise ManifestError(f"{str(path)!r}: cannot read the manifest: {reason}") from error
        if len(data) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{str(path)!r}: larger than {MAX_MANIFEST_BYTES} bytes, which no manifest needs")
        try:
            return cls.from_toml(data.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise ManifestError(f"{str(path)!r}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error

    @classmethod
    def from_toml(cls, text: str) -> Manifest:
        """The manifest in TOML text. Raises ManifestError: one line for each problem."""
        if len(text) > MAX_MANIFEST_BYTES:
            raise ManifestError(f"manifest: larger than {MAX_MANIFEST_BYTES} bytes, which no manifest needs")
        try:
            values = tomllib.loads(text)
        except RecursionError as error:
            raise ManifestError("manifest: not valid TOML: nested too deeply") from error
        except ValueError as error:  # TOMLDecodeError, and integers of thousands of digits
            raise ManifestError(f"manifest: not valid TOML: {' '.join(str(error).split())}") from error
        return cls._validated(values)

    @classmethod
    def from_canonical(cls, data: bytes) -> Manifest:
        """The manifest whose ``canonical()`` is ``data``. Raises ManifestError for anything else."""
        try:
            if len(data) > MAX_MANIFEST_BYTES:
                raise ValueError(f"larger than {MAX_MANIFEST_BYTES} bytes")
            values = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"manifest: not in canonical form: {' '.join(str(error).split())}") from error
        manifest = cls._validated(values)
        if manifest.canonical() != data:
            raise ManifestError("manifest: valid, but not in canonical form")
        return manifest

    @classmethod
    def _validated(cls, values: Any) -> Manifest:
        manifest, problems = validate(cls, values, "manifest")
        if manifest is None:
            raise ManifestError("\n".join(problems))
        return manifest

    def canonical(self) -> bytes:
        """UTF-8 JSON: defaults filled in, sorted keys, no spaces. Equal manifests give equal bytes."""
        values = self.model_dump(mode="json")
        text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")

    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hex."""
        return hashlib.sha256(self.canonical()).hexdigest()

    @property
    def run_id(self) -> str:
        """name@ and the first 16 hex digits of the digest."""
        return run_id_of(self.name, self.canonical())

    @property
    def max_examples_per_peer(self) -> int:
        """The most examples that one peer may claim for one outer step."""
        if self.round.inner_steps is not None:
            return self.round.inner_steps * self.data.batch_size
        return (self.round.target_batch or 0) + self.data.batch_size
