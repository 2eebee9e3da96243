"""The introduction of a bootstrap is a settings file of a peer: written whole, or an error that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from bootstrap.introduction import write_introduction
from peer.config import PeerSettings
from swarm.errors import StateError

ID = "12D3KooWDJFz5htzdC8vG3QphL61G1pMsxb31qxgqpRBQABUcKBN"
MADDRS = [f"/dns4/bootstrap/tcp/31337/p2p/{ID}", f"/ip6/2001:db8::1/udp/31337/quic-v1/p2p/{ID}"]


def test_a_peer_reads_it_as_its_settings(tmp_path: Path) -> None:
    path = tmp_path / "new" / "introduction.toml"
    write_introduction(path, MADDRS)
    assert PeerSettings.load(run="run.toml", config=str(path)).initial_peers == MADDRS
    assert path.stat().st_mode & 0o777 == 0o644, "peers may run as other users"


def test_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "introduction.toml"
    write_introduction(path, MADDRS)
    write_introduction(path, MADDRS[1:])
    assert PeerSettings.load(run="run.toml", config=str(path)).initial_peers == MADDRS[1:]
    assert list(tmp_path.iterdir()) == [path]


def test_where_it_cannot_be_written_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "introduction.toml"
    (path / "a-folder-in-its-place").mkdir(parents=True)
    with pytest.raises(StateError, match=r"introduction .*introduction\.toml: cannot be written .*--introduction"):
        write_introduction(path, MADDRS)
    assert list(tmp_path.iterdir()) == [path]
