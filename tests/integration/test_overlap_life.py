"""With ``overlap`` a peer may leave at any time, and come back: in the middle of a round, and of the work beside it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from peer import daemon
from peer.metrics import PeerMetrics
from peer.training import Trainer
from peer.values import Stage
from swarm.files import write_bytes
from tests.hive import check_agreement
from tests.processes import (
    COMMIT_SECONDS,
    PEER,
    START_SECONDS,
    Bootstrap,
    House,
    Json,
    Peer,
    manifest,
    running,
    until,
    write_corpus,
)

INNER_STEPS, BATCH_SIZE = 20, 2
FULL = INNER_STEPS * BATCH_SIZE  # examples of a whole contribution
LEAVE_SECONDS = 10.0
TOGETHER = 2  # outer steps without a peer that left, after which the others go on
BESIDE = "beside"
POINTS = (BESIDE, Stage.SCATTERED.value, Stage.VOTED.value)


class Obedient(Peer):
    """A peer that sends itself SIGTERM where it is told to: from outside it comes when most rounds are over."""

    code = f"from tests.integration.test_overlap_life import obey; obey(); {PEER}"

    def leave_at(self, point: str) -> None:
        """From now on: the next time it gets there."""
        write_bytes(self.folder / "order", point.encode())

    @property
    def told(self) -> Json:
        """What was so when it sent itself the signal; empty before."""
        note = self.folder / "note.json"
        return dict(json.loads(note.read_bytes())) if note.exists() else {}

    @property
    def peer_id(self) -> str:
        """Its id; waits for its start."""
        return str(self.hear("peer started")["peer_id"])


def obey() -> None:
    """Makes this process, which is about to become a peer, obey.

    It may be told to leave at a stage of a round, or when it has done an inner step while a round is under way.
    """
    folder = Path(sys.argv[sys.argv.index("--data-dir") + 1])
    order = folder / "order"

    def reached(point: str, **facts: object) -> None:
        if order.exists() and order.read_text() == point:
            order.unlink()
            write_bytes(folder / "note.json", json.dumps({"point": point, **facts}).encode())
            os.kill(os.getpid(), signal.SIGTERM)

    class ObedientTrainer(Trainer):
        def inner_step(self) -> float:
            loss = super().inner_step()
            if self._handed is not None:
                reached(BESIDE, ahead=self.examples)
            return loss

    class ObedientMetrics(PeerMetrics):
        async def reached(self, stage: Stage, outer_step: int) -> None:
            await super().reached(stage, outer_step)
            reached(stage.value)

    daemon.Trainer = ObedientTrainer  # type: ignore[attr-defined]  # those that the daemon makes
    daemon.PeerMetrics = ObedientMetrics  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("overlap")) as house:
        write_corpus(house.folder / "corpus.txt")
        yield house


@pytest.fixture(scope="module")
def bootstrap(house: House) -> Bootstrap:
    return house.bootstrap("bootstrap")


def overlapped(house: House, **rules: Any) -> str:
    return manifest(house.folder / "corpus.txt", overlap=1, inner_steps=INNER_STEPS, **rules)


def hold(house: House, bootstrap: Bootstrap, run: str, names: Iterable[str], *flags: str) -> dict[str, Obedient]:
    """Peers that are about to begin; the same names again are the same peers."""
    maddrs = bootstrap.maddrs
    peers = {name: Obedient(house.folder / name, run, *flags, initial_peers=maddrs) for name in names}
    house.programs.extend(peers.values())
    for peer in peers.values():
        peer.prepare()
    return peers


def gone(peer: Peer) -> None:
    """It leaves in order: by itself, with its last words said, and with nothing of it left."""
    assert peer.wait(LEAVE_SECONDS) == 0, peer.words
    assert not running(peer.folder)
    assert "Traceback" not in peer.err.read_text()
    assert not peer.said("leaving in the middle of something"), peer.words
    *_, before, last = peer.journal
    assert (last["event"], last["reason"]) == ("stop", "SIGTERM")
    assert (last["outer_step"], last["digest"]) == (before["outer_step"], before["digest"])


def saved(peer: Peer) -> Json:
    """Of its newest checkpoint, which is of where it was last: the facts of the local work in it."""
    with safe_open(peer.checkpoints[0], "pt") as file:
        metadata = file.metadata()
    last = peer.events("stop")[-1]
    assert (metadata["outer_step"], metadata["digest"]) == (str(last["outer_step"]), last["digest"])
    return dict(json.loads(metadata["local"]))


def check_links(peers: Iterable[Peer]) -> None:
    """Each of them committed every outer step at most once, on the one before; and all committed the same."""
    links: dict[int, set[tuple[Any, ...]]] = defaultdict(set)
    for peer in peers:
        commits = peer.events("commit")
        for event in commits:
            who = tuple(sorted(event["participants"].items()))
            links[event["outer_step"]].add((event["previous"], event["digest"], event["work"], who))
        for before, after in pairwise(commits):
            assert after["outer_step"] > before["outer_step"], peer.name
    assert {step: found for step, found in links.items() if len(found) > 1} == {}
    made = {step: next(iter(found)) for step, found in links.items()}
    for step in made.keys() - {1}:
        assert made[step][0] == made[step - 1][1], f"outer step {step} is not made on the one before"


# -- coming back -------------------------------------------------------------------------------------------------------

NAMES = ("three", "four", "five")
STOPPED_AFTER, OUTER_STEPS = 2, 7


@pytest.mark.timeout(300)
def test_a_swarm_that_was_stopped_goes_on_from_its_checkpoints(house: House, bootstrap: Bootstrap) -> None:
    run = overlapped(house, codec="int8", residual="feedback", min_group_size=len(NAMES))
    before = hold(house, bootstrap, run, NAMES)
    for peer in before.values():
        peer.release()
    head = _stopped(before)
    peers = hold(house, bootstrap, run, NAMES, "--max-outer-steps", str(OUTER_STEPS))
    for peer in peers.values():
        peer.release()
    for peer in peers.values():
        assert peer.wait(START_SECONDS) == 0, peer.words
    check_agreement(peers.values())
    check_links(peers.values())
    for peer in peers.values():
        [resumed] = peer.events("resume")
        assert (resumed["outer_step"], resumed["digest"]) == head
        assert [event["outer_step"] for event in peer.events("commit")] == [*range(1, OUTER_STEPS + 1)]
        _check_examples(peer)


def _stopped(peers: Mapping[str, Obedient]) -> tuple[int, str]:
    """One leaves when it has committed, the others in a round that cannot end without it. Where all are: step, digest.

    Nobody has voted for what follows, so they go on at once when they are back.
    """
    first, *others = peers.values()
    for peer in peers.values():
        peer.commits_until(STOPPED_AFTER)
    first.leave_at(Stage.COMMITTED.value)
    until(lambda: first.told, COMMIT_SECONDS, f"{first.name} commits again", [first])
    gone(first)
    for peer in others:
        peer.commits_until(first.outer_step)
        until(partial(_has_worked_ahead, peer), COMMIT_SECONDS, f"{peer.name} has done all it may", others)
    for peer in others:
        peer.signal(signal.SIGTERM)
    for peer in others:
        gone(peer)
        work = saved(peer)
        assert (work["handed"]["examples"], work["examples"]) == (FULL, FULL), "its round, and the work beside it"
    [head] = {(event["outer_step"], event["digest"]) for peer in peers.values() for event in peer.events("stop")}
    return head


def _has_worked_ahead(peer: Peer) -> bool:
    """Whether its contribution is handed in, and what it may do meanwhile is done."""
    status = peer.status
    return status["phase"] in ("averaging", "paused") and bool(status["inner_steps"] == INNER_STEPS)


def _check_examples(peer: Peer) -> None:
    """Whatever it worked in its two lives was committed, once, or is in its last checkpoint."""
    lives = [event["examples"] for event in peer.events("stop")]
    peer_id = peer.events("stop")[0]["peer_id"]
    committed = [event["participants"][peer_id] for event in peer.events("commit")]
    work = saved(peer)
    left = work["examples"] + work.get("handed", {}).get("examples", 0)
    print(f"\n{peer.name}: {lives} examples in its lives, {committed} committed, {left} left")
    assert len(lives) == 2
    assert sum(lives) == sum(committed) + left


# -- leaving -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swarm(house: House, bootstrap: Bootstrap) -> dict[str, Obedient]:
    """Two that stay, and one that leaves for each test."""
    run = overlapped(house, codec="int8", residual="local")
    peers = hold(house, bootstrap, run, ("one", "two", *POINTS))
    for peer in peers.values():
        peer.release()
    for peer in peers.values():
        peer.commits_until(1)
    return peers


@pytest.mark.timeout(300)
@pytest.mark.parametrize("point", POINTS)
def test_leaving_while_a_round_is_under_way(swarm: dict[str, Obedient], point: str) -> None:
    leaver, staying = swarm[point], [swarm["one"], swarm["two"]]
    leaver.leave_at(point)
    until(lambda: leaver.told, COMMIT_SECONDS, f"{leaver.name} gets to where it leaves", [leaver])
    gone(leaver)
    ahead = leaver.told.get("ahead", 0)
    assert saved(leaver)["examples"] >= ahead, "what it did beside the round is kept"
    print(f"\n{point}: it left with {ahead} examples ahead, at outer step {leaver.outer_step}")
    left, ids = leaver.peer_id, {peer.peer_id for peer in staying}
    for peer in staying:
        until(partial(_goes_on, peer, left, ids), COMMIT_SECONDS, f"{peer.name} goes on without it", staying)
    check_agreement(swarm.values())
    check_links(swarm.values())


def _goes_on(peer: Peer, left: str, staying: set[str]) -> bool:
    """Whether it has committed enough outer steps since its last one with who left, each with all that stay."""
    links = {event["outer_step"]: set(event["participants"]) for event in peer.events("commit")}
    since = max((step for step, link in links.items() if left in link), default=0)
    return len([step for step, link in links.items() if step > since and link >= staying]) >= TOGETHER
