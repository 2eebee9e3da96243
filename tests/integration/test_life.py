"""Life and death of a peer as a process: every way to end it, and what the others and the machine are left with."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from peer.layout import Layout
from peer.state.files import load_checkpoint
from peer.tasks import build_model
from swarm.errors import ExitCode
from swarm.manifest import Manifest
from tests.processes import COMMIT_SECONDS, START_SECONDS, House, Peer, manifest, running, until, write_corpus

LEAVE_SECONDS = 10.0  # what a peer may take to leave, and it shares two cores with the others here
VICTIMS = ["training", "averaging-SIGTERM", "averaging-SIGINT", "forced", "killed", "p2pd-killed"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("life")) as house:
        write_corpus(house.folder / "corpus.txt")
        yield house


@pytest.fixture(scope="module")
def run(house: House) -> str:
    return manifest(house.folder / "corpus.txt")


class Swarm:
    """Three peers that stay, and victims that have imported all they need and wait for their turn.

    Three: when one of them is frozen and a victim leaves, two are still the majority of the last four.
    """

    def __init__(self, house: House, run: str):
        maddrs = house.bootstrap("bootstrap").maddrs
        self.staying = [house.hold(name, run, initial_peers=maddrs) for name in ("one", "two", "three")]
        self._victims = {name: house.hold(name, run, initial_peers=maddrs) for name in VICTIMS}
        for peer in self._victims.values():
            peer.prepare()  # before the others begin to train, which takes all the machine has
        for peer in self.staying:
            peer.release()
        for peer in self.staying:
            peer.commits_until(1)

    @contextmanager
    def victim(self, name: str) -> Iterator[Peer]:
        """A peer that has committed with the three; at the end they go on without it."""
        victim = self._victims[name].release()
        try:
            peer_id = victim.hear("peer started")["peer_id"]
            victim.commits_until(1)
            yield victim
            assert victim.process.poll() is not None
        finally:
            victim.kill()  # where its test failed, the next one starts without it
        since, what = victim.signalled_at, f"the others go on without {name}"
        seconds = until(lambda: self._again(peer_id, since), COMMIT_SECONDS, what, self.staying)
        print(f"\n{name}: the others commit again {seconds:.2f} s after the signal")

    def _again(self, gone: str, since: float) -> float:
        """Seconds until the first commit without ``gone`` after ``since``; 0.0 while there is none."""
        times = [
            event["time"] - since
            for peer in self.staying
            for event in peer.events("commit")
            if event["time"] > since and gone not in event["participants"]
        ]
        return min(times, default=0.0)

    @contextmanager
    def frozen(self, peer: Peer) -> Iterator[None]:
        """Whoever waits for this peer now waits in vain for a while."""
        peer.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            peer.signal(signal.SIGCONT)


@pytest.fixture(scope="module")
def swarm(house: House, run: str) -> Swarm:
    return Swarm(house, run)


@pytest.fixture(scope="module")
def alone(house: House, run: str) -> dict[str, Peer]:
    """A peer without a bootstrap that answers, and one that knows nobody."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = (
            f"/ip4/127.0.0.1/tcp/{unused.getsockname()[1]}/p2p/12D3KooWBVzpKEd2PvND4FrhFzkAjDVXdJpXTDZrbdKg3aqQLaZs"
        )
    return {name: house.hold(name, run, initial_peers=maddrs) for name, maddrs in (("lost", [nobody]), ("lonely", []))}


def leaves(peer: Peer, signum: signal.Signals) -> float:
    """Sends the signal and sees the peer out; the seconds it took."""
    began = time.monotonic()
    peer.signal(signum)
    code = peer.wait(60)
    seconds = time.monotonic() - began
    print(f"\n{peer.name}: {signum.name}, left after {seconds:.2f} s")
    assert code == ExitCode.OK, peer.words
    assert seconds < LEAVE_SECONDS
    assert not running(peer.folder)
    assert "Traceback" not in peer.err.read_text()
    return seconds


def check_saved_state(peer: Peer, run: str) -> None:
    """The state on disk is whole: its digest is of its contents, and of the peer's last commit."""
    described = Manifest.from_toml(run)
    torch.manual_seed(0)
    state = load_checkpoint(peer.checkpoints[0], described.run_id, Layout.of(build_model(described)), ()).state
    last = [event for event in peer.journal if event["event"] in ("commit", "download")][-1]
    assert (state.outer_step, state.digest) == (last["outer_step"], last["digest"])


def test_leaving_while_no_bootstrap_answers(alone: dict[str, Peer]) -> None:
    peer = alone["lost"].release()
    peer.hear("none of the initial peers answers; trying again")
    assert peer.status["phase"] == "joining"
    assert peer.get("/readyz").status_code == 503
    leaves(peer, signal.SIGTERM)
    assert not peer.checkpoints


def test_leaving_while_alone(alone: dict[str, Peer]) -> None:
    peer = alone["lonely"].release()
    status = peer.phase_is("paused", START_SECONDS)
    assert status["waiting"] == "company"
    assert status["outer_step"] == 0
    leaves(peer, signal.SIGINT)
    assert not peer.checkpoints


def test_leaving_while_the_main_thread_is_busy(house: House, run: str) -> None:
    """A long inner step, a download: here the manifest, which does not come."""
    peer = house.hold("busy", run).prepare()
    leaves(peer, signal.SIGTERM)
    assert peer.said("leaving in the middle of something")


def test_leaving_while_training(swarm: Swarm, run: str) -> None:
    with swarm.victim("training") as peer:
        peer.phase_is("training")
        leaves(peer, signal.SIGTERM)
    check_saved_state(peer, run)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_leaving_while_averaging(swarm: Swarm, run: str, signum: signal.Signals) -> None:
    # Frozen: the round at hand takes longer than a peer that leaves may wait.
    with swarm.victim(f"averaging-{signum.name}") as peer, swarm.frozen(swarm.staying[0]):
        peer.phase_is("averaging")
        leaves(peer, signum)
    check_saved_state(peer, run)


def test_a_second_signal_forces(swarm: Swarm) -> None:
    with swarm.victim("forced") as peer:
        with swarm.frozen(swarm.staying[0]):
            peer.phase_is("averaging")
            peer.signal(signal.SIGINT)
            peer.hear("shutting down")
            began = time.monotonic()
            peer.signal(signal.SIGTERM)
            assert peer.wait(START_SECONDS) == 128 + signal.SIGTERM, peer.words
            assert time.monotonic() - began < 2.0
            until(lambda: not running(peer.folder), 5, f"nothing is left of it: {running(peer.folder)}")
        assert peer.said("leaving at once")


def test_a_killed_peer_takes_its_p2pd_along(swarm: Swarm) -> None:
    with swarm.victim("killed") as peer:
        assert len(peer.p2pds) == 1
        peer.phase_is("averaging")
        peer.signal(signal.SIGKILL)
        began = time.monotonic()
        assert peer.wait(START_SECONDS) == -signal.SIGKILL
        until(lambda: not running(peer.folder), 5, f"its p2pd ends too: {running(peer.folder)}")
        print(f"\np2pd was gone {time.monotonic() - began:.2f} s after its peer")


def test_a_peer_without_its_p2pd_says_so_and_ends(swarm: Swarm, run: str) -> None:
    with swarm.victim("p2pd-killed") as peer:
        [p2pd] = peer.p2pds
        peer.signalled_at = time.time()
        os.kill(p2pd, signal.SIGKILL)
        assert peer.wait(30) == ExitCode.NETWORK, peer.words
        assert not running(peer.folder)
    lines = [line for line in peer.err.read_text().splitlines() if not line.startswith("{")]
    assert lines == ["waggle: p2pd ended unexpectedly; see the lines above, and start the peer again"]
    assert "Traceback" not in peer.err.read_text()
    check_saved_state(peer, run)
