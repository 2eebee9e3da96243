"""The journal is one JSON object per line, whatever the numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from peer.journal import Journal
from swarm.errors import StateError


def test_lines_are_json_and_appended(tmp_path: Path) -> None:
    for number in (1, 2):
        journal = Journal(tmp_path, "run@0")
        journal.write("commit", outer_step=number, loss=math.nan, other=math.inf)
        journal.close()
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert [line["outer_step"] for line in lines] == [1, 2]
    assert all((line["loss"], line["other"], line["run_id"]) == (None, None, "run@0") for line in lines)


def test_what_is_written_can_be_read_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "run@0")
    journal.write("validation", loss=1.5)
    assert json.loads((tmp_path / "journal.jsonl").read_text())["loss"] == 1.5
    journal.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StateError, match="--data-dir"):
        Journal(tmp_path / "file", "run@0")
