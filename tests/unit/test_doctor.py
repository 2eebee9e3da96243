"""The doctor's verdicts, one by one: what is well, what is not, and that looking changes nothing."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from swarm.claims import claim_folder, claim_identity
from swarm.errors import ExitCode, StateError
from swarm.identity import Identity
from swarm.manifest import Manifest
from tests.chain import PEERS
from tests.processes import manifest
from waggle import checks, doctor
from waggle.checks import Check, Verdict
from waggle.doctor import DoctorSettings
from waggle.reach import clock, explain, reachability

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
PUBLIC, PRIVATE, LOOPBACK = "203.0.113.7", "192.168.1.5", "127.0.0.1"


def settings(**fields: Any) -> DoctorSettings:
    return DoctorSettings(**{"http": "off", **fields})


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


def test_this_installation_is_supported() -> None:
    found = list(checks.versions())
    assert [one.name for one in found] == ["waggle", "python", "hivemind", "torch", "transformers"]
    assert {one.verdict for one in found} == {OK}


def test_the_run_is_read_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(manifest(tmp_path / "corpus.txt"))
    check, found, parameters = checks.read_run(settings(run=str(path)))
    assert (check.verdict, found) == (OK, Manifest.load(path))
    assert f"{parameters:,} parameters" in check.detail
    assert checks.extras(Manifest.load(path)) == Check("extras", OK, "none needed")
    path.write_text(path.read_text().replace("waggle = 1", "waggle = 2"))
    check, found, parameters = checks.read_run(settings(run=str(path)))
    assert (check.verdict, check.exit_code, found, parameters) == (FAIL, ExitCode.MANIFEST, None, 0)


def test_without_a_run_its_needs_are_not_checked() -> None:
    check, found, _ = checks.read_run(settings())
    assert (check.verdict, found) == (WARN, None)


def test_a_run_id_needs_somebody_to_ask(tmp_path: Path) -> None:
    check, found, _ = checks.read_run(settings(run="tiny@0123456789abcdef", data_dir=str(tmp_path)))
    assert (check.verdict, check.exit_code, found) == (FAIL, ExitCode.USAGE, None)
    assert "give --initial-peers" in f"{check.detail} {check.advice}"


def test_the_device() -> None:
    assert checks.device("cpu").verdict is OK
    check = checks.device("cuda:77")
    assert (check.verdict, check.exit_code, check.advice) == (FAIL, ExitCode.DEVICE, "choose another or cpu")


def test_memory(tmp_path: Path) -> None:
    run = Manifest.from_toml(manifest(tmp_path / "corpus.txt"))
    assert checks.memory_left(run, 1000, "cpu").verdict in (OK, WARN)
    check = checks.memory_left(run, 10**15, "cpu")
    assert (check.verdict, check.exit_code) == (FAIL, ExitCode.MEMORY)
    assert check.advice.startswith("close other programs")


def test_the_disk(tmp_path: Path) -> None:
    run = Manifest.from_toml(manifest(tmp_path / "corpus.txt"))
    assert checks.disk(tmp_path / "new" / "data", 2, run, 1000).verdict in (OK, WARN)
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"
    check = checks.disk(tmp_path, 2, run, 10**18)
    assert (check.verdict, check.exit_code) == (FAIL, ExitCode.STATE)
    assert "checkpoints need" in check.detail


def test_a_data_directory_that_is_a_file_or_in_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        check = checks.disk(path, 2, None, 0)
        assert (check.verdict, check.exit_code) == (FAIL, ExitCode.STATE)
        assert check.advice == "mend that, or choose another --data-dir"
        with pytest.raises(StateError) as refused:
            claim_folder(path)
        assert str(refused.value) == f"{check.detail}; {check.advice}", "the peer says the same"
    claim = claim_folder(tmp_path / "used")
    check = checks.disk(tmp_path / "used", 2, None, 0)
    assert (check.verdict, check.advice) == (FAIL, "stop that peer, or choose another --data-dir")
    claim.release()


def test_the_identity(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    assert checks.identity(path).verdict is OK
    assert not path.exists()
    peer_id = Identity.load_or_create(path).peer_id
    assert checks.identity(path) == Check("identity", OK, peer_id)
    claim = claim_identity(path)
    assert checks.identity(path).exit_code is ExitCode.IDENTITY
    claim.release()
    path.chmod(0o600)
    path.write_bytes(b"no key")
    check = checks.identity(path)
    assert (check.verdict, check.exit_code) == (FAIL, ExitCode.IDENTITY)
    assert check.advice.startswith("restore it from your backup")


def test_open_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
        assert checks.open_files() == Check("open files", WARN, "512 allowed", "allow 1024 or more: ulimit -n 1024")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ports(taken: int) -> None:
    maddrs = [f"/ip4/127.0.0.1/tcp/{taken}", f"/ip4/127.0.0.1/udp/{taken}/quic-v1", "/ip4/127.0.0.1/tcp/0"]
    found = list(checks.ports(settings(http=f"127.0.0.1:{taken}", host_maddrs=maddrs)))
    assert [one.verdict for one in found] == [FAIL, FAIL, OK, OK]
    assert found[0].exit_code is ExitCode.NETWORK
    assert found[0].detail == f"127.0.0.1:{taken} is occupied"
    assert found[1].advice == "stop the other program, or choose another --host-maddrs"
    (metrics, foreign) = checks.ports(settings(host_maddrs=["/ip4/192.0.2.1/tcp/0"], p2pd_metrics=f"127.0.0.1:{taken}"))
    assert (metrics.name, metrics.verdict) == ("p2pd metrics", FAIL)
    assert foreign.detail == "/ip4/192.0.2.1/tcp/0 is not an address of this machine"
    assert len(list(checks.ports(settings(client_mode=True, host_maddrs=maddrs)))) == 0, "it listens nowhere"


@pytest.mark.parametrize(
    "fields, addresses, verdict, words",
    [
        ({"client_mode": True}, [PRIVATE], OK, "client mode"),
        ({"announce_maddrs": [f"/ip4/{PUBLIC}/tcp/1"]}, [PRIVATE], OK, "that port has to lead here"),
        ({"auto_relay": True}, [PRIVATE], OK, "through a relay"),
        ({}, [LOOPBACK, PRIVATE, "8.8.4.4"], OK, "public address"),
        ({}, [LOOPBACK, PRIVATE], WARN, "the router is asked"),
        ({"nat_port_map": False}, [LOOPBACK, PRIVATE, "fe80::1"], WARN, "only from the local network"),
        ({"host_maddrs": [f"/ip4/{LOOPBACK}/tcp/1"]}, [LOOPBACK, "8.8.4.4"], WARN, "only from this machine"),
    ],
)
def test_who_can_reach_us(fields: dict[str, Any], addresses: list[str], verdict: Verdict, words: str) -> None:
    check = reachability(settings(**fields), addresses)
    assert check.verdict is verdict
    assert words in check.detail
    assert ("--client-mode" in check.advice) == (verdict is WARN)


@pytest.mark.parametrize(
    "offsets, verdict, code",
    [
        ([], WARN, ExitCode.OK),
        ([0.01, -0.02], OK, ExitCode.OK),
        ([5.0], WARN, ExitCode.OK),
        ([-200.0], FAIL, ExitCode.CLOCK),
    ],
)
def test_the_clock(offsets: list[float], verdict: Verdict, code: ExitCode) -> None:
    check = clock(dict(zip(PEERS, offsets, strict=False)))
    assert (check.verdict, check.exit_code) == (verdict, code)
    assert bool(check.advice) == (verdict is not OK)


REFUSED = "Connect failed. msg=failed to dial: all dials failed\n  * [/ip4/127.0.0.1/tcp/9] dial tcp4 127.0.0.1:9: "


@pytest.mark.parametrize(
    "obstacle, why, advice",
    [
        (REFUSED + "connect: connection refused", "connection refused", "see that it runs"),
        (
            REFUSED + f"failed to negotiate security protocol: peer id mismatch: expected {PEERS[0]}, but remote key "
            f"matches {PEERS[1]}",
            f"{PEERS[1]} answers there",
            "ask for the new address",
        ),
        ("Connect failed. msg=failed to dial X: no good addresses", "no such host", "see that the name is right"),
        (REFUSED + "connect: network is unreachable", "no way there", "see that this machine is connected"),
        ("no answer within 10 s", "no answer within 10 s", "see that it runs, that the address is right, and that no"),
    ],
)
def test_why_a_peer_cannot_be_dialled(obstacle: str, why: str, advice: str) -> None:
    found = explain(obstacle)
    assert found[0] == why
    assert found[1].startswith(advice)


FOUND = [
    Check("one", OK, "well"),
    Check("two", WARN, "so so", "look [at] it"),
    Check("three", FAIL, "bad", "mend it", ExitCode.CLOCK),
    Check("four", FAIL, "worse", "mend that too", ExitCode.DEVICE),
]


def test_the_first_failure_decides_the_exit_code() -> None:
    assert checks.first_failure(FOUND) is ExitCode.CLOCK
    assert checks.first_failure(FOUND[:2]) is ExitCode.OK


def test_what_is_wrong_has_a_line_that_says_what_to_do() -> None:
    console = Console(width=80)
    with console.capture() as shown:
        console.print(doctor.render(FOUND))
    assert [line.split(maxsplit=1)[0] for line in shown.get().splitlines()] == [
        "one", "two", "->", "three", "->", "four", "->",
    ]  # fmt: skip
    assert "-> look [at] it" in shown.get()
    told = json.loads(doctor.as_json(FOUND))
    assert told["exit_code"] == ExitCode.CLOCK
    assert told["checks"][1] == {"name": "two", "verdict": "warn", "detail": "so so", "advice": "look [at] it"}
