"""A bootstrap introduces: our peers, stock hivemind, other bootstraps; and it is the same one after a restart."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.processes import REPOSITORY, START_SECONDS, Bootstrap, House, manifest, until, write_corpus

STOCK = Path(__file__).parent / "stock_dht.py"
STOCK_PROGRAM = Path(sys.executable).parent / "hivemind-dht"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("bootstrap")) as house:
        yield house


@pytest.fixture(scope="module")
def bootstrap(house: House) -> Bootstrap:
    return house.bootstrap("bootstrap")


@pytest.fixture(scope="module")
def run(house: House) -> str:
    return manifest(write_corpus(house.folder / "corpus.txt"), inner_steps=5)


def test_stock_hivemind_dht_stores_and_gets_through_it(house: House, bootstrap: Bootstrap) -> None:
    writer = house.program(
        "stock-writer", [sys.executable, str(STOCK), "store", str(house.folder / "x"), *bootstrap.maddrs]
    )
    assert writer.wait(START_SECONDS) == 0, writer.words
    assert "stored" in writer.out.read_text()
    reader = house.program(
        "stock-reader", [sys.executable, str(STOCK), "get", str(house.folder / "x"), *bootstrap.maddrs]
    )
    assert reader.wait(START_SECONDS) == 0, reader.words
    assert "got a value through Waggle" in reader.out.read_text()


def test_stock_program_joins_it_and_our_peers_meet_through_the_stock_program(
    house: House, bootstrap: Bootstrap, run: str
) -> None:
    folder = house.folder / "stock-program"
    stock = house.program(
        "stock-program",
        [
            sys.executable, str(STOCK_PROGRAM), "--identity_path", str(folder / "stock.key"),
            "--host_maddrs", "/ip4/127.0.0.1/tcp/0", "--initial_peers", *bootstrap.maddrs, "--refresh_period", "1",
        ],
    )  # fmt: skip

    def address() -> str:
        assert stock.process.poll() is None, stock.words
        words = stock.err.read_text().split()
        return next((word for word in words if word.startswith("/ip4/127.0.0.1/tcp/") and "/p2p/" in word), "")

    maddr = until(address, START_SECONDS, "the stock program tells its address", [stock])
    until(lambda: "2 DHT nodes" in stock.err.read_text(), START_SECONDS, "it counts us in its routing table", [stock])
    one = house.hold("through-stock", run, "--max-outer-steps", "2", initial_peers=[maddr])
    other = house.hold("through-ours", run, "--max-outer-steps", "2", initial_peers=bootstrap.maddrs)
    for peer in (one, other):
        peer.release()
    for peer in (one, other):
        peer.commits_until(2)
        assert peer.wait(30) == 0, peer.words


def test_two_bootstraps_know_each_other_and_a_restarted_one_is_the_same(
    house: House, bootstrap: Bootstrap, run: str
) -> None:
    second = house.bootstrap("second", "--initial-peers", bootstrap.maddrs[0])
    until(lambda: second.status["dht_peers"] >= 1, 30, "it knows the first", [second])
    one = house.hold("at-first", run, initial_peers=bootstrap.maddrs)
    other = house.hold("at-second", run, initial_peers=second.maddrs)
    late = house.hold("late", run, initial_peers=second.maddrs)  # knows nobody else
    late.prepare()
    for peer in (one, other):
        peer.release()
    for peer in (one, other):
        peer.commits_until(2)
    before = second.status
    host = second.maddrs[0].rpartition("/p2p/")[0]
    second.kill()
    again = house.bootstrap("second", "--initial-peers", bootstrap.maddrs[0], host_maddr=host)
    until(lambda: again.status["joined"], START_SECONDS, "it joins again", [again])
    assert again.status["peer_id"] == before["peer_id"]
    assert again.maddrs == before["maddrs"]
    late.release()
    late.commits_until(max(one.outer_step, other.outer_step) + 1)


def test_peers_that_can_read_its_introduction_need_no_address(house: House, run: str) -> None:
    introduction = house.folder / "introduction.toml"
    introducing = house.bootstrap("introducing", "--introduction", str(introduction))
    assert introducing.get("/healthz").status_code == 200
    assert introduction.exists(), "it is written before it answers"
    peers = [house.hold(name, run, "--config", str(introduction), "--max-outer-steps", "1") for name in ("a", "b")]
    for peer in peers:
        peer.release()
    for peer in peers:
        peer.commits_until(1)
        assert peer.wait(30) == 0, peer.words


def test_it_can_be_watched(bootstrap: Bootstrap) -> None:
    assert bootstrap.get("/healthz").status_code == 200
    until(lambda: bootstrap.get("/readyz").status_code == 200, 10, "it is ready", [bootstrap])
    families = {one.name: one for one in text_string_to_metric_families(bootstrap.get("/metrics").text)}
    assert {"waggle_build_info", "waggle_dht_peers", "waggle_records_dropped", "waggle_dht_requests"} <= set(families)
    assert families["waggle_build_info"].samples[0].labels["program"] == "bootstrap"
    status = bootstrap.status
    assert status["processes"] == 2
    print(f"a bootstrap weighs {status['resident_bytes'] / 1e6:.0f} MB, p2pd not counted")


def test_its_own_modules_do_not_import_torch() -> None:
    modules = [*(REPOSITORY / "bootstrap").glob("*.py"), *(REPOSITORY / "swarm").glob("*.py")]
    assert len(modules) > 10
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] in ("torch", "transformers") for name in names), module
