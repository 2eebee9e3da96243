"""A peer that was away comes back: frozen, cut off, restarted with no bootstrap left. And a copied key is noticed."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from swarm.errors import ExitCode
from tests.processes import COMMIT_SECONDS, START_SECONDS, Bootstrap, House, Peer, manifest, until, write_corpus

AWAY_SECONDS = {"suspended": 35.0, "cut off": 12.0}  # longer than a record lives, and than silence is borne
TWIN_SECONDS = 30.0


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("returns")) as house:
        write_corpus(house.folder / "corpus.txt")
        yield house


@pytest.fixture(scope="module")
def run(house: House) -> str:
    return manifest(house.folder / "corpus.txt")


@pytest.fixture(scope="module")
def bootstrap(house: House) -> Bootstrap:
    return house.bootstrap("bootstrap")


@pytest.fixture(scope="module")
def peers(house: House, run: str, bootstrap: Bootstrap) -> list[Peer]:
    """Three that train; the last of them has the adventures."""
    peers = [house.hold(name, run, initial_peers=bootstrap.maddrs) for name in ("one", "two", "three")]
    for peer in peers:
        peer.prepare()
    for peer in peers:
        peer.release()
    for peer in peers:
        peer.commits_until(1)
    return peers


@pytest.mark.parametrize("how", ["suspended", "cut off"])
def test_whoever_was_away_catches_up_and_goes_on(peers: list[Peer], how: str) -> None:
    """Suspended: all of it stops, as a laptop's lid does. Cut off: its p2pd alone stops, and it trains on."""
    away = peers[-1]
    stopped = away.p2pds if how == "cut off" else [away.process.pid, *away.p2pds]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        began, before = time.monotonic(), peers[0].outer_step

        def long_enough() -> bool:
            return time.monotonic() - began > AWAY_SECONDS[how] and peers[0].outer_step > before

        # Where it was in a round, the others bear its silence, one after the other that it kept waiting.
        until(long_enough, AWAY_SECONDS[how] + COMMIT_SECONDS, "the others go on without it", peers[:-1])
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
    swarm_step, back = peers[0].outer_step, time.monotonic()
    away.commits_until(swarm_step + 1)
    seconds = time.monotonic() - back
    print(f"\n{how} for {AWAY_SECONDS[how]:.0f} s: it commits with the others {seconds:.1f} s after it is back")
    digests = {event["outer_step"]: event["digest"] for event in peers[0].events("commit")}
    for event in away.events("commit"):
        assert digests.get(event["outer_step"], event["digest"]) == event["digest"]


def test_a_copied_key_is_noticed_and_whoever_came_second_ends(
    house: House, run: str, bootstrap: Bootstrap, peers: list[Peer]
) -> None:
    original = peers[-1]
    key = house.folder / "copied.key"
    shutil.copy(original.folder / "identity.key", key)
    copy = house.peer("copy", run, "--identity", str(key), initial_peers=bootstrap.maddrs)
    copy.hear("peer started")
    began = time.monotonic()
    assert copy.wait(TWIN_SECONDS) == ExitCode.IDENTITY, copy.words
    print(f"\nthe second peer with one key ended {time.monotonic() - began:.1f} s after its start")
    lines = [line for line in copy.err.read_text().splitlines() if not line.startswith("{")]
    assert lines == [
        "waggle: identity: another peer has lived with this key for longer, on another machine; "
        "give this one its own: move the identity file away, or choose another --identity"
    ]
    original.hear("a second peer has started with our identity, on another machine; it will be told to end", 10)
    original.commits_until(original.outer_step + 2)


def test_with_every_bootstrap_gone_a_peer_finds_those_it_met(
    house: House, run: str, bootstrap: Bootstrap, peers: list[Peer]
) -> None:
    maddrs, leaving = bootstrap.maddrs, peers[-1]
    assert (leaving.folder / "peers.json").exists()
    bootstrap.kill()
    leaving.signal(signal.SIGTERM)
    assert leaving.wait(30) == ExitCode.OK, leaving.words
    again = house.peer("three-again", run, "--data-dir", str(leaving.folder), initial_peers=maddrs)
    again.hear("peer started")
    again.hear("no initial peer answers, but peers met before do", COMMIT_SECONDS)
    again.hear("committed", COMMIT_SECONDS)
    assert again.status["peer_id"] == leaving.hear("peer started")["peer_id"]
    assert again.status["peers"] == 2


def test_a_killed_peer_is_not_taken_for_its_own_twin(house: House, run: str, peers: list[Peer]) -> None:
    """Its last record is still there when it starts again at once: that lives for 30 seconds."""
    killed = next(one for one in reversed(house.programs) if isinstance(one, Peer) and one.process.poll() is None)
    assert killed.name.startswith("three")
    killed.signal(signal.SIGKILL)
    killed.wait(START_SECONDS)
    again = house.peer("three-once-more", run, "--data-dir", str(peers[-1].folder))
    again.hear("peer started")
    again.hear("committed", COMMIT_SECONDS)
    step = again.status["outer_step"]
    until(lambda: again.status["outer_step"] > step + 2, COMMIT_SECONDS, "it goes on", [again])
    assert again.said("a second peer has started with our identity, on another machine; it will be told to end") is None
