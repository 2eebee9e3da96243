"""What a demo tells about its peers is what their journals say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarm.errors import StateError
from swarm.manifest import Manifest
from waggle.demo import MANIFEST
from waggle.report import draw_loss, read_journals, render_progress, summary

STOP = {"event": "stop", "peer_id": "p", "outer_step": 2, "bytes_sent": 5, "bytes_received": 6, "processes": 2}


def _journal(folder: Path, digests: list[str], *, stop: bool = True) -> Path:
    folder.mkdir()
    events = [{"event": "validation", "outer_step": 0, "digest": "0", "loss": 4.0}]
    for step, digest in enumerate(digests, start=1):
        events.append({"event": "commit", "outer_step": step, "digest": digest, "loss": 3.0 / step})
    events.append({"event": "validation", "outer_step": len(digests), "digest": digests[-1], "loss": 2.0})
    if stop:
        events.append({**STOP, "digest": digests[-1]})
    (folder / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def test_equal_digests_are_agreement(tmp_path: Path) -> None:
    folders = [_journal(tmp_path / name, ["a", "b"]) for name in ("one", "two")]
    report = read_journals(Manifest.load(MANIFEST), folders)
    assert report.agreed
    told = summary(report, 12.34)
    assert (told["loss_first"], told["loss_last"], told["outer_steps"], told["seconds"]) == (4.0, 2.0, 2, 12.3)
    assert [peer["bytes_sent"] for peer in told["peers"]] == [5, 5]
    assert draw_loss(report, tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_one_different_digest_is_no_agreement(tmp_path: Path) -> None:
    folders = [_journal(tmp_path / "one", ["a", "b"]), _journal(tmp_path / "two", ["x", "b"])]
    assert not read_journals(Manifest.load(MANIFEST), folders).agreed


def test_another_last_state_is_no_agreement(tmp_path: Path) -> None:
    folders = [_journal(tmp_path / "one", ["a"]), _journal(tmp_path / "two", ["a", "b"])]
    assert not read_journals(Manifest.load(MANIFEST), folders).agreed


def test_a_peer_that_did_not_finish_is_named(tmp_path: Path) -> None:
    folder = _journal(tmp_path / "one", ["a"], stop=False)
    with pytest.raises(StateError, match="one"):
        read_journals(Manifest.load(MANIFEST), [folder])


def test_the_table_has_a_row_for_a_peer_that_only_starts() -> None:
    assert render_progress({"peer-0": {}, "peer-1": {}}).row_count == 2
