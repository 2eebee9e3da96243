"""What cannot work ends with one clear line and a documented exit code: no traceback, nothing half-written or running.

Each case is the real program, as a volunteer would start it.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.errors import ExitCode
from swarm.identity import Identity
from tests.processes import LOCAL, START_SECONDS, House, Program, manifest, running, until, write_corpus

NOBODY = "12D3KooWBVzpKEd2PvND4FrhFzkAjDVXdJpXTDZrbdKg3aqQLaZs"
MADDR = "expected e.g. /ip4/203.0.113.7/tcp/31337"
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)  # Debian's
CLOCK_AHEAD_SECONDS = 180
MISSING = {"mounts": "mounting is not allowed here", "faketime": "no libfaketime here (Debian's package faketime)"}


@dataclass(frozen=True)
class Case:
    """A peer that cannot start.

    line: its only line for people, where "..." stands for any words. flags: of the peer. change: (pattern, replacement)
    in the manifest. In all of them: OWN is the folder of the case, SHARED that of all, TAKEN an occupied port, FREE one
    where nobody listens, BOOTSTRAP the address of a bootstrap, PID that of a peer that runs, in SHARED/running.
    environment: for ``env``. needs: what this machine must allow.
    """

    code: ExitCode
    line: str
    flags: tuple[str, ...] = ()
    change: tuple[str, str] | None = None
    environment: tuple[str, ...] = ()
    needs: str = ""


CASES = {
    "initial-peer": Case(
        ExitCode.USAGE,
        f"initial_peers: '/ip4/1.2.3/tcp/1/p2p/12D3Koo': '1.2.3' is not an IPv4 address; {MADDR}/p2p/12D3Koo... "
        "(flag --initial-peers, variable WAGGLE_INITIAL_PEERS)",
        ("--initial-peers", "/ip4/1.2.3/tcp/1/p2p/12D3Koo"),
    ),
    "host-maddr": Case(
        ExitCode.USAGE,
        "host_maddrs: '/ip4/0.0.0.0/tpc/1': 'tpc' is not a transport: /tcp/PORT or /udp/PORT/quic-v1 follows the host; "
        "expected e.g. /ip4/0.0.0.0/tcp/31337 (flag --host-maddrs, variable WAGGLE_HOST_MADDRS)",
        ("--host-maddrs", "/ip4/0.0.0.0/tpc/1"),
    ),
    "announced": Case(
        ExitCode.USAGE,
        "announce_maddrs: '/ip4/0.0.0.0/tcp/1': nobody can dial 0.0.0.0, which means every interface: give the address "
        f"others reach; {MADDR} (flag --announce-maddrs, variable WAGGLE_ANNOUNCE_MADDRS)",
        ("--announce-maddrs", "/ip4/0.0.0.0/tcp/1"),
    ),
    "nobody-to-ask": Case(ExitCode.USAGE, "...must be fetched from somebody...", ("--run", "demo@0123456789abcdef")),
    "run-id": Case(ExitCode.USAGE, "run: 'demo@123' is not a run id...", ("--run", "demo@123")),
    "manifest": Case(
        ExitCode.MANIFEST,
        "round.codec: must be 'fp32', 'fp16', 'int8', 'int4' or 'sparse', not 'fp17'",
        change=(r'codec = "\w+"', 'codec = "fp17"'),
    ),
    "version": Case(
        ExitCode.MANIFEST,
        "waggle: must be 1, the manifest format that this Waggle reads, not 2: take a Waggle that reads it",
        change=("waggle = 1", "waggle = 2"),
    ),
    "no-manifest": Case(ExitCode.MANIFEST, "...OWN/nothing.toml...", ("--run", "OWN/nothing.toml")),
    "identity": Case(
        ExitCode.IDENTITY,
        "identity SHARED/broken.key: not a libp2p Ed25519 key file (6 bytes); restore it from your backup, or move it "
        "away to start with a new peer id",
        ("--identity", "SHARED/broken.key"),
    ),
    "data": Case(ExitCode.DATA, "...nothing-here-*.txt...", change=(r"paths = .*", 'paths = ["nothing-here-*.txt"]')),
    "device": Case(
        ExitCode.DEVICE,
        "--device cuda:7: ...; choose another or cpu",
        ("--device", "cuda:7"),
    ),
    "extra": Case(
        ExitCode.MISSING_EXTRA,
        "data.source = 'hub' needs the datasets library; pip install 'waggle[hub]'",
        change=(r'source = "text"\npaths = .*', 'source = "hub"\ndataset = "nobody/nothing"\nfield = "text"'),
        environment=("PYTHONPATH=SHARED/without",),
    ),
    "memory": Case(
        ExitCode.MEMORY,
        "memory: this run needs ... GB, and ... GB are free; close other programs, raise the container's limit, or "
        "take part in a run with a smaller model",
        change=("n_embd = 16", "n_embd = 65536"),
    ),
    "http-port": Case(
        ExitCode.NETWORK,
        "http: 127.0.0.1:TAKEN is occupied: stop the other program; choose another address with --http HOST:PORT (port "
        "0 picks a free one, off serves nothing)",
        ("--http", "127.0.0.1:TAKEN"),
    ),
    "libp2p-port": Case(
        ExitCode.NETWORK,
        "p2pd did not start: an address of --host-maddrs is occupied; stop the other program or choose another "
        "port ...",
        ("--host-maddrs", "/ip4/127.0.0.1/tcp/TAKEN"),
    ),
    "metrics-port": Case(
        ExitCode.NETWORK,
        "p2pd_metrics: 127.0.0.1:TAKEN is occupied; stop the other program, or choose another --p2pd-metrics",
        ("--p2pd-metrics", "127.0.0.1:TAKEN"),
    ),
    "foreign-address": Case(
        ExitCode.NETWORK,
        "p2pd did not start: an address of --host-maddrs is not one of this machine ...",
        ("--host-maddrs", "/ip4/192.0.2.1/tcp/0"),
    ),
    "unreachable": Case(
        ExitCode.NETWORK,
        f"initial_peers: none answered within 2 s (/ip4/127.0.0.1/tcp/FREE/p2p/{NOBODY}); see that one of them runs "
        "and that no firewall stands between, or ask for a newer address",
        ("--initial-peers", f"/ip4/127.0.0.1/tcp/FREE/p2p/{NOBODY}", "--join-timeout-seconds", "2"),
    ),
    "folder-is-a-file": Case(
        ExitCode.STATE,
        "data_dir SHARED/broken.key: cannot be written (File exists); mend that, or choose another --data-dir",
        ("--data-dir", "SHARED/broken.key"),
    ),
    "read-only": Case(
        ExitCode.STATE,
        "data_dir SHARED/read-only-disk: cannot be written (Read-only file system); mend that, or choose "
        "another --data-dir",
        ("--data-dir", "SHARED/read-only-disk"),
        needs="mounts",
    ),
    "full": Case(
        ExitCode.STATE,
        "data_dir SHARED/full-disk: cannot be written (No space left on device); mend that, or choose "
        "another --data-dir",
        ("--data-dir", "SHARED/full-disk"),
        needs="mounts",
    ),
    "small": Case(
        ExitCode.STATE,
        "data_dir SHARED/small-disk: checkpoints need 381 kB, and 8.19 kB are free; free some space or choose "
        "another --data-dir",
        ("--data-dir", "SHARED/small-disk", "--identity", "SHARED/good.key"),
        needs="mounts",
    ),
    "folder-in-use": Case(
        ExitCode.STATE,
        "data_dir SHARED/running: in use by process PID; stop that peer, or give this one its own --data-dir",
        ("--data-dir", "SHARED/running"),
    ),
    "identity-in-use": Case(
        ExitCode.IDENTITY,
        "identity SHARED/running/identity.key: in use by process PID; stop that one, or give this one its own "
        "--identity",
        ("--identity", "SHARED/running/identity.key"),
    ),
    "clock": Case(
        ExitCode.CLOCK,
        f"clock: this machine's is {CLOCK_AHEAD_SECONDS} s ahead of that of the one peer that answers; set it, and "
        "turn on NTP to keep it right",
        ("--initial-peers", "BOOTSTRAP"),
        environment=(f"LD_PRELOAD={FAKETIME}", f"FAKETIME=+{CLOCK_AHEAD_SECONDS}s", "FAKETIME_DONT_FAKE_MONOTONIC=1"),
        needs="faketime",
    ),
}
"""Every way to fail that docs/troubleshooting.md explains, but for those that need a run underway."""


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[bool]:
    """A file system of its own, where this machine lets us mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "waggle", str(folder)]
    # fails without the rights of root, and in most containers
    allowed = (
        shutil.which("mount") is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )
    try:
        yield allowed
    finally:
        if allowed:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leaving: int = 0) -> None:
    """Writes until ``leaving`` bytes are left on its file system."""
    with (folder / "filler").open("wb", buffering=0) as file:
        while (free := shutil.disk_usage(folder).free) > leaving:
            file.write(bytes(min(1 << 20, free - leaving)))


@pytest.fixture(scope="module")
def allowed() -> dict[str, bool]:
    """What this machine allows, as far as that is known."""
    return {"": True, "faketime": FAKETIME is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, allowed: dict[str, bool]) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("errors")
    write_corpus(folder / "corpus.txt")
    (folder / "broken.key").write_bytes(b"no key")
    Identity.load_or_create(folder / "good.key")
    (folder / "without").mkdir()
    (folder / "without" / "datasets.py").write_text("raise ImportError('not installed')\n")
    with ExitStack() as mounts:
        sizes = {"read-only-disk": "ro", "full-disk": "size=64k", "small-disk": "size=64k", "filling-disk": "size=1m"}
        made = [mounts.enter_context(mounted(folder / name, options)) for name, options in sizes.items()]
        allowed["mounts"] = all(made)
        if allowed["mounts"]:
            fill(folder / "full-disk")
            fill(folder / "small-disk", leaving=8192)
        yield folder


@pytest.fixture(scope="module")
def house(folder: Path) -> Iterator[House]:
    with House(folder) as house:
        yield house


@pytest.fixture(scope="module")
def words(house: House) -> Iterator[dict[str, str]]:
    """What the words in capitals stand for; while it lasts, they are true."""
    with socket.socket() as taken, socket.socket() as unused:
        for one in (taken, unused):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        bootstrap = house.bootstrap("bootstrap")
        running = house.peer("running", manifest(house.folder / "corpus.txt"))
        running.hear("peer started")
        yield {
            "SHARED": str(house.folder),
            "TAKEN": str(taken.getsockname()[1]),
            "FREE": str(unused.getsockname()[1]),
            "BOOTSTRAP": bootstrap.maddrs[0],
            "PID": str(running.process.pid),
        }


def put(text: str, words: dict[str, str], name: str) -> str:
    for word, value in {**words, "OWN": str(Path(words["SHARED"]) / name)}.items():
        text = text.replace(word, value)
    return text


def start(house: House, name: str, words: dict[str, str]) -> Program:
    case = CASES[name]
    text = manifest(house.folder / "corpus.txt")
    if case.change is not None:
        text, changes = re.subn(*case.change, text)
        assert changes == 1
    own = house.folder / name
    own.mkdir()
    (own / "run.toml").write_text(text, encoding="utf-8")
    flags = {
        "--run": str(own / "run.toml"), "--data-dir": str(own / "data"), "--host-maddrs": LOCAL,
        "--http": "127.0.0.1:0", "--device": "cpu", "--log-format": "json",
    }  # fmt: skip
    given = [put(flag, words, name) for flag in case.flags]
    flags.update(zip(given[::2], given[1::2], strict=True))
    changes = ["/usr/bin/env", *(put(one, words, name) for one in case.environment)] if case.environment else []
    command = [word for pair in flags.items() for word in pair]
    return house.program(name, [*changes, sys.executable, "-m", "peer", "--no-nat-port-map", *command])


@pytest.fixture(scope="module")
def refused(house: House, words: dict[str, str], allowed: dict[str, bool]) -> dict[str, Program]:
    """All of them at once: most of what each takes is importing torch."""
    return {name: start(house, name, words) for name, case in CASES.items() if allowed[case.needs]}


def lines_for_people(program: Program) -> list[str]:
    lines = program.err.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("{")]


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_an_exit_code(
    refused: dict[str, Program], words: dict[str, str], allowed: dict[str, bool], name: str
) -> None:
    case = CASES[name]
    if not allowed[case.needs]:
        pytest.skip(
            {"mounts": "mounting is not allowed here", "faketime": "no libfaketime (Debian: faketime)"}[case.needs]
        )
    program = refused[name]
    assert program.wait(START_SECONDS) == case.code, program.words
    expected = re.escape(f"waggle: {put(case.line, words, name)}").replace(re.escape("..."), ".*")
    (line,) = lines_for_people(program)
    assert re.fullmatch(expected, line), line
    assert program.err.read_text(encoding="utf-8").endswith(f"{line}\n"), "the last word"
    assert "Traceback" not in program.words
    assert not running(program.folder), "nothing of it is left running"
    check_whole(program.folder / "data")


def check_whole(folder: Path) -> None:
    """A data directory holds whole files only, or is not even there."""
    found = {path.name for path in folder.glob("*")}
    assert found <= {"identity.key", "journal.jsonl", "peers.json", "checkpoints", "runs"}
    assert not list(folder.rglob("*.writing"))
    if "identity.key" in found:
        assert len((folder / "identity.key").read_bytes()) == 68
    if "journal.jsonl" in found:
        text = (folder / "journal.jsonl").read_text(encoding="utf-8")
        assert text == "" or text.endswith("\n")
        assert all(isinstance(json.loads(line), dict) for line in text.splitlines())


def test_what_is_not_ours_to_change_is_kept(
    refused: dict[str, Program], house: House, allowed: dict[str, bool]
) -> None:
    for program in refused.values():
        program.wait(START_SECONDS)
    assert (house.folder / "broken.key").read_bytes() == b"no key"
    if allowed["mounts"]:
        for name in ("full-disk", "small-disk"):
            assert [path.name for path in (house.folder / name).iterdir()] == ["filler"]


def test_a_second_bootstrap_with_one_key_is_refused(house: House, words: dict[str, str]) -> None:
    first, key = house.programs[0], house.folder / "bootstrap" / "identity.key"
    second = house.program(
        "second-bootstrap",
        [sys.executable, "-m", "bootstrap", "--identity", str(key), "--host-maddrs", LOCAL, "--http", "off"],
    )
    assert second.wait(START_SECONDS) == ExitCode.IDENTITY, second.words
    assert lines_for_people(second) == [
        f"waggle: identity {key}: in use by process {first.process.pid}; stop that one, or give this one its own "
        "--identity"
    ]
    assert first.process.poll() is None, "the first goes on"


def test_a_disk_that_fills_up_ends_the_peer(house: House, words: dict[str, str], allowed: dict[str, bool]) -> None:
    if not allowed["mounts"]:
        pytest.skip(MISSING["mounts"])
    run, disk = manifest(house.folder / "corpus.txt"), house.folder / "filling-disk"
    maddrs = [words["BOOTSTRAP"]]
    house.peer("companion", run, initial_peers=maddrs)
    victim = house.peer("victim", run, "--data-dir", str(disk), initial_peers=maddrs)
    journal = disk / "journal.jsonl"
    until(lambda: journal.exists() and '"commit"' in journal.read_text(), START_SECONDS, "it commits", [victim])
    fill(disk)
    assert victim.wait(START_SECONDS) == ExitCode.STATE, victim.words
    (line,) = lines_for_people(victim)
    assert re.fullmatch(
        rf"waggle: {disk}/.*: cannot be written \(No space left on device\); free some space or change --data-dir", line
    )
    assert not running(victim.folder)
    (disk / "filler").unlink()
    check_whole(disk)
