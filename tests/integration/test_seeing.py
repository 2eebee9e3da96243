"""What an operator sees of a running peer: metrics, health, status and logs."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from peer import daemon
from swarm.identity import Identity
from tests.processes import LOCAL, PEER, House, Peer, manifest, until, write_corpus

STATUS = {
    "run_id", "peer_id", "maddrs", "phase", "outer_step", "swarm_outer_step", "digest", "loss", "peers", "group_size",
    "last_commit_timestamp", "examples_per_second", "version",
}  # fmt: skip
METRICS = {
    "waggle_build_info", "waggle_phase", "waggle_peers", "waggle_outer_step", "waggle_swarm_outer_step", "waggle_loss",
    "waggle_validation_loss", "waggle_group_size", "waggle_last_commit_timestamp_seconds", "waggle_examples",
    "waggle_rounds", "waggle_round_seconds", "waggle_refusals", "waggle_state_transfers", "waggle_bytes",
    "waggle_dht_requests", "waggle_records_dropped",
}  # fmt: skip
SECRET = re.compile(r"12D3Koo|/ip[46]/|127\.0\.0\.1")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("seeing")) as house:
        yield house


@pytest.fixture(scope="module")
def run(house: House) -> str:
    return manifest(write_corpus(house.folder / "corpus.txt"), inner_steps=5)


@pytest.fixture(scope="module")
def peers(house: House, run: str) -> list[Peer]:
    """Two peers that commit: one over IPv4 and QUIC, with p2pd's metrics; the other one in client mode."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        metrics = f"127.0.0.1:{free.getsockname()[1]}"
    listening = ["--host-maddrs", f"{LOCAL},/ip4/127.0.0.1/udp/0/quic-v1", "--p2pd-metrics", metrics]
    first = house.hold("listening", run, *listening)
    client = house.hold("client", run, "--client-mode", initial_peers=first.release().maddrs)
    client.release()
    for peer in (first, client):
        peer.commits_until(3)
    first.p2pd_metrics = metrics  # type: ignore[attr-defined]  # for the one test that asks
    return [first, client]


def test_metrics_have_the_promised_names_and_nobody_in_a_label(peers: list[Peer]) -> None:
    families = {one.name: one for one in text_string_to_metric_families(peers[0].get("/metrics").text)}
    assert set(families) >= METRICS
    for family in families.values():
        if family.name.startswith("waggle_"):
            for sample in family.samples:
                assert not SECRET.search(" ".join(sample.labels.values())), sample
    committed = [one for one in families["waggle_rounds"].samples if one.labels.get("outcome") == "committed"]
    assert committed[0].value >= 3
    phases = [one for one in families["waggle_phase"].samples if one.value == 1]
    assert len(phases) == 1


def test_health_and_status(peers: list[Peer]) -> None:
    first, client = peers
    assert first.get("/healthz").status_code == 200
    assert first.get("/readyz").status_code == 200
    status = first.status
    assert set(status) >= STATUS
    assert (status["peers"], status["group_size"], status["processes"]) == (1, 2, 2)
    assert any("/quic-v1/p2p/" in maddr for maddr in status["maddrs"])
    assert client.status["maddrs"] == []  # in client mode nobody can dial it, and yet it commits


class EarlyAsked(Peer):
    """A peer that is asked for its status as soon as its port is open; the answer is in its folder."""

    code = f"from tests.integration.test_seeing import ask_early; ask_early(); {PEER}"


def ask_early() -> None:
    """Makes this process, which is about to become a peer, ask itself before its start goes on."""

    class Asked(daemon.Online):
        async def start(self, identity: Identity, version: str) -> None:
            await super().start(identity, version)
            assert self.exposition is not None
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                answer = await client.get(f"{self.exposition.url}/status")
            (identity.path.parent / "early.json").write_text(answer.text)

    daemon.Online = Asked  # type: ignore[misc]  # the one that the daemon makes


def test_status_is_whole_from_the_first_answer(house: House, run: str) -> None:
    early = EarlyAsked(house.folder / "early", run)
    house.programs.append(early)
    early.release().hear("peer started")
    status = json.loads((early.folder / "early.json").read_text())
    assert set(status) >= STATUS
    assert (status["phase"], status["outer_step"]) == ("starting", 0)
    early.kill()


def test_waggle_status_shows_a_running_peer(peers: list[Peer]) -> None:
    command = [sys.executable, "-c", "from waggle.cli import main; main()", "status", "--http", peers[0].url]
    shown = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(shown.stdout)["peer_id"] == peers[0].status["peer_id"]
    table = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert peers[0].status["run_id"] in table


def test_p2pd_shows_its_own_metrics(peers: list[Peer]) -> None:
    address = peers[0].p2pd_metrics  # type: ignore[attr-defined]  # set by the fixture
    with httpx.Client(trust_env=False, timeout=30) as client:
        text = until(lambda: client.get(f"http://{address}/metrics").text, 10, "p2pd's metrics")
    assert "libp2p_" in text


def test_every_log_line_is_one_json_object(peers: list[Peer]) -> None:
    for peer in peers:
        lines = peer.err.read_text().splitlines(keepends=True)
        assert len(lines) > 3
        for line in lines:
            if line.endswith("\n"):
                event = json.loads(line)
                assert {"event", "level", "logger", "timestamp"} <= set(event), line


def test_agreement_of_the_two(peers: list[Peer]) -> None:
    first, client = ({line["outer_step"]: line["digest"] for line in peer.events("commit")} for peer in peers)
    common = set(first) & set(client)
    assert len(common) >= 2
    assert all(first[step] == client[step] for step in common)
