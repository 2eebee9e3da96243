"""The manifest: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from swarm.errors import ManifestError
from swarm.manifest import Manifest, Optimizer, Schedule

UPDATES = """
waggle = 1
name = "tiny"
[model]
type = "gpt2"
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = 32
batch_size = 4
[inner]
optimizer = "adamw"
learning_rate = 0.01
[round]
average = "updates"
inner_steps = 3
"""
GRADIENTS = UPDATES.replace("[inner]", "[outer]").replace('"updates"', '"gradients"')
HUB = UPDATES.replace('"stdlib"', '"hub"\ndataset = "org/text"')
TEXT = UPDATES.replace('"stdlib"', '"text"\npaths = ["*.txt"]')
SGD = UPDATES.replace('"adamw"', '"sgd"')
MUON = UPDATES.replace('"adamw"', '"muon"')


def refusal(text: str) -> list[str]:
    """The lines of the error."""
    with pytest.raises(ManifestError) as caught:
        Manifest.from_toml(text)
    return str(caught.value).splitlines()


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1, f"{old!r} must be there once"
    return text.replace(old, new)


def test_defaults_are_filled_in() -> None:
    manifest = Manifest.from_toml(UPDATES)
    assert (manifest.seed, manifest.task, manifest.description) == (0, "causal-lm", "")
    assert manifest.outer == Optimizer(optimizer="sgd", learning_rate=1.0)
    assert manifest.inner is not None
    assert (manifest.inner.betas, manifest.inner.eps, manifest.inner.clip_norm) == ((0.9, 0.95), 1e-8, 0.0)
    assert manifest.round.codec == "fp32"
    assert (manifest.round.min_group_size, manifest.round.max_group_size) == (2, 64)
    assert manifest.validation.every == 5
    assert Manifest.from_toml(TEXT).data.field == "text"
    assert Manifest.from_toml(HUB).data.split == "train"


@pytest.mark.parametrize(
    ("given", "momentum", "nesterov"),
    [
        ("", 0.95, True),
        ("momentum = 0.5", 0.5, True),
        ("nesterov = false", 0.95, False),
        ("momentum = 0", 0.0, False),
    ],
)
def test_muon_has_defaults_of_its_own(given: str, momentum: float, nesterov: bool) -> None:
    manifest = Manifest.from_toml(edited(MUON, "0.01", f"0.01\n{given}"))
    assert manifest.inner is not None
    assert (manifest.inner.momentum, manifest.inner.nesterov) == (momentum, nesterov)
    assert manifest.inner.betas == (0.9, 0.95), "AdamW has the rest"
    assert Manifest.from_canonical(manifest.canonical()) == manifest


def test_most_examples_of_one_peer() -> None:
    assert Manifest.from_toml(UPDATES).max_examples_per_peer == 12
    target = edited(UPDATES, "inner_steps = 3", "target_batch = 100")
    assert Manifest.from_toml(target).max_examples_per_peer == 104


TYPES = [
    (
        UPDATES,
        "waggle = 1",
        "waggle = 2",
        "waggle: must be 1, the manifest format that this Waggle reads, not 2: take a Waggle that reads it",
    ),
    (UPDATES, "waggle = 1", "waggle = true", "waggle: must be a whole number, not true"),
    (UPDATES, "waggle = 1", "waggle = 1.0", "waggle: must be a whole number, not 1.0"),
    (UPDATES, "waggle = 1", "", "waggle: is required"),
    (UPDATES, '"tiny"', '"Tiny"', "name: must be 1 to 40 of a-z, 0-9 and -, not beginning with -, not 'Tiny'"),
    (UPDATES, '"tiny"', '"-a"', "name: must be 1 to 40 of a-z, 0-9 and -, not beginning with -, not '-a'"),
    (UPDATES, '"tiny"', '"a\\n"', "name: must be 1 to 40 of a-z, 0-9 and -, not beginning with -, not 'a\\n'"),
    (UPDATES, '"tiny"', '""', "name: must be 1 to 40 of a-z, 0-9 and -, not beginning with -, not ''"),
    (UPDATES, '"tiny"', "7", "name: must be text, not 7"),
    (UPDATES, "[model]", 'description = "a\\nb"\n[model]', "description: must be one line of printable characters"),
    (UPDATES, "[model]", "seed = -1\n[model]", "seed: must be at least 0, not -1"),
    (UPDATES, "[model]", f"seed = {2**63}\n[model]", f"seed: must be below {2**63}, not {2**63}"),
    (UPDATES, "[model]", 'task = "vision"\n[model]', "task: must be 'causal-lm', not 'vision'"),
    (UPDATES, "[model]", 'sede = "x"\n[model]', "sede: unknown field, did you mean seed?"),
    (UPDATES, "batch_size", "batch_sise = 1\nbatch_size", "data.batch_sise: unknown field, did you mean batch_size?"),
    (UPDATES, "batch_size = 4", 'batch_size = "4"', "data.batch_size: must be a whole number, not '4'"),
    (UPDATES, "batch_size = 4", "batch_size = 4.0", "data.batch_size: must be a whole number, not 4.0"),
    (UPDATES, "batch_size = 4", "batch_size = true", "data.batch_size: must be a whole number, not true"),
    (UPDATES, "batch_size = 4", "batch_size = 0", "data.batch_size: must be at least 1, not 0"),
    (UPDATES, "sequence_length = 32", "sequence_length = 1", "data.sequence_length: must be at least 2, not 1"),
    (UPDATES, '"stdlib"', '"web"', "data.source: must be 'stdlib', 'text' or 'hub', not 'web'"),
    (UPDATES, "0.01", "true", "inner.learning_rate: must be a number, not true"),
    (UPDATES, "0.01", "nan", "inner.learning_rate: must be a finite number, not nan"),
    (UPDATES, "0.01", "-inf", "inner.learning_rate: must be a finite number, not -inf"),
    (UPDATES, "0.01", "0", "inner.learning_rate: must be above 0.0, not 0"),
    (UPDATES, "0.01", f"{10**400}", "inner.learning_rate: must be a number, not a number of many digits"),
    (UPDATES, "0.01", "1\nbetas = [0.9]", "inner.betas[1]: is required"),
    (UPDATES, "0.01", "1\nbetas = [0.9, 1.0]", "inner.betas[1]: must be below 1.0, not 1.0"),
    (UPDATES, "0.01", "1\nbetas = 0.9", "inner.betas: must be an array, not 0.9"),
    (UPDATES, "0.01", "1\nschedule = 3", "inner.schedule: must be a table, not 3"),
    (UPDATES, "0.01", "1\nschedule.kidn = 3", "inner.schedule.kidn: unknown field, did you mean kind?"),
    (UPDATES, "0.01", "1\nclip_norm = -1", "inner.clip_norm: must be at least 0.0, not -1"),
    (SGD, "0.01", "1\nnesterov = 1", "inner.nesterov: must be true or false, not 1"),
    (TEXT, '["*.txt"]', "[]", "data.paths: must have at least 1 item(s)"),
    (TEXT, '["*.txt"]', '"*.txt"', "data.paths: must be an array, not '*.txt'"),
    (TEXT, '["*.txt"]', '["a", ""]', "data.paths[1]: must not be empty"),
    (UPDATES, '"gpt2"', '"gpt2"\nconfig = 3', "model.config: must be a table, not 3"),
    (UPDATES, '"gpt2"', '"gpt2"\nconfig = { a.b = [1, nan] }', "model.config.a.b[1]: must be a finite number, not nan"),
    (UPDATES, '"gpt2"', f'"gpt2"\nconfig.a = {2**63}', f"model.config.a: must fit in 64 bits, not {2**63}"),
    (UPDATES, '"gpt2"', '"gpt2"\nconfig.a = "\\u001b[2J"', "model.config.a: must be one line of printable characters"),
    (UPDATES, '"gpt2"', '"gpt2"\nconfig."\\u001b" = 1', "model.config: has a key with unprintable characters"),
    (UPDATES, '"gpt2"', '"gpt2"\nconfig.a.a.a.a.a.a.a.a.a = 1', "model.config.a.a.a.a.a.a.a.a: is nested too deeply"),
    (
        UPDATES,
        '"gpt2"',
        '"gpt2"\nconfig.day = 2024-01-01',
        "model.config.day: must be text, a number, true or false, an array or a table, not 2024-01-01",
    ),
    (
        UPDATES,
        "inner_steps = 3",
        "inner_steps = 3\nmin_group_size = 65",
        "round.min_group_size: must be at most 64, not 65",
    ),
    (
        UPDATES,
        "inner_steps = 3",
        "inner_steps = 3\nmax_norm_ratio = 1",
        "round.max_norm_ratio: must be above 1.0, not 1",
    ),
    (
        UPDATES,
        "inner_steps = 3",
        "inner_steps = 3\ncommit_seconds = 0",
        "round.commit_seconds: must be above 0.0, not 0",
    ),
    (UPDATES, '"updates"', '"all"', "round.average: must be 'gradients' or 'updates', not 'all'"),
]

ONLY_HUB = "only with source = 'hub'"
ONLY_FALLING = "only with kind = 'linear' or 'cosine'"
LINEAR = '1\nschedule.kind = "linear"'
COMBINATIONS = [
    (UPDATES, '"gpt2"', '"gpt2"\nhub = "org/name"', "model.type: give exactly one of type and hub"),
    (UPDATES, 'type = "gpt2"', "", "model.type: give exactly one of type and hub"),
    (UPDATES, '"gpt2"', '"gpt2"\nrevision = "main"', "model.revision: only with hub"),
    (UPDATES, 'type = "gpt2"', 'hub = "org/name"\nconfig.n_layer = 1', "model.config: only with type"),
    (UPDATES, '"bytes"', '"bytes"\nrevision = "main"', "tokenizer.revision: only with a hub id as name"),
    (UPDATES, '"bytes"', '"./local"\nrevision = "main"', "tokenizer.revision: only with a hub id as name"),
    (
        GRADIENTS,
        "[round]",
        '[inner]\noptimizer = "sgd"\nlearning_rate = 1\n[round]',
        "inner: only with round.average = 'updates': gradients are applied by [outer]",
    ),
    (
        UPDATES,
        '[inner]\noptimizer = "adamw"\nlearning_rate = 0.01',
        "",
        "inner: is required with round.average = 'updates'",
    ),
    (
        GRADIENTS,
        '[outer]\noptimizer = "adamw"\nlearning_rate = 0.01',
        "",
        "outer: is required with round.average = 'gradients'",
    ),
    (UPDATES, "0.01", LINEAR, "inner.schedule.total_steps: is required with kind = 'linear'"),
    (UPDATES, "0.01", '1\nschedule.kind = "cosine"', "inner.schedule.total_steps: is required with kind = 'cosine'"),
    (UPDATES, "0.01", "1\nschedule.total_steps = 9", f"inner.schedule.total_steps: {ONLY_FALLING}"),
    (UPDATES, "0.01", "1\nschedule.final_ratio = 0.5", f"inner.schedule.final_ratio: {ONLY_FALLING}"),
    (
        GRADIENTS,
        "0.01",
        f"{LINEAR}\nschedule.total_steps = 9\nschedule.warmup_steps = 10",
        "outer.schedule.warmup_steps: must be at most total_steps (9), not 10",
    ),
    (SGD, "0.01", "1\nbetas = [0.9, 0.95]", "inner.betas: only with optimizer = 'adamw' or 'muon'"),
    (SGD, "0.01", "1\neps = 1e-8", "inner.eps: only with optimizer = 'adamw' or 'muon'"),
    (UPDATES, "0.01", "1\nmomentum = 0.9", "inner.momentum: only with optimizer = 'sgd' or 'muon'"),
    (UPDATES, "0.01", "1\nnesterov = false", "inner.nesterov: only with optimizer = 'sgd' or 'muon'"),
    (SGD, "0.01", "1\nnesterov = true", "inner.nesterov: needs momentum above 0"),
    (MUON, "0.01", "1\nmomentum = 0\nnesterov = true", "inner.nesterov: needs momentum above 0"),
    (
        GRADIENTS,
        '"adamw"',
        '"muon"',
        "outer.optimizer: must be 'adamw' or 'sgd', not 'muon', which is for [inner]",
    ),
    (
        UPDATES,
        "[round]",
        '[outer]\noptimizer = "muon"\nlearning_rate = 1\n[round]',
        "outer.optimizer: must be 'adamw' or 'sgd', not 'muon', which is for [inner]",
    ),
    (UPDATES, "inner_steps = 3", "", "round.inner_steps: give exactly one of inner_steps and target_batch"),
    (
        UPDATES,
        "inner_steps = 3",
        "inner_steps = 3\ntarget_batch = 9",
        "round.inner_steps: give exactly one of inner_steps and target_batch",
    ),
    (UPDATES, "inner_steps = 3", "target_batch = 3", "round.target_batch: must be at least data.batch_size (4), not 3"),
    (
        UPDATES,
        "inner_steps = 3",
        "inner_steps = 3\nmin_group_size = 9\nmax_group_size = 8",
        "round.min_group_size: must be at most max_group_size (8), not 9",
    ),
    (UPDATES, '"stdlib"', '"stdlib"\npaths = ["a"]', "data.paths: only with source = 'text'"),
    (HUB, '"hub"', '"hub"\npaths = ["a"]', "data.paths: only with source = 'text'"),
    (UPDATES, '"stdlib"', '"stdlib"\nfield = "text"', "data.field: only with source = 'text' or 'hub'"),
    (UPDATES, '"stdlib"', '"stdlib"\ndataset = "a"', f"data.dataset: {ONLY_HUB}"),
    (TEXT, '"text"', '"text"\nconfig = "a"', f"data.config: {ONLY_HUB}"),
    (TEXT, '"text"', '"text"\nsplit = "train"', f"data.split: {ONLY_HUB}"),
    (UPDATES, '"stdlib"', '"stdlib"\nrevision = "a"', f"data.revision: {ONLY_HUB}"),
    (TEXT, 'paths = ["*.txt"]', "", "data.paths: is required with source = 'text'"),
    (HUB, 'dataset = "org/text"', "", "data.dataset: is required with source = 'hub'"),
    (
        UPDATES,
        "[round]",
        "[validation]\nfraction = 0\n[round]",
        "validation.fraction: must be above 0 while validation.examples is",
    ),
]


@pytest.mark.parametrize(("base", "old", "new", "line"), TYPES + COMBINATIONS)
def test_refused_in_one_line_that_names_field_and_reason(base: str, old: str, new: str, line: str) -> None:
    assert refusal(edited(base, old, new)) == [line]


@pytest.mark.parametrize("text", [UPDATES, GRADIENTS, HUB, TEXT, SGD, MUON])
def test_the_bases_of_those_edits_are_valid(text: str) -> None:
    Manifest.from_toml(text)


def test_every_problem_has_its_line() -> None:
    text = UPDATES.replace("waggle = 1", "waggle = 2").replace("0.01", "1\nmomentum = 0.5\nnesterov = true")
    assert refusal(edited(text, "inner_steps = 3", "max_group_size = 1")) == [
        "waggle: must be 1, the manifest format that this Waggle reads, not 2: take a Waggle that reads it",
        "inner.momentum: only with optimizer = 'sgd' or 'muon'",
        "inner.nesterov: only with optimizer = 'sgd' or 'muon'",
        "round.inner_steps: give exactly one of inner_steps and target_batch",
        "round.min_group_size: must be at most max_group_size (1), not 2",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("waggle 1", r"manifest: not valid TOML: .*line 1, column 8.*"),
        ("waggle = 1\nwaggle = 2", r"manifest: not valid TOML: Cannot overwrite a value.*"),
        ("a = " + "[" * 50_000, r"manifest: not valid TOML: .*"),
        ("a = " + "9" * 5_000, r"manifest: not valid TOML: .*|(.|\n)*a: unknown field"),
        (".".join("a" * 2_000) + " = 1", r"manifest: not valid TOML: .*|(.|\n)*a: unknown field"),
        ("#" * 70_000, r"manifest: larger than 65536 bytes, which no manifest needs"),
    ],
)
def test_what_is_no_toml(text: str, reason: str) -> None:
    assert re.fullmatch(reason, "\n".join(refusal(text)))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def reason(path: str | Path) -> str:
        with pytest.raises(ManifestError) as caught:
            Manifest.load(path)
        return str(caught.value)

    assert reason(tmp_path / "no.toml").endswith("no.toml': cannot read the manifest: No such file or directory")
    assert reason(tmp_path).endswith("cannot read the manifest: Is a directory")
    assert "cannot read the manifest" in reason("a\0b")
    file = tmp_path / "run.toml"
    file.write_bytes(b'name = "\xff"')
    assert reason(file).endswith("run.toml': not UTF-8 text (byte 8): save it as UTF-8")
    file.write_bytes(b"#" * (64 * 1024 + 1))
    assert reason(file).endswith("run.toml': larger than 65536 bytes, which no manifest needs")


def test_a_byte_order_mark_is_forgiven(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbf" + UPDATES.replace("\n", "\r\n").encode())
    assert Manifest.load(file) == Manifest.from_toml(UPDATES)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[1]",
        b"\xff",
        b"[" * 50_000,
        json.dumps(json.loads(Manifest.from_toml(UPDATES).canonical()), indent=1).encode(),
        Manifest.from_toml(UPDATES).canonical().replace(b'"seed":0,', b""),
        Manifest.from_toml(UPDATES).canonical().replace(b"0.01", b"NaN"),
        Manifest.from_toml(UPDATES).canonical().replace(b'"seed":0', b'"seed":0,"seed":0'),
    ],
)
def test_what_travels_is_canonical_or_refused(data: bytes) -> None:
    with pytest.raises(ManifestError):
        Manifest.from_canonical(data)


def test_schedules() -> None:
    constant = Schedule(warmup_steps=4)
    assert [constant.factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    linear = Schedule(kind="linear", warmup_steps=2, total_steps=6, final_ratio=0.2)
    assert [linear.factor(step) for step in (0, 1, 2, 4, 6, 100)] == pytest.approx([0.5, 1, 1, 0.6, 0.2, 0.2])
    cosine = Schedule(kind="cosine", total_steps=10, final_ratio=0.0)
    assert [cosine.factor(step) for step in (0, 5, 10, 11)] == pytest.approx([1, 0.5, 0, 0])
    assert Schedule(kind="linear", warmup_steps=3, total_steps=3).factor(3) == pytest.approx(0.1)
