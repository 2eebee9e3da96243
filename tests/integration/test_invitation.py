"""A run from its author to strangers: real programs, and a volunteer who types a run id and whom to ask."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from peer.enrolment import cache_path
from swarm.errors import ExitCode
from swarm.identity import Identity
from swarm.manifest import Manifest
from tests.integration.test_invitation_records import FORGED, RUN_ID, store, stranger
from tests.integration.test_network_modes import free_port
from tests.processes import START_SECONDS, House, Program, Volunteer, manifest, running, until, write_corpus

WAGGLE = [sys.executable, "-c", "from waggle.cli import main; main()"]


@dataclass
class Swarm:
    """What an author made of a house, and the first two volunteers in it."""

    house: House
    run: Manifest
    maddr: str
    listen: str
    one: Volunteer
    two: Volunteer

    def join(self, name: str, *flags: str) -> Volunteer:
        """Another volunteer."""
        return self.house.volunteer(name, self.run.run_id, *flags, initial_peers=[self.maddr])


def said(house: House, name: str, *words: str) -> str:
    """What a command of ours prints; it must succeed."""
    program = house.program(name, [*WAGGLE, *words])
    assert program.wait(START_SECONDS) == 0, program.words
    return program.out.read_text()


def plain(program: Program) -> list[str]:
    """What it said to people, log lines left out."""
    return [line for line in program.err.read_text(encoding="utf-8").splitlines() if not line.startswith("{")]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("invitation")) as house:
        yield house


@pytest.fixture(scope="module")
def swarm(house: House) -> Swarm:
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    bootstrap = house.bootstrap("bootstrap", host_maddr=listen)
    key, file = house.folder / "author.key", house.folder / "run.toml"
    author = Identity.load_or_create(key).peer_id
    text = manifest(write_corpus(house.folder / "corpus.txt"), inner_steps=5, isolation_seconds=5.0)
    file.write_text(text.replace('name = "tiny"', f'name = "tiny"\nauthor = "{author}"'))
    run = Manifest.load(file)
    said(house, "signing", "run", "sign", str(file), "--key", str(key))
    (maddr,) = bootstrap.maddrs
    told = said(house, "publishing", "run", "publish", str(file), "--initial-peers", maddr)
    # The author is gone from here on; what volunteers type is what the author was told.
    for path in (key, file, file.with_name("run.toml.sig")):
        path.unlink()
    (line,) = [line for line in told.splitlines() if line.startswith("waggle peer ")]
    assert line == f"waggle peer --initial-peers {maddr} --run {run.run_id}"
    one, two = (house.volunteer(name, run.run_id, initial_peers=[maddr]) for name in ("one", "two"))
    return Swarm(house, run, maddr, listen, one, two)


def test_volunteers_train_what_the_author_published(swarm: Swarm) -> None:
    for peer in (swarm.one, swarm.two):
        checked = peer.hear("invitation checked")
        assert (checked["run_id"], checked["author"]) == (swarm.run.run_id, swarm.run.author)
        assert checked["source"] == "the swarm"
        peer.commits_until(2)
        status = peer.status
        assert (status["run_id"], status["author"]) == (swarm.run.run_id, swarm.run.author)


def test_the_run_is_shown_by_its_id(swarm: Swarm) -> None:
    told = said(swarm.house, "showing", "run", "show", swarm.run.run_id, "--initial-peers", swarm.maddr)
    words = " ".join(told.split())
    assert f"run_id {swarm.run.run_id} author {swarm.run.author} (whose signature holds)" in words


def test_an_unknown_run_ends_with_one_line(swarm: Swarm) -> None:
    unknown = "tiny@" + "0" * 16
    peer = swarm.house.volunteer("unknown", unknown, initial_peers=[swarm.maddr])
    assert peer.wait(START_SECONDS) == ExitCode.RUN, peer.words
    (line,) = plain(peer)
    assert line.startswith(f"waggle: run {unknown}: the initial peers know no such run; check the id")
    assert peer.p2pds == []
    assert not (peer.folder / "runs").exists()


def test_leaving_while_the_run_is_looked_for(swarm: Swarm) -> None:
    peer = swarm.house.volunteer("hasty", "tiny@" + "1" * 16, initial_peers=[swarm.maddr])
    peer.hear("the run is not found yet; looking again")
    peer.signal(signal.SIGTERM)
    assert peer.wait(5) == ExitCode.OK, peer.words
    assert plain(peer) == []
    assert not running(peer.folder)


async def test_a_forged_manifest_is_refused(swarm: Swarm, tmp_path: Path) -> None:
    async with stranger(tmp_path) as (node, maddr):
        assert await store(node, FORGED)
        peer = swarm.house.volunteer("deceived", RUN_ID, initial_peers=[maddr])
        assert await wait(peer) == ExitCode.RUN, peer.words
    (line,) = plain(peer)
    assert line.startswith(f"waggle: run {RUN_ID}: what is published under this id is not its author's manifest")
    assert "(signature " in line
    assert not (peer.folder / "runs").exists()


async def wait(program: Program) -> int:
    """The exit code, while the loop serves."""
    return await asyncio.to_thread(program.wait, START_SECONDS)


def test_a_copy_is_enough_to_start_again_with_the_bootstrap_away(swarm: Swarm) -> None:
    """And one that was tampered with is not. Whom it met before, it still finds."""
    first = swarm.join("third")
    first.commits_until(swarm.one.outer_step + 1)
    first.signal(signal.SIGTERM)
    assert first.wait(30) == 0, first.words
    nobody = swarm.maddr.replace(swarm.listen, f"/ip4/127.0.0.1/tcp/{free_port()}")
    again = swarm.house.volunteer(
        "third-again", swarm.run.run_id, "--data-dir", str(first.folder), initial_peers=[nobody]
    )
    assert again.hear("invitation checked")["source"] == "the data directory"
    again.hear("no initial peer answers, but peers met before do")
    again.signal(signal.SIGTERM)
    assert again.wait(30) == 0, again.words
    copy = cache_path(first.folder, swarm.run.run_id)
    copy.write_bytes(copy.read_bytes().replace(b"0.003", b"0.004"))
    mended = swarm.join("third-mended", "--data-dir", str(first.folder))
    assert mended.hear("invitation checked")["source"] == "the swarm"
    assert mended.said("the copy of the invitation is corrupt and set aside")
    mended.hear("peer started")


def test_newcomers_join_when_the_bootstrap_has_forgotten_all(swarm: Swarm) -> None:
    swarm.house.programs[0].kill()
    until(lambda: not running(swarm.house.folder / "bootstrap"), 10, "the bootstrap and its p2pd are gone")
    swarm.house.bootstrap("bootstrap", host_maddr=swarm.listen).hear("bootstrap started")
    newcomer = swarm.join("newcomer")
    assert newcomer.hear("invitation checked")["source"] == "the swarm"
    newcomer.hear("peer started")
    newcomer.commits_until(swarm.one.outer_step + 1)
