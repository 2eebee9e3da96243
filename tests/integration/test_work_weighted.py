"""Work counts by examples: in a swarm with a target a slow peer brings what it has, and nobody waits for more."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from peer import daemon
from peer.training import Trainer
from tests.hive import check_agreement
from tests.processes import COMMIT_SECONDS, PEER, House, Peer, manifest, until, write_corpus

BATCH_SIZE, TARGET = 2, 80  # examples: of an inner step, as in the manifest of all tests, and of an outer step
CALLED = 3  # outer steps that the target called, after which we have seen enough
# An inner step computes for some milliseconds and then rests, so that two cores do not decide who is slow.
FAST_SECONDS, SLOW_SECONDS = 0.04, 0.2
NEVER_SECONDS = 600.0
FP16_BYTES = 2


def pace(seconds: float) -> None:
    """Makes this process, which is about to become a peer, take so long for an inner step."""

    class Paced(Trainer):
        def inner_step(self) -> float:
            began = time.monotonic()
            loss = super().inner_step()
            time.sleep(max(0.0, began + seconds - time.monotonic()))  # it waits for nothing: this is the work
            return loss

    daemon.Trainer = Paced  # type: ignore[attr-defined]  # the one that the daemon makes


class Fast(Peer):
    """A peer with a fast machine."""

    code = f"from tests.integration.test_work_weighted import pace; pace({FAST_SECONDS}); {PEER}"


class Slow(Peer):
    """A peer that takes five times as long for an inner step."""

    code = f"from tests.integration.test_work_weighted import pace; pace({SLOW_SECONDS}); {PEER}"


KINDS: Mapping[str, type[Peer]] = {"one": Fast, "two": Fast, "slow": Slow}


class Swarm:
    """Two fast peers and a slow one, all of which it takes for a commit."""

    def __init__(self, house: House):
        # Nothing but the target calls them: patience lasts longer than the test.
        corpus, company = write_corpus(house.folder / "corpus.txt"), len(KINDS)
        text = manifest(corpus, codec="int8", min_group_size=company, patience_seconds=NEVER_SECONDS)
        run = text.replace("inner_steps = 20", f"target_batch = {TARGET}")
        maddrs = house.bootstrap("bootstrap").maddrs
        self.peers = {name: kind(house.folder / name, run, initial_peers=maddrs) for name, kind in KINDS.items()}
        house.programs.extend(self.peers.values())
        for peer in self.peers.values():
            peer.prepare()
        for peer in self.peers.values():
            peer.release()
        started = {name: peer.hear("peer started") for name, peer in self.peers.items()}
        self.parameters = int(started["one"]["parameters"])
        self._names = {str(line["peer_id"]): name for name, line in started.items()}

    def shares(self, peer: Peer) -> dict[int, dict[str, int]]:
        """Outer step -> name -> examples, as this peer has committed it."""
        return {
            event["outer_step"]: {self._names[peer_id]: count for peer_id, count in event["participants"].items()}
            for event in peer.events("commit")
        }

    def called(self) -> list[dict[str, int]]:
        """The shares in outer steps that were called before any one peer had done the target alone.

        The first one is not: whoever is there first works on, target or not, until all have arrived. Nor is one before
        which they did not find to one leader at once.
        """
        found = [share for step, share in self.shares(self.peers["one"]).items() if step > 1]
        return [share for share in found if max(share.values()) < TARGET]

    def leave(self) -> None:
        """All at once, and in order."""
        for peer in self.peers.values():
            peer.signal(signal.SIGTERM)
        for peer in self.peers.values():
            assert peer.wait(30) == 0, peer.words


@pytest.mark.timeout(300)
def test_a_slow_peer_brings_what_it_has_once_the_swarm_has_done_the_target(tmp_path: Path) -> None:
    with House(tmp_path) as house:
        swarm = Swarm(house)
        peers = list(swarm.peers.values())
        until(lambda: len(swarm.called()) >= CALLED, COMMIT_SECONDS, "the target calls", peers)
        swarm.leave()
        for share in swarm.called():
            assert 0 < share["slow"] < min(share["one"], share["two"]), share
        for peer in peers:
            work = 0
            for event, share in zip(peer.events("commit"), swarm.shares(peer).values(), strict=True):
                assert set(share) == set(KINDS)
                assert sum(share.values()) >= TARGET, share
                assert all(examples > 0 and examples % BATCH_SIZE == 0 for examples in share.values()), share
                work += sum(share.values())
                assert event["work"] == work
            assert swarm.shares(peer).items() <= swarm.shares(max(peers, key=lambda one: one.outer_step)).items()
        check_agreement(peers)
        _check_bytes(swarm)


def _check_bytes(swarm: Swarm) -> None:
    """int8 went over the streams: all else included, it was less than the values alone are in fp16."""
    peers = swarm.peers.values()
    sent = sum(peer.events("stop")[0]["bytes_sent"] for peer in peers)
    rounds = max(peer.outer_step for peer in peers)
    values = 2 * (len(peers) - 1) * swarm.parameters * rounds  # each to whoever reduces it, and its mean to all others
    print(f"\nexamples: {swarm.called()}; {sent / values:.2f} bytes sent for each value")
    assert values < sent < FP16_BYTES * values
