"""Agreement: peers as processes commit the same outer steps bit for bit, though one is killed and another joins."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from safetensors import safe_open

from tests.processes import START_SECONDS, House, Json, Peer, manifest, running, until, write_corpus

OUTER_STEPS = 30
JOINED_AFTER = 5
KILLED_AFTER = 10
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "gradients": ("gradients", {}),
    "updates": ("updates", {}),
    "overlapped": ("updates", {"overlap": 1, "codec": "sparse", "keep_one_in": 4, "residual": "local"}),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("agreement")) as house:
        house.bootstrap("bootstrap")
        yield house


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
def test_four_peers_agree_though_one_is_killed_and_one_joins(house: House, mode: str) -> None:
    average, rules = MODES[mode]
    run = manifest(write_corpus(house.folder / "corpus.txt"), average, **rules)
    bootstrap = house.programs[0]
    maddrs = bootstrap.maddrs  # type: ignore[attr-defined]
    names = ["first", "second", "third", "victim", "newcomer"]
    flags = ["--max-outer-steps", str(OUTER_STEPS)]
    peers = {name: house.hold(f"{mode}-{name}", run, *flags, initial_peers=maddrs) for name in names}
    victim, newcomer = peers["victim"], peers["newcomer"]
    survivors = [peers["first"], peers["second"], peers["third"]]
    for peer in peers.values():
        peer.prepare()
    for peer in (*survivors, victim):
        peer.release()
    victim.commits_until(JOINED_AFTER)
    newcomer.release().hear("peer started")
    victim.commits_until(KILLED_AFTER)
    # From here on every phase is some milliseconds: where exactly it dies differs from run to run.
    victim_id = str(victim.phase_is("averaging")["peer_id"])
    killed_at = time.time()
    victim.signal(signal.SIGKILL)
    until(lambda: not victim.p2pds, 5, f"the p2pd of the killed peer ends: {victim.p2pds}")

    for peer in (*survivors, newcomer):
        assert peer.wait(START_SECONDS) == 0, peer.words
    again = _first_commits_without(victim_id, killed_at, survivors)
    print(f"\n{mode}: killed at step {victim.outer_step}; the others commit again after {again:.2f} s")
    _check_digests([*survivors, victim, newcomer])
    _check_validations([*survivors, newcomer])
    for peer in survivors:
        _check_continuity(peer, 0)
    _check_newcomer(newcomer)
    assert {_saved(peer) for peer in (*survivors, newcomer)} == {_saved(newcomer)}
    assert not any(running(peer.folder) for peer in peers.values())


def _first_commits_without(victim: str, killed_at: float, survivors: Sequence[Peer]) -> float:
    """Seconds from the kill until a survivor committed an outer step in which the victim had no part."""
    times = [
        event["time"] - killed_at
        for peer in survivors
        for event in peer.events("commit")
        if event["time"] > killed_at and victim not in event["participants"]
    ]
    return min(times)


def _check_digests(peers: Sequence[Peer]) -> None:
    """Whatever any peer wrote of an outer step, all wrote the same."""
    digests: dict[int, set[str]] = defaultdict(set)
    participants: dict[int, set[tuple[tuple[str, int], ...]]] = defaultdict(set)
    for peer in peers:
        for event in peer.journal:
            digests[event["outer_step"]].add(event["digest"])
        for event in peer.events("commit"):
            participants[event["outer_step"]].add(tuple(sorted(event["participants"].items())))
    assert {step: found for step, found in digests.items() if len(found) > 1} == {}
    assert {step: found for step, found in participants.items() if len(found) > 1} == {}
    assert set(range(1, OUTER_STEPS + 1)) <= set(digests)


def _check_validations(peers: Sequence[Peer]) -> None:
    losses: dict[int, set[float]] = defaultdict(set)
    for peer in peers:
        for event in peer.events("validation"):
            losses[event["outer_step"]].add(event["loss"])
    assert {step: found for step, found in losses.items() if len(found) > 1} == {}
    assert set(losses) >= {*range(5, OUTER_STEPS + 1, 5)}
    first, last = losses[min(losses)].pop(), losses[OUTER_STEPS].pop()
    assert last < first


def _check_continuity(peer: Peer, start: int, digest: str | None = None) -> None:
    """Every outer step from ``start`` to the end, each on the one before; a download may bridge what was missed."""
    for event in peer.journal:
        if event["event"] == "download":
            assert event["outer_step"] > start
        elif event["event"] == "commit":
            assert event["outer_step"] == start + 1, peer.words
            assert digest in (None, event["previous"])
        else:  # validation, stop: they say where the peer is
            assert event["outer_step"] == start
        start, digest = event["outer_step"], event["digest"]
    assert start == OUTER_STEPS


def _check_newcomer(newcomer: Peer) -> None:
    joined: Json = newcomer.journal[0]
    assert joined["event"] == "download"
    assert joined["outer_step"] >= JOINED_AFTER
    _check_continuity(newcomer, 0)
    commits = newcomer.events("commit")
    assert commits, "it joined only when all was over"
    newcomer_id = newcomer.hear("peer started")["peer_id"]
    for commit in commits:
        assert newcomer_id in commit["participants"]


def _saved(peer: Peer) -> tuple[str, str]:
    with safe_open(peer.checkpoints[0], "pt") as file:
        metadata = file.metadata()
    assert metadata["outer_step"] == str(OUTER_STEPS)
    return metadata["run_id"], metadata["digest"]
