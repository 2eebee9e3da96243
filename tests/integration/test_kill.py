"""SIGKILL, wherever it strikes: the others go on, no file is half-written, and the killed peer comes back as itself.

`bench/chaos.py` strikes at every point; here is one of each kind, and all peers at once.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.hive import AFTERWARDS_SECONDS, NAMES, Hive, Strike
from tests.processes import COMMIT_SECONDS, House, Json, Peer, manifest, running, until, write_corpus
from tests.strikes import POINTS, Order

STRIKES = [
    Strike("two", Order("checkpoint half", 2)),
    Strike("four", Order("stage voted", 3)),
    Strike("one", Order("promise half")),
    Strike("two", Order("phase downloading")),
]
ISOLATION_SECONDS = 5.0


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hive]:
    with House(tmp_path_factory.mktemp("kill")) as house:
        hive = Hive(house)
        hive.begin()
        yield hive


@pytest.mark.parametrize("strike", STRIKES, ids=lambda strike: strike.order.point.replace(" ", "-"))
def test_a_killed_peer_costs_seconds_and_comes_back(hive: Hive, strike: Strike) -> None:
    kill = hive.strike(strike)
    print(
        f"\n{strike.order.point}: the others commit again after {kill.survivors_seconds:.1f} s; it starts in "
        f"{kill.started_seconds:.1f} s and commits {kill.returned_seconds:.1f} s after its start"
    )


def test_every_point_has_its_share_of_seeds() -> None:
    count = len(POINTS)
    for turn in range(3):
        struck = [Strike.of(seed).order.point for seed in range(turn * count, (turn + 1) * count)]
        assert sorted(struck) == sorted(POINTS)
    assert {Strike.of(seed).peer for seed in range(count)} == set(NAMES)


class Swarm:
    """Three peers, all of which can be killed and started again; nobody remembers then what it voted for."""

    def __init__(self, house: House):
        corpus = write_corpus(house.folder / "corpus.txt")
        self._house, self._run = house, manifest(corpus, isolation_seconds=ISOLATION_SECONDS)
        self._maddrs = house.bootstrap("bootstrap").maddrs
        self.peers: list[Peer] = []

    def start(self) -> None:
        flags = ("--checkpoint-every", "1")
        self.peers = [self._house.hold(name, self._run, *flags, initial_peers=self._maddrs) for name in NAMES[:3]]
        for peer in self.peers:
            peer.prepare()
        for peer in self.peers:
            peer.release()

    def kill(self) -> None:
        for peer in self.peers:
            peer.signal(signal.SIGKILL)
        for peer in self.peers:
            assert peer.wait(10) == -signal.SIGKILL
        until(lambda: not any(running(peer.folder) for peer in self.peers), AFTERWARDS_SECONDS, "nothing is left")


@pytest.mark.timeout(300)
def test_all_killed_at_once_go_on_from_one_state(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        swarm = Swarm(house)
        swarm.start()
        for peer in swarm.peers:
            peer.commits_until(3)
        swarm.kill()
        before = {peer.name: len(peer.journal) for peer in swarm.peers}
        swarm.start()

        def second_life(peer: Peer, event: str) -> list[Json]:
            return [line for line in peer.journal[before[peer.name] :] if line["event"] == event]

        def third_commit(peer: Peer) -> bool:
            return len(second_life(peer, "commit")) >= 3

        for peer in swarm.peers:
            until(partial(third_commit, peer), COMMIT_SECONDS, "it goes on", swarm.peers)
        resumed = [second_life(peer, "resume")[0] for peer in swarm.peers]
        newest = max(resumed, key=lambda event: int(event["outer_step"]))
        commits = [event for peer in swarm.peers for event in second_life(peer, "commit")]
        first = min(commits, key=lambda event: int(event["outer_step"]))
        # They go on from the newest checkpoint that any of them has, when nobody who might know better can still come.
        assert (first["previous"], first["outer_step"]) == (newest["digest"], newest["outer_step"] + 1)
        assert first["isolated"]
        assert first["time"] - min(event["time"] for event in resumed) >= ISOLATION_SECONDS
        digests = {event["outer_step"]: event["digest"] for event in commits}
        assert all(digests[event["outer_step"]] == event["digest"] for event in commits), "two states of one outer step"
        print(f"\nall killed at once: they commit again {first['time'] - resumed[0]['time']:.1f} s after their start")
