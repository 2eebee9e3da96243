"""A real Prometheus with our configuration watches a real swarm: every query of dashboard and alerts has an answer."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from deploy.dashboard import DASHBOARD
from deploy.queries import CONFIGURATION, Prometheus, configure, fill
from tests.processes import COMMIT_SECONDS, Daemon, House, Peer, Program, manifest, until, write_corpus

PROMETHEUS = shutil.which("prometheus") or ""
NAMES = ("bootstrap", "peer-1", "peer-2", "peer-3")
SCRAPE_SECONDS = 1
OUTER_STEPS = 6
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    for target in panel.get("targets", [])
}
ALERTS = {
    rule["alert"]: rule["expr"]
    for rule in yaml.safe_load((CONFIGURATION / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
}
# Queries without an answer in a healthy swarm, and why. Their panels say so in words (noValue).
EMPTY_WHEN_HEALTHY = {
    "Refusals A": "nothing is refused",
    "Records dropped A": "every record is valid",
}

pytestmark = pytest.mark.skipif(not PROMETHEUS, reason="Prometheus is not installed: apt-get install prometheus")


@dataclass(frozen=True)
class Watched:
    """A swarm and the Prometheus that watches it."""

    peers: list[Peer]
    prometheus: Prometheus
    program: Program


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Two peers commit, a third comes late and downloads, and Prometheus has scraped all of it."""
    with House(tmp_path_factory.mktemp("monitoring")) as house:
        run = manifest(write_corpus(house.folder / "corpus.txt"))
        p2pd = {name: _free_address() for name in NAMES}
        bootstrap = house.bootstrap("bootstrap", "--p2pd-metrics", p2pd["bootstrap"])
        peers = [
            house.hold(
                name, run, "--p2pd-metrics", p2pd[name], "--checkpoint-every", "1", initial_peers=bootstrap.maddrs
            )
            for name in NAMES[1:]
        ]
        early, late = peers[:2], peers[2]
        for peer in peers:
            peer.prepare()
        for peer in early:
            peer.release()
        early[0].commits_until(2)
        late.release()
        targets = [("p2pd", name, address) for name, address in p2pd.items()]
        targets += [("peer", peer.name, _address(peer)) for peer in peers]
        targets.append(("bootstrap", bootstrap.name, _address(bootstrap)))
        program, prometheus = _start_prometheus(house, targets)
        late.commits_until(early[0].outer_step + OUTER_STEPS)
        _wait_for_scrapes(prometheus, program)
        yield Watched(peers, prometheus, program)
        prometheus.close()


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def _address(program: Daemon) -> str:
    return program.url.removeprefix("http://")


def _start_prometheus(house: House, targets: list[tuple[str, str, str]]) -> tuple[Program, Prometheus]:
    """A Prometheus on a port of its own choice, which its log tells."""
    folder = house.folder / "prometheus"
    config = configure(folder / "configuration", targets, SCRAPE_SECONDS)
    data = ["--storage.tsdb.path", str(folder / "data"), "--web.listen-address", "127.0.0.1:0"]
    program = house.program("prometheus", [PROMETHEUS, "--config.file", str(config), *data])

    def listening() -> re.Match[str] | None:
        return re.search(r'msg="Listening on" address=(\S+)', program.err.read_text(encoding="utf-8"))

    match = until(listening, 30, "Prometheus listens", [program])
    assert match is not None
    until(lambda: "Server is ready" in program.err.read_text(encoding="utf-8"), 30, "Prometheus is ready", [program])
    return program, Prometheus(f"http://{match[1]}")


def _wait_for_scrapes(prometheus: Prometheus, program: Program) -> None:
    """Until every target is up and has been for long enough that a rate over four scrapes has something in it."""

    def scraped() -> bool:
        up = prometheus.now(f"min_over_time(up[{8 * SCRAPE_SECONDS}s]) == 1 and count_over_time(up[30s]) > 7")
        return len(up) == 2 * len(NAMES)

    until(scraped, COMMIT_SECONDS, "Prometheus has scraped every program and its p2pd", [program])


def test_every_target_is_up_and_keeps_the_job_and_the_name_of_its_labels(watched: Watched) -> None:
    up = watched.prometheus.now("up")
    programs = {("bootstrap" if name == "bootstrap" else "peer", name) for name in NAMES}
    assert {(labels["job"], labels["instance"]) for labels, _ in up} == programs | {("p2pd", name) for name in NAMES}
    assert {value for _, value in up} == {1.0}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_of_the_dashboard_has_data(watched: Watched, query: str) -> None:
    expression = f"last_over_time(({fill(QUERIES[query], SCRAPE_SECONDS)})[1h:{SCRAPE_SECONDS}s])"
    answer = watched.prometheus.now(expression)
    assert answer or query in EMPTY_WHEN_HEALTHY, expression


def test_the_dashboard_sees_the_swarm_commit(watched: Watched) -> None:
    def value(query: str) -> float:
        ((_, value),) = watched.prometheus.now(fill(QUERIES[query], SCRAPE_SECONDS))
        return value

    assert value("Outer step A") >= OUTER_STEPS
    assert (value("Peers of the run A"), value("Alerts A"), value("Down A")) == (3, 0, 0)
    assert value("Since the last commit A") < COMMIT_SECONDS
    phases = watched.prometheus.now(fill(QUERIES["Phases A"], SCRAPE_SECONDS))
    assert len(phases) == 3


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_silent_in_a_healthy_swarm(watched: Watched, alert: str) -> None:
    watched.prometheus.now(ALERTS[alert])  # it parses, or this raises
    firing = watched.prometheus.now(f'last_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}[1h])')
    assert firing == []


def test_prometheus_evaluates_every_rule(watched: Watched) -> None:
    rules = watched.prometheus.get("rules")["groups"][0]["rules"]
    assert {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in rules} == dict.fromkeys(
        ALERTS, ("ok", "")
    )


def test_every_metric_of_dashboard_and_alerts_is_scraped(watched: Watched) -> None:
    expressions = " ".join([*QUERIES.values(), *ALERTS.values()])
    named = set(re.findall(r"\b(?:waggle|libp2p|process)_\w+", expressions))
    assert named - watched.prometheus.names() == {"waggle_records_dropped_total"}  # it appears with the first of them


def test_what_nobody_asks_for_is_not_kept(watched: Watched) -> None:
    kept = watched.prometheus.names()
    assert not [name for name in kept if re.match(r"go_memstats_|.*_created$|libp2p_(rcmgr|identify)_.*_bucket$", name)]
    assert "libp2p_holepunch_address_outcomes_total" not in kept
    assert "waggle_dht_request_seconds_bucket" in kept
