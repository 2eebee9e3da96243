"""`waggle doctor` as a program: well where a peer would start, and the peer's own exit code where it would not."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.errors import ExitCode
from tests.integration.test_errors import CLOCK_AHEAD_SECONDS, FAKETIME, NOBODY
from tests.processes import LOCAL, START_SECONDS, House, Json, Program, manifest, running, write_corpus


@dataclass(frozen=True)
class Case:
    """verdicts: of the checks that are not ok. flags: in them BOOTSTRAP, STRANGER and TAKEN stand for addresses."""

    code: ExitCode
    verdicts: dict[str, str]
    flags: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()


HERE = {"reachable": "warn"}  # it listens on loopback only
CASES = {
    "well": Case(ExitCode.OK, {}, ("--client-mode", "--initial-peers", "BOOTSTRAP")),
    "first": Case(ExitCode.OK, {**HERE, "initial peers": "warn"}),
    "one-of-two": Case(
        ExitCode.OK, {**HERE, "initial peer": "warn"}, ("--initial-peers", "BOOTSTRAP", "--initial-peers", "NOBODY")
    ),
    "nobody": Case(ExitCode.NETWORK, {**HERE, "initial peer": "fail"}, ("--initial-peers", "NOBODY")),
    "stranger": Case(ExitCode.NETWORK, {**HERE, "initial peer": "fail"}, ("--initial-peers", "STRANGER")),
    "port": Case(
        ExitCode.NETWORK, {**HERE, "http": "fail", "initial peers": "warn"}, ("--http", "127.0.0.1:TAKEN")
    ),
    "several": Case(
        ExitCode.DEVICE,
        {**HERE, "device": "fail", "disk": "fail", "initial peers": "warn"},
        ("--device", "cuda:7", "--data-dir", "/proc/waggle"),
    ),
    "clock": Case(
        ExitCode.CLOCK,
        {**HERE, "clock": "fail"},
        ("--initial-peers", "BOOTSTRAP"),
        (f"LD_PRELOAD={FAKETIME}", f"FAKETIME=-{CLOCK_AHEAD_SECONDS}s", "FAKETIME_DONT_FAKE_MONOTONIC=1"),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("doctor")) as house:
        (house.folder / "run.toml").write_text(manifest(write_corpus(house.folder / "corpus.txt")), encoding="utf-8")
        yield house


@pytest.fixture(scope="module")
def examined(house: House) -> Iterator[dict[str, Program]]:
    """All at once, with a bootstrap that answers and a port where something else does."""
    [bootstrap] = house.bootstrap("bootstrap").maddrs
    with socket.socket() as taken, socket.socket() as unused:
        for one in (taken, unused):
            one.bind(("127.0.0.1", 0))
        taken.listen()
        addresses = {
            "BOOTSTRAP": bootstrap,
            "STRANGER": f"{bootstrap.rpartition('/')[0]}/{NOBODY}",  # somebody answers there, but not who should
            "NOBODY": f"/ip4/127.0.0.1/tcp/{unused.getsockname()[1]}/p2p/{NOBODY}",
            "TAKEN": str(taken.getsockname()[1]),
        }
        yield {name: start(house, name, addresses) for name in CASES if name != "clock" or FAKETIME is not None}


def start(house: House, name: str, addresses: dict[str, str]) -> Program:
    case, own = CASES[name], house.folder / name
    flags = [
        "--json", "--run", str(house.folder / "run.toml"), "--data-dir", str(own / "data"), "--host-maddrs", LOCAL,
        "--http", "127.0.0.1:0", "--device", "cpu",
    ]  # fmt: skip
    for flag in case.flags:
        flags.append(next((flag.replace(word, value) for word, value in addresses.items() if word in flag), flag))
    changes = ["/usr/bin/env", *case.environment] if case.environment else []
    return house.program(name, [*changes, str(Path(sys.executable).parent / "waggle"), "doctor", *flags])


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_well_is_found_and_said_with_advice(examined: dict[str, Program], name: str) -> None:
    if name not in examined:
        pytest.skip("no libfaketime here (Debian's package faketime)")
    case, program = CASES[name], examined[name]
    assert program.wait(START_SECONDS) == case.code, program.words
    told: Json = json.loads(program.out.read_text(encoding="utf-8"))
    assert told["exit_code"] == case.code
    found = {one["name"]: one["verdict"] for one in told["checks"] if one["verdict"] != "ok"}
    spare = {"memory", "disk"} - set(case.verdicts)  # a small machine may be warned of these
    assert {check: verdict for check, verdict in found.items() if check not in spare} == case.verdicts
    assert all(one["advice"] for one in told["checks"] if one["verdict"] != "ok")
    assert program.err.read_text(encoding="utf-8") == ""
    assert not running(program.folder)
    assert not (program.folder / "data").exists(), "looking changes nothing"
