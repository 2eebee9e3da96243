"""What cannot work ends with one clear line and a documented exit code, never with a traceback."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swarm.errors import ExitCode
from tests.processes import LOCAL, START_SECONDS, House, Program, manifest, write_corpus


@dataclass(frozen=True)
class Refusal:
    """A peer that cannot start.

    says: what its last line must name. flags: of the peer; KEY and PORT stand for a broken key and an occupied port.
    change: (pattern, replacement) in the manifest.
    """

    code: ExitCode
    says: str
    flags: tuple[str, ...] = ()
    change: tuple[str, str] | None = None


REFUSALS = {
    "initial-peer": Refusal(ExitCode.USAGE, "/ip4/1.2.3/tcp/1", ("--initial-peers", "/ip4/1.2.3/tcp/1/p2p/12D3Koo")),
    "host-maddr": Refusal(ExitCode.USAGE, "/ip4/0.0.0.0/tpc/1", ("--host-maddrs", "/ip4/0.0.0.0/tpc/1")),
    "announced": Refusal(ExitCode.USAGE, "/ip4/0.0.0.0/tcp/1", ("--announce-maddrs", "/ip4/0.0.0.0/tcp/1")),
    "nobody-to-ask": Refusal(ExitCode.USAGE, "must be fetched from somebody", ("--run", "demo@0123456789abcdef")),
    "run-id": Refusal(ExitCode.USAGE, "'demo@123' is not a run id", ("--run", "demo@123")),
    "manifest": Refusal(ExitCode.MANIFEST, "round.codec", change=(r'codec = "\w+"', 'codec = "fp17"')),
    "identity": Refusal(ExitCode.IDENTITY, "KEY", ("--identity", "KEY")),
    "data": Refusal(ExitCode.DATA, "nothing-here", change=(r"paths = .*", 'paths = ["nothing-here-*.txt"]')),
    "device": Refusal(ExitCode.DEVICE, "cuda:7", ("--device", "cuda:7")),
    "http-port": Refusal(ExitCode.NETWORK, "127.0.0.1:PORT is occupied", ("--http", "127.0.0.1:PORT")),
    "libp2p-port": Refusal(ExitCode.NETWORK, "occupied", ("--host-maddrs", "/ip4/127.0.0.1/tcp/PORT")),
    "foreign-address": Refusal(ExitCode.NETWORK, "not one of this machine", ("--host-maddrs", "/ip4/192.0.2.1/tcp/0")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refusals")
    write_corpus(folder / "corpus.txt")
    (folder / "broken.key").write_bytes(b"no key")
    return folder


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    """A port that somebody else listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield str(taken.getsockname()[1])


@pytest.fixture(scope="module")
def refused(folder: Path, port: str) -> Iterator[dict[str, Program]]:
    """All of them at once: most of what each takes is importing torch."""
    with House(folder) as house:
        yield {name: start(house, name, case, port) for name, case in REFUSALS.items()}


def start(house: House, name: str, case: Refusal, port: str) -> Program:
    text = manifest(house.folder / "corpus.txt")
    if case.change is not None:
        text, changes = re.subn(*case.change, text)
        assert changes == 1
    own = house.folder / name
    own.mkdir()
    (own / "run.toml").write_text(text, encoding="utf-8")
    flags = {
        "--run": str(own / "run.toml"), "--data-dir": str(own), "--host-maddrs": LOCAL, "--http": "127.0.0.1:0",
        "--device": "cpu", "--log-format": "json",
    }  # fmt: skip
    given = [fill(flag, house.folder, port) for flag in case.flags]
    flags.update(zip(given[::2], given[1::2], strict=True))
    command = [word for pair in flags.items() for word in pair]
    return house.program(name, [sys.executable, "-m", "peer", "--no-nat-port-map", *command])


def fill(text: str, folder: Path, port: str) -> str:
    return text.replace("KEY", str(folder / "broken.key")).replace("PORT", port)


@pytest.mark.parametrize("name", REFUSALS)
def test_one_line_and_an_exit_code(refused: dict[str, Program], folder: Path, port: str, name: str) -> None:
    case, program = REFUSALS[name], refused[name]
    assert program.wait(START_SECONDS) == case.code, program.words
    lines = program.err.read_text(encoding="utf-8").splitlines()
    plain = [line for line in lines if not line.startswith("{")]
    assert len(plain) == 1, program.words
    assert plain == lines[-1:]
    assert plain[0].startswith("waggle: ")
    assert fill(case.says, folder, port) in plain[0]
    assert program.p2pds == []


def test_a_corrupt_identity_is_kept(refused: dict[str, Program], folder: Path) -> None:
    refused["identity"].wait(START_SECONDS)
    assert (folder / "broken.key").read_bytes() == b"no key"
