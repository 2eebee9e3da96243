"""The manifests in runs/ load, docs/manifest.md tells every field, and `waggle run check` tells what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.testing import CliRunner

from swarm.errors import ExitCode, ManifestError
from swarm.manifest import Manifest
from waggle.run import app

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "runs" / "demo.toml"
RUNS = sorted((ROOT / "runs").glob("*.toml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_manifests_in_runs_load_and_bear_their_names(path: Path) -> None:
    manifest = Manifest.load(path)
    assert manifest.name == path.stem
    assert manifest.description


def test_runs_has_the_demo_and_one_that_streams_from_the_hub() -> None:
    assert {"stdlib", "hub"} <= {Manifest.load(path).data.source for path in RUNS}
    assert DEMO in RUNS


def test_check_says_ok_and_the_run_id() -> None:
    result = CliRunner().invoke(app, ["check", str(DEMO)])
    assert (result.exit_code, result.stdout) == (0, f"ok {Manifest.load(DEMO).run_id}\n")


@pytest.mark.parametrize(
    ("residual", "inner_steps", "doubted"), [("local", 5, False), ("local", 6, True), ("feedback", 6, False)]
)
def test_check_doubts_values_that_wait_too_long(tmp_path: Path, residual: str, inner_steps: int, doubted: bool) -> None:
    file = tmp_path / "run.toml"
    sending = f'inner_steps = {inner_steps}\ncodec = "sparse"\nresidual = "{residual}"'
    text = DEMO.read_text(encoding="utf-8").replace('inner_steps = 10\ncodec = "fp16"', sending)
    file.write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, ["check", str(file)])
    assert (result.exit_code, result.stdout) == (0, f"ok {Manifest.load(file).run_id}\n")
    assert (
        "note: round.keep_one_in: with residual = 'local' a value waits 384 inner steps" in result.stderr
    ) == doubted


def test_check_lets_the_error_through_for_the_program_to_tell(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    text = DEMO.read_text(encoding="utf-8")
    file.write_text(text.replace("waggle = 1", "waggle = 2"), encoding="utf-8")
    error = CliRunner().invoke(app, ["check", str(file)]).exception
    assert isinstance(error, ManifestError)
    assert error.exit_code == ExitCode.MANIFEST
    file.write_text(text.replace("hidden_size", "hidden_sise"), encoding="utf-8")
    error = CliRunner().invoke(app, ["check", str(file)]).exception
    assert str(error) == "model.config.hidden_sise: llama knows no such key, did you mean hidden_size?"


def sections(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted table name, model) of the manifest and of every table in it."""
    yield path, model
    for name, info in model.model_fields.items():
        union = get_origin(info.annotation) in (Union, UnionType)
        for candidate in get_args(info.annotation) if union else (info.annotation,):
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                yield from sections(candidate, f"{path}.{name}".strip("."))


def documented() -> dict[str, dict[str, str]]:
    """Table name -> field -> the default that docs/manifest.md states."""
    found: dict[str, dict[str, str]] = {}
    for chapter in re.split(r"^## ", (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8"), flags=re.M):
        heading = chapter.splitlines()[0]
        names = [""] if heading == "The top level" else re.findall(r"`\[([a-z.]+)\]`", heading)
        rows = re.findall(r"^\| `([a-z_]+)` \| [^|]+ \| ([^|]+) \|", chapter, flags=re.M)
        found.update({name: dict(rows) for name in names})
    return found


@pytest.mark.parametrize(("path", "model"), list(sections(Manifest)))
def test_every_field_and_its_default_are_documented(path: str, model: type[BaseModel]) -> None:
    fields = documented()[path]
    assert list(fields) == list(model.model_fields)
    for name, info in model.model_fields.items():
        default: Any = {} if info.default_factory else info.default
        if default is PydanticUndefined:
            assert fields[name] == "-", name
        elif default is None:
            assert fields[name] == "none", name
        elif not isinstance(default, BaseModel):
            # JSON spells texts, numbers, booleans and arrays as TOML does.
            assert fields[name] == f"`{json.dumps(default)}`", name


def test_the_docs_speak_of_no_other_table() -> None:
    assert set(documented()) == {path for path, _ in sections(Manifest)}
