"""Peers met lately, on disk: whole, bounded, and never a reason to fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peer.acquaintances import ASKED_PEERS, MOST_PEERS, Acquaintances
from swarm.identity import Identity
from tests.chain import PEERS, RUN_ID

MADDRS = ["/ip4/10.0.0.1/tcp/31337", "/ip4/10.0.0.1/udp/31337/quic-v1"]


class Now:
    """A clock that a test turns."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_another_life_of_the_peer_knows_them(tmp_path: Path) -> None:
    now = Now()
    first = Acquaintances(tmp_path, RUN_ID, now)
    assert first.latest() == {}
    first.met({PEERS[0]: MADDRS})
    now.seconds += 1
    first.met({PEERS[1]: MADDRS[:1]})
    assert list(Acquaintances(tmp_path, RUN_ID).latest().items()) == [(PEERS[1], MADDRS[:1]), (PEERS[0], MADDRS)]
    assert [path.name for path in tmp_path.iterdir()] == ["peers.json"]


def test_another_run_does_not(tmp_path: Path) -> None:
    Acquaintances(tmp_path, RUN_ID).met({PEERS[0]: MADDRS})
    assert Acquaintances(tmp_path, "other@fedcba9876543210").latest() == {}
    assert Acquaintances(tmp_path, RUN_ID).latest() == {PEERS[0]: MADDRS}


def test_it_is_bounded_and_the_latest_stay(tmp_path: Path) -> None:
    now = Now()
    one = Acquaintances(tmp_path, RUN_ID, now)
    strangers = [Identity.load_or_create(tmp_path / "keys" / str(number)).peer_id for number in range(MOST_PEERS + 10)]
    for peer in strangers:
        now.seconds += 1
        one.met({peer: MADDRS})
    assert list(one.latest()) == strangers[::-1][:ASKED_PEERS]
    assert len(json.loads((tmp_path / "peers.json").read_text())["peers"]) == MOST_PEERS


def test_nothing_is_written_while_nothing_changes(tmp_path: Path) -> None:
    now = Now()
    one = Acquaintances(tmp_path, RUN_ID, now)
    one.met({PEERS[0]: MADDRS})
    one.path.unlink()
    now.seconds += 299
    one.met({PEERS[0]: MADDRS})
    one.met({})
    assert not one.path.exists()
    now.seconds += 2
    one.met({PEERS[0]: MADDRS})
    assert one.path.exists()
    one.path.unlink()
    one.met({PEERS[0]: MADDRS[:1]})
    assert Acquaintances(tmp_path, RUN_ID).latest() == {PEERS[0]: MADDRS[:1]}


def test_addresses_that_nobody_can_dial_are_not_kept(tmp_path: Path) -> None:
    one = Acquaintances(tmp_path, RUN_ID)
    one.met({PEERS[0]: ["/ip4/0.0.0.0/tcp/1", *MADDRS], PEERS[1]: ["nonsense"], PEERS[2]: []})
    assert one.latest() == {PEERS[0]: MADDRS}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00 not JSON",
        b'{"waggle":1,"run_id":"test@0123456789abcdef","peers":[',
        b'{"waggle":2,"run_id":"test@0123456789abcdef","peers":[]}',
        b'{"waggle":1,"run_id":"x","peers":[{"peer_id":"12D3KooW","maddrs":["/ip4/1.2.3.4/tpc/1"],"met":1}]}',
    ],
)
def test_a_corrupt_file_is_set_aside(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "peers.json").write_bytes(content)
    one = Acquaintances(tmp_path, RUN_ID)
    assert one.latest() == {}
    assert (tmp_path / "peers.json.corrupt").read_bytes() == content
    assert capfd.readouterr().out.count("set aside") == 1
    one.met({PEERS[0]: MADDRS})
    assert Acquaintances(tmp_path, RUN_ID).latest() == {PEERS[0]: MADDRS}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full device is Linux's")
def test_a_full_disk_is_told_and_no_reason_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "peers.writing").symlink_to("/dev/full")
    one = Acquaintances(tmp_path, RUN_ID)
    one.met({PEERS[0]: MADDRS})
    assert one.latest() == {PEERS[0]: MADDRS}
    assert "No space left on device" in capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
