"""The peer's own log of what was committed."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import pytest

from peer.journal import Journal
from swarm.errors import ExitCode, StateError
from tests.chain import PEERS, RUN_ID, digest


def lines_of(journal: Journal) -> list[dict[str, object]]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = journal.path.read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_every_event_is_a_line_of_json_at_once(tmp_path: Path) -> None:
    before = time.time()
    journal = Journal(tmp_path / "new" / "folder", RUN_ID)
    participants = {PEERS[0]: 80, PEERS[1]: 40}
    journal.write("commit", outer_step=3, digest=digest("state"), participants=participants, loss=2.5, isolated=False)
    (line,) = lines_of(journal)  # before it is closed: whoever follows the file sees it
    assert before - 0.001 <= float(str(line.pop("time"))) <= time.time() + 0.001
    assert line == {
        "event": "commit", "run_id": RUN_ID, "outer_step": 3, "digest": digest("state"),
        "participants": participants, "loss": 2.5, "isolated": False,
    }  # fmt: skip
    journal.write("stop", reason='two\nlines, "quoted" \N{HONEYBEE}')
    assert lines_of(journal)[1]["reason"] == 'two\nlines, "quoted" \N{HONEYBEE}'
    journal.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_becomes_null(tmp_path: Path, value: float) -> None:
    journal = Journal(tmp_path, RUN_ID)
    journal.write("validation", loss=value, outer_step=1)
    (line,) = lines_of(journal)
    assert line["loss"] is None
    assert line["outer_step"] == 1
    journal.close()


def test_a_restarted_peer_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for step in (1, 2):
        journal = Journal(tmp_path, RUN_ID)
        journal.write("commit", outer_step=step)
        journal.close()
    assert [line["outer_step"] for line in lines_of(journal)] == [1, 2]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    (tmp_path / "taken" / "journal.jsonl").mkdir(parents=True)
    for folder in (occupied, occupied / "below", tmp_path / "taken"):
        with pytest.raises(StateError, match="cannot be written") as caught:
            Journal(folder, RUN_ID)
        assert str(caught.value).startswith(f"data_dir {folder}: ")
        assert "--data-dir" in str(caught.value)
        assert caught.value.exit_code is ExitCode.STATE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full device is Linux's")
def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").symlink_to("/dev/full")
    journal = Journal(tmp_path, RUN_ID)
    with pytest.raises(StateError, match=r"journal.jsonl: cannot be written \(No space left on device\); free some"):
        journal.write("commit", outer_step=1)
    journal.close()
