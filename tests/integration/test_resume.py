"""Stopped and started again: a peer, or the whole swarm, goes on as if nothing had been."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.errors import ExitCode
from tests.processes import START_SECONDS, House, Json, Peer, manifest, write_corpus

OUTER_STEPS, STOP_EVERY = 15, 5
NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("resume")) as house:
        write_corpus(house.folder / "corpus.txt")
        house.bootstrap("bootstrap")
        yield house


def maddrs(house: House) -> list[str]:
    return house.programs[0].maddrs  # type: ignore[attr-defined, no-any-return]


def train(house: House, prefix: str, run: str, until: int) -> list[Peer]:
    """Three peers commit until this outer step and leave."""
    return house.train({f"{prefix}-{name}": () for name in NAMES}, run, until, maddrs(house))


def complete(found: dict[int, str]) -> bool:
    return sorted(found) == list(range(1, OUTER_STEPS + 1))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("average", ["updates", "gradients"])
def test_a_run_stopped_at_every_fifth_step_equals_one_never_stopped(house: House, average: str) -> None:
    # All remember what they voted for: nobody waits out the isolation time, which would outlast this test.
    run = manifest(house.folder / "corpus.txt", average, inner_steps=5, min_group_size=3, isolation_seconds=3600)
    never = train(house, f"{average}-never", run, OUTER_STEPS)
    for until in range(STOP_EVERY, OUTER_STEPS + 1, STOP_EVERY):
        stopped = train(house, f"{average}-stopped", run, until)
        for peer in stopped:
            assert peer.outer_step == until
            resumed = [event["outer_step"] for event in peer.events("resume")]
            assert resumed == list(range(STOP_EVERY, until, STOP_EVERY))
    assert complete(never[0].digests)
    for peer in (*never, *stopped):
        assert peer.digests == never[0].digests, peer.name


@pytest.mark.timeout(300)
def test_a_peer_that_was_away_downloads_what_is_missing(house: House) -> None:
    run = manifest(house.folder / "corpus.txt", inner_steps=200)
    peers = [house.peer(f"away-{name}", run, initial_peers=maddrs(house)) for name in NAMES]
    leaver = peers[2]
    leaver.commits_until(2)
    leaver.signal(signal.SIGTERM)
    assert leaver.wait(30) == 0, leaver.words
    left_at, peer_id = leaver.outer_step, leaver.hear("peer started")["peer_id"]
    peers[0].commits_until(left_at + 3)
    again = house.peer(f"away-{NAMES[2]}", run, initial_peers=maddrs(house))
    again.commits_until(left_at + 4)
    assert again.hear("resumed")["outer_step"] == left_at
    assert again.hear("peer started")["peer_id"] == peer_id
    # A round may be under way during the first one.
    downloads = [event for event in again.events("download") if event["outer_step"] > left_at]
    assert downloads[0]["outer_step"] >= left_at + 3
    assert len(downloads) <= 2
    known = {event["outer_step"]: event["digest"] for event in peers[0].journal if "digest" in event}
    for event in again.events("commit"):
        assert known.get(event["outer_step"], event["digest"]) == event["digest"]
    for peer in (*peers[:2], again):
        peer.signal(signal.SIGTERM)
    for peer in (*peers[:2], again):
        assert peer.wait(30) == 0, peer.words


def alone(house: House, name: str, until: int, **rules: object) -> Peer:
    """A swarm of one. Where it has lost its last checkpoint it does not know what it voted for, hence the isolation."""
    run = manifest(house.folder / "corpus.txt", inner_steps=5, min_group_size=1, isolation_seconds=2, **rules)
    peer = house.peer(name, run, "--max-outer-steps", str(until), "--checkpoint-every", "1")
    assert peer.wait(START_SECONDS) == 0, peer.words
    return peer


def set_aside(peer: Peer) -> list[Json]:
    return [line for line in peer.logs if line.get("event") == "a checkpoint is set aside"]


@pytest.mark.timeout(300)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(house: House) -> None:
    peer = alone(house, "damaged", 4)
    newest, older = peer.checkpoints
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    unfinished = older.with_name("step-0000000007.safetensors.writing")
    unfinished.write_bytes(b"the power went")
    again = alone(house, "damaged", 6)
    assert again.hear("resumed")["outer_step"] == 3
    [line] = set_aside(again)
    assert "do not match" in line["why"]
    assert newest.with_name(f"{newest.name}.set-aside").read_bytes() == content
    assert not unfinished.exists()


@pytest.mark.timeout(300)
def test_a_foreign_checkpoint_is_set_aside(house: House) -> None:
    peer = alone(house, "host", 2)
    other = alone(house, "guest", 3, max_norm_ratio=19.0)  # another run, for it has another manifest
    [mine, *_], [theirs, *_] = peer.checkpoints, other.checkpoints
    foreign = mine.with_name("step-0000000099.safetensors")
    shutil.copy(theirs, foreign)
    again = alone(house, "host", 3)
    assert again.hear("resumed")["outer_step"] == 2
    [line] = set_aside(again)
    assert "a state of tiny@" in line["why"]
    assert foreign.with_name(f"{foreign.name}.set-aside").read_bytes() == theirs.read_bytes()


@pytest.mark.timeout(300)
def test_a_checkpoint_that_cannot_be_written_ends_the_peer(house: House, tmp_path: Path) -> None:
    run = manifest(house.folder / "corpus.txt", inner_steps=5, min_group_size=1)
    folder = house.folder / "unwritable"
    folder.mkdir()
    (folder / "checkpoints").write_text("in the way")
    peer = house.peer("unwritable", run)
    assert peer.wait(START_SECONDS) == ExitCode.STATE, peer.words
    lines = [line for line in peer.err.read_text().splitlines() if not line.startswith("{")]
    assert len(lines) == 1
    assert "checkpoints" in lines[0] and "--data-dir" in lines[0]
