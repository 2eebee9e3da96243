"""The dashboard's queries, asked of a Prometheus as Grafana asks them; and our configuration for other targets.

Used by the tests and by the program that draws the dashboard's picture, neither of which has a Grafana.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

Json = dict[str, Any]
CONFIGURATION = Path(__file__).parent / "prometheus"
Points = list[tuple[float, float]]
"""(Unix time, value), in order."""


def fill(expression: str, scrape_seconds: float) -> str:
    """A query of the dashboard with its variables filled in: every run, every instance, a rate over four scrapes."""
    variables = {"$__rate_interval": f"{round(4 * scrape_seconds * 1000)}ms", "$instance": ".*", "$run": ".*"}
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression


def configure(folder: Path, targets: Sequence[tuple[str, str, str]], scrape_seconds: int) -> Path:
    """Our configuration in ``folder`` with other targets (job, instance, HOST:PORT), asked every ``scrape_seconds``.

    Returns the path for --config.file.
    """
    shutil.copytree(CONFIGURATION, folder, ignore=shutil.ignore_patterns("targets", "*.test.yml"))
    (folder / "targets").mkdir()
    groups = [{"labels": {"job": job, "instance": name}, "targets": [address]} for job, name, address in targets]
    (folder / "targets" / "local.yml").write_text(json.dumps(groups), encoding="utf-8")  # which is YAML, too
    path = folder / "prometheus.yml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("_interval: 15s", f"_interval: {scrape_seconds}s"), encoding="utf-8")
    return path


class Prometheus:
    """A running Prometheus, through its HTTP API."""

    def __init__(self, url: str):
        self._client = httpx.Client(base_url=url, trust_env=False, timeout=30)

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def get(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of /api/v1. Raises ValueError with Prometheus' reason, e.g. that a query is wrong."""
        answer: Json = self._client.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise ValueError(f"{answer['errorType']}: {answer['error']}")
        return answer["data"]

    def now(self, query: str) -> list[tuple[Mapping[str, str], float]]:
        """The labels and the value of each series at this moment."""
        result = self.get("query", query=query)["result"]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def over(self, query: str, start: float, end: float, step: float) -> list[tuple[Mapping[str, str], Points]]:
        """The labels and the points of each series between two Unix times, ``step`` seconds apart."""
        result = self.get("query_range", query=query, start=start, end=end, step=step)["result"]
        return [(one["metric"], [(time, float(value)) for time, value in one["values"]]) for one in result]

    def names(self) -> set[str]:
        """Every metric that it has."""
        return set(self.get("label/__name__/values"))
