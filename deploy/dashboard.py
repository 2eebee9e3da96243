"""Writes the Grafana dashboard, deploy/grafana/dashboards/waggle.json, from the panels in `deploy.panels`.

    python -m deploy.dashboard

The JSON is what Grafana loads and what people import; a test fails when it is not what this program writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.panels import CHOSEN, ROWS, Panel

DASHBOARD = Path(__file__).parent / "grafana" / "dashboards" / "waggle.json"
COLUMNS = 24
LINE = 110
SOURCE = {"type": "prometheus", "uid": "${datasource}"}

Json = dict[str, Any]


def render() -> str:
    """The dashboard as JSON, the same at every call."""
    return _written(dashboard(), "") + "\n"


def _written(value: Any, margin: str) -> str:
    """JSON that can be read in a diff: what fits a line is on one."""
    line = json.dumps(value, ensure_ascii=False)
    if len(margin) + len(line) <= LINE or not isinstance(value, (dict, list)):
        return line
    deeper = margin + "  "
    if isinstance(value, list):
        open_, close, items = "[", "]", [_written(item, deeper) for item in value]
    else:
        open_, close = "{", "}"
        items = [f"{json.dumps(name)}: {_written(item, deeper)}" for name, item in value.items()]
    body = ",\n".join(deeper + item for item in items)
    return f"{open_}\n{body}\n{margin}{close}"


def dashboard() -> Json:
    """The dashboard as Grafana's model has it."""
    return {
        "uid": "waggle",
        "title": "Waggle",
        "description": "A swarm of peers that train one model together. Made by deploy/dashboard.py.",
        "tags": ["waggle"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [
                {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"},
                _menu("run", "label_values(up, run)"),
                _menu("instance", 'label_values(up{job=~"peer|bootstrap", run=~"$run"}, instance)'),
            ]
        },
        "annotations": {"list": [_firing_alerts()]},
        "links": [
            {
                "title": "What to do", "type": "link", "targetBlank": True, "icon": "doc",
                "url": "https://github.com/waggle-swarm/waggle/blob/main/docs/operating.md",
            }
        ],
        "panels": _panels(),
    }  # fmt: skip


def _menu(name: str, query: str) -> Json:
    """A variable with the values that Prometheus knows; All matches what has no such label, too."""
    return {
        "name": name, "label": name, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _firing_alerts() -> Json:
    expression = 'ALERTS{alertstate="firing", alertname=~"Waggle.+", run=~"$run"}'
    return {
        "name": "alerts", "datasource": SOURCE, "enable": True, "iconColor": "red", "expr": expression,
        "titleFormat": "{{alertname}}", "textFormat": "{{instance}}", "step": "60s",
    }  # fmt: skip


def _panels() -> list[Json]:
    panels: list[Json] = []
    top = 0
    for row in ROWS:
        if row.title:
            place = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
            panels.append({"id": len(panels) + 1, "type": "row", "title": row.title, "gridPos": place, "panels": []})
            top += 1
        left = 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                left, top = 0, top + row.height
            place = {"x": left, "y": top, "w": panel.width, "h": row.height}
            panels.append({"id": len(panels) + 1, **_panel(panel), "gridPos": place})
            left += panel.width
        top += row.height
    return panels


def _panel(panel: Panel) -> Json:
    custom, options = _LOOKS[panel.kind](panel)
    steps = [{"color": "green", "value": None}, *({"color": c, "value": v} for c, v in panel.thresholds.items())]
    states = panel.options.get("states", ())
    defaults = {
        "unit": panel.unit,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": custom,
        **({"min": 0} if panel.options.get("zero") else {}),
        **({"noValue": panel.options["empty"]} if "empty" in panel.options else {}),
        **({"mappings": [_mapping(states)]} if states else {}),
    }
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": SOURCE,
        "targets": [_target(panel, index) for index in range(len(panel.queries))],
        "fieldConfig": {"defaults": defaults, "overrides": _overrides(panel)},
        "options": options,
        **({"transformations": [_columns()]} if panel.kind == "table" else {}),
    }


def _target(panel: Panel, index: int) -> Json:
    legend, expression = list(panel.queries.items())[index]
    instant = panel.kind == "table"
    return {
        "refId": chr(ord("A") + index), "expr": expression.replace("@", CHOSEN), "legendFormat": legend or "__auto",
        "instant": instant, "range": not instant, "format": "table" if instant else "time_series",
    }  # fmt: skip


def _stat(panel: Panel) -> tuple[Json, Json]:
    return {}, {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "background" if panel.thresholds else "value",
        "graphMode": "area",
        "textMode": "value",
    }


def _timeseries(panel: Panel) -> tuple[Json, Json]:
    look = panel.options
    custom = {
        "drawStyle": "bars" if look.get("bars") else "line",
        "lineWidth": 1,
        "fillOpacity": 60 if look.get("bars") else 25 if look.get("stack") else 8,
        "showPoints": "never",
        "stacking": {"mode": "normal" if look.get("stack") else "none", "group": "A"},
    }
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return custom, {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}


def _state_timeline(panel: Panel) -> tuple[Json, Json]:
    return {"fillOpacity": 80, "lineWidth": 0}, {
        "mergeValues": True, "rowHeight": 0.8, "showValue": "auto", "legend": {"showLegend": True},
    }  # fmt: skip


def _table(panel: Panel) -> tuple[Json, Json]:
    return {"align": "auto"}, {"showHeader": True, "cellHeight": "sm"}


_LOOKS = {"stat": _stat, "timeseries": _timeseries, "state-timeline": _state_timeline, "table": _table}
STATE_COLOURS = ("#8e8e8e", "#5794f2", "#b877d9", "#73bf69", "#fade2a", "#ff9830", "#ca95e5", "#c4162a")


def _mapping(states: tuple[str, ...]) -> Json:
    """Words and colours for the numbers of a state timeline."""
    words = {
        str(number): {"index": number, "text": state, "color": STATE_COLOURS[number]}
        for number, state in enumerate(states)
    }
    return {"type": "value", "options": words}


def _overrides(panel: Panel) -> list[Json]:
    downwards = panel.options.get("negative")
    if not downwards:
        return []
    matcher = {"id": "byRegexp", "options": f"/{downwards}/"}
    return [{"matcher": matcher, "properties": [{"id": "custom.transform", "value": "negative-Y"}]}]


def _columns() -> Json:
    """Grafana's table has time and value, too, which say nothing here."""
    return {"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True}}}


if __name__ == "__main__":
    DASHBOARD.write_text(render(), encoding="utf-8")
