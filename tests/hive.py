"""A swarm of which one peer after the other is killed where a seed says, and started again: what came of each kill."""

from __future__ import annotations

import json
import random
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch

from peer.layout import Layout
from peer.optimizers import outer_optimizer
from peer.state.checkpoints import run_folder
from peer.state.files import load_checkpoint
from peer.tasks import build_model
from swarm.files import WRITING
from swarm.manifest import Manifest
from tests.processes import COMMIT_SECONDS, START_SECONDS, House, Peer, manifest, running, until, write_corpus
from tests.strikes import POINTS, MortalPeer, Order

NAMES = ("one", "two", "three", "four")
AFTERWARDS_SECONDS = 5.0
"""What a killed peer's p2pd may take to be gone."""
_FLAGS = ("--checkpoint-every", "1", "--checkpoints-kept", "3")
_MISSED = 2  # outer steps, after which a peer that was away has something to download
_TRIES = 3


@dataclass(frozen=True)
class Strike:
    """Whom to kill, and where."""

    peer: str
    order: Order

    @classmethod
    def of(cls, seed: int) -> Strike:
        """Any ``len(POINTS)`` seeds in a row strike at every point once."""
        turn, place = divmod(seed, len(POINTS))
        point = random.Random(turn).sample(POINTS, len(POINTS))[place]
        chance = random.Random(seed)
        kind, _, name = point.partition(" ")
        often = 15 if name == "training" else 3 if kind in ("stage", "checkpoint") or name == "averaging" else 1
        return cls(chance.choice(NAMES), Order(point, chance.randint(1, often)))


@dataclass(frozen=True)
class Kill:
    """What came of a strike that went as it should. Seconds count from the kill, or from the start after it.

    survivors_seconds: until all of them had committed an outer step in which the killed peer had no part.
    returned_seconds: until the killed peer had committed again, of which it took started_seconds to start.
    """

    strike: Strike
    outer_step: int
    p2pd_seconds: float
    survivors_seconds: float
    started_seconds: float
    returned_seconds: float


class Hive:
    """A bootstrap and four peers that write a checkpoint after every outer step, in a house of their own."""

    def __init__(self, house: House, average: str = "updates"):
        self._house = house
        self._text = manifest(write_corpus(house.folder / "corpus.txt"), average)
        self._manifest = Manifest.from_toml(self._text)
        torch.manual_seed(0)
        self._layout = Layout.of(build_model(self._manifest))
        self._slots = tuple(sorted(outer_optimizer(self._manifest.outer).slots))
        self._maddrs = house.bootstrap("bootstrap").maddrs
        self.peers: dict[str, MortalPeer] = {name: self._hold(name) for name in NAMES}

    def begin(self) -> None:
        """Lets them train, until all have a checkpoint."""
        for peer in self.peers.values():
            peer.prepare()
        for peer in self.peers.values():
            peer.release()
        for peer in self.peers.values():
            peer.commits_until(2)

    def _hold(self, name: str) -> MortalPeer:
        peer = MortalPeer(self._house.folder / name, self._text, *_FLAGS, initial_peers=self._maddrs)
        self._house.programs.append(peer)
        return peer

    # -- one strike ------------------------------------------------------------------------------------------

    def strike(self, strike: Strike) -> Kill:
        """Kills, looks, starts again, looks. Raises AssertionError: what is not as it should be."""
        peer_id = str(self.peers[strike.peer].hear("peer started")["peer_id"])
        others = [peer for name, peer in self.peers.items() if name != strike.peer]
        killed = self._kill(strike, others)
        died_at = float(killed.striker.told()["time"])
        until(lambda: not running(killed.folder), AFTERWARDS_SECONDS, f"nothing is left: {running(killed.folder)}")
        p2pd_seconds = time.time() - died_at
        outer_step, newest = killed.outer_step, self._check_files(killed)
        what = f"the others go on without {strike}"
        survivors = [
            until(partial(_commits, one, died_at, without=peer_id), COMMIT_SECONDS, what, others)[0] for one in others
        ]
        began = time.time()
        again = self.peers[strike.peer] = self._hold(strike.peer)
        assert again.release().hear("peer started")["peer_id"] == peer_id
        started = time.time()
        returned = until(
            partial(_commits, again, began), COMMIT_SECONDS, f"it returns after {strike}", [again, *others]
        )
        assert again.hear("resumed")["outer_step"] == newest, again.words
        assert not again.said("a checkpoint is set aside"), again.words
        for peer in others:
            assert peer.process.poll() is None, peer.words
        check_agreement(self.peers.values())
        return Kill(
            strike, outer_step, p2pd_seconds, max(survivors) - died_at, started - began, returned[0] - began
        )  # fmt: skip

    def _kill(self, strike: Strike, others: Sequence[Peer]) -> MortalPeer:
        """Sees to it that the peer comes to the point, and out; the peer that died there."""
        point = strike.order.point
        if point in ("phase joining", "phase downloading"):
            self._send_away(strike.peer, others)
        victim = self.peers[strike.peer]
        victim.striker.give(strike.order)
        if not victim.released:
            victim.release()
        code = self._ask_to_leave(strike.peer) if point.startswith("promise") else victim.wait(START_SECONDS)
        victim = self.peers[strike.peer]
        assert code == -signal.SIGKILL, victim.words
        assert victim.striker.told()["point"] == point
        return victim

    def _ask_to_leave(self, name: str) -> int:
        """SIGTERM; again in another life when it had just voted, for then it makes no promise. The exit code."""
        for _ in range(_TRIES):
            peer = self.peers[name]
            peer.phase_is("training")
            peer.signal(signal.SIGTERM)
            if code := peer.wait(START_SECONDS):
                return code
            began, again = time.time(), self._hold(name)
            self.peers[name] = again
            again.release()
            until(partial(_commits, again, began), COMMIT_SECONDS, f"{name} commits again", [again])
        return 0

    def _send_away(self, name: str, others: Sequence[Peer]) -> None:
        """Kills a peer, lets the others go on, and holds the next life of it ready."""
        peer = self.peers[name]
        peer.kill()
        for one in others:
            one.commits_until(peer.outer_step + _MISSED)
        self.peers[name] = self._hold(name)

    # -- what must be so afterwards --------------------------------------------------------------------------

    def _check_files(self, peer: Peer) -> int:
        """Every file of a killed peer is whole, or says by its name that it is not; the newest checkpoint's step."""
        steps = []
        for path in (*peer.folder.glob("*.json"), *run_folder(peer.folder, self._manifest.run_id).iterdir()):
            if path.suffix == ".safetensors":
                found = load_checkpoint(path, self._manifest.run_id, self._layout, self._slots)
                steps.append(found.state.outer_step)
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            else:
                assert path.suffix == WRITING, f"{path} is not one of ours"
        for line in (peer.folder / "journal.jsonl").read_text(encoding="utf-8").splitlines():
            json.loads(line)
        assert steps, f"{peer.name} has no checkpoint"
        return max(steps)

    def undisturbed_seconds(self) -> list[float]:
        """Between commits of the first peer, so far."""
        times = [event["time"] for event in self.peers[NAMES[0]].events("commit")]
        return [after - before for before, after in pairwise(times)]


def _commits(peer: Peer, since: float, without: str = "") -> list[float]:
    """When it committed after ``since``, in Unix time, outer steps in which ``without`` had no part."""
    return [
        event["time"]
        for event in peer.events("commit")
        if event["time"] > since and without not in event["participants"]
    ]


def check_agreement(peers: Iterable[Peer]) -> None:
    """No two peers, in any of their lives, ever wrote of different states at one outer step."""
    digests: dict[int, set[str]] = defaultdict(set)
    for peer in peers:
        for event in peer.journal:
            digests[event["outer_step"]].add(event["digest"])
            assert not event.get("isolated"), f"{peer.name}: {event}"
    assert {step: found for step, found in digests.items() if len(found) > 1} == {}
