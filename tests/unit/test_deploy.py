"""The files for Prometheus and Grafana: promtool believes them, alerts fire when they should, runbooks exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from deploy.dashboard import COLUMNS, DASHBOARD, render
from deploy.queries import CONFIGURATION
from peer.metrics import PeerMetrics
from tests.unit.test_docs import ROOT, anchors, exposed

GRAFANA = DASHBOARD.parents[1]
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((CONFIGURATION / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
PAGE = "https://github.com/waggle-swarm/waggle/blob/main/docs/operating.md"
PANELS: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)


def promtool(*arguments: str, folder: Path = CONFIGURATION) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@needs_promtool
def test_prometheus_takes_the_configuration() -> None:
    checked = promtool("check", "config", "prometheus.yml")
    assert checked.returncode == 0, checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


@needs_promtool
def test_alerts_fire_when_they_should_and_not_otherwise() -> None:
    tested = promtool("test", "rules", "alerts.test.yml")
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs_promtool
def test_an_alert_that_never_fires_would_be_noticed(tmp_path: Path) -> None:
    rules = [{**rule, "expr": "vector(1) > 1"} for rule in ALERTS]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump({"groups": [{"name": "waggle", "rules": rules}]}))
    shutil.copy(CONFIGURATION / "alerts.test.yml", tmp_path)
    tested = promtool("test", "rules", "alerts.test.yml", folder=tmp_path)
    assert tested.returncode != 0
    expected = set(re.findall(r'alertname="(\w+)"', tested.stdout + tested.stderr))
    assert expected >= {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["for"]
    assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert (page, anchor) == (PAGE, rule["alert"].lower())
    assert anchor in anchors(ROOT / "docs" / "operating.md")


def test_every_metric_in_alerts_and_dashboard_exists() -> None:
    known = set(exposed(PeerMetrics(CollectorRegistry(), "test")))
    known |= {f"{name}{part}" for name in known for part in ("_sum", "_count", "_bucket")}
    queries = [rule["expr"] for rule in ALERTS]
    queries += [target["expr"] for panel in PANELS for target in panel.get("targets", [])]
    assert set(re.findall(r"\bwaggle_\w+", " ".join(queries))) <= known


def test_the_dashboard_is_what_its_program_writes() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == render(), "run python -m deploy.dashboard"


def test_every_panel_is_described_and_none_lies_on_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        cells = {(x + place["x"], y + place["y"]) for x in range(place["w"]) for y in range(place["h"])}
        assert max(x for x, _ in cells) < COLUMNS, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or panel["description"].endswith("."), panel["title"]
    assert len({panel["id"] for panel in PANELS}) == len({panel["title"] for panel in PANELS}) == len(PANELS)


def test_every_program_has_its_p2pd_among_the_targets() -> None:
    groups = yaml.safe_load((CONFIGURATION / "targets" / "compose.yml").read_text(encoding="utf-8"))
    names = {(group["labels"]["job"], group["labels"]["instance"]) for group in groups}
    programs = {name for job, name in names if job in {"peer", "bootstrap"}}
    assert {name for job, name in names if job == "p2pd"} == programs
    assert len(groups) == len(names) == 2 * len(programs)


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text())["datasources"]
    scraping = yaml.safe_load((CONFIGURATION / "prometheus.yml").read_text(encoding="utf-8"))["global"]
    assert source["type"] == "prometheus"
    assert source["jsonData"]["timeInterval"] == scraping["scrape_interval"]
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "waggle.yml").read_text())["providers"]
    assert provider["type"] == "file"
