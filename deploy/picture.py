"""Draws the dashboard without a Grafana: the panels, places and queries of its JSON, answered by a Prometheus.

    python -m deploy.picture --prometheus http://127.0.0.1:9090 --minutes 60 --output dashboard.png

It looks much like Grafana and is not: menus, tooltips and zooming need the real one.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from PIL import Image

from deploy.dashboard import COLUMNS, DASHBOARD
from deploy.queries import Json, Points, Prometheus, fill

UNIT_PIXELS, WIDTH_PIXELS, MARGIN_PIXELS, DPI = 27, 1560, 8, 100
POINTS = 150  # of a line
PAGE, PANEL, GRID, TEXT, FAINT = "#111217", "#181b1f", "#2a2d33", "#d0d3da", "#8b8f98"
PALETTE = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#37872d", "#c15c17", "#447ebc")
NAMED = {"green": "#4f9d53", "yellow": "#c9a227", "red": "#c4314b"}
CLOCK = (60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds between the marks of a time axis
STEPS = {"s": ((60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")), "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))}


@dataclass(frozen=True)
class Window:
    """The time that is shown, in Unix seconds, and how often Prometheus scraped."""

    start: float
    end: float
    scrape_seconds: float

    @property
    def step(self) -> float:
        """Seconds between two points of a line."""
        return max((self.end - self.start) / POINTS, self.scrape_seconds)


@dataclass(frozen=True)
class Line:
    """One series of a panel as it is drawn; values on a grid of times, NaN where there is none."""

    legend: str
    times: list[float]
    values: list[float]

    @property
    def last(self) -> float:
        """The newest value; NaN if there is none."""
        return next((value for value in reversed(self.values) if not math.isnan(value)), math.nan)


def draw(prometheus: Prometheus, window: Window, output: Path) -> None:
    """Draws the dashboard as a PNG with a palette, which is a quarter of the size of one without."""
    panels: list[Json] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * UNIT_PIXELS + MARGIN_PIXELS
    with plt.rc_context({"font.size": 7.5, "text.color": TEXT, "font.family": "DejaVu Sans"}):
        figure = plt.figure(figsize=(WIDTH_PIXELS / DPI, height / DPI), dpi=DPI, facecolor=PAGE)
        for panel in panels:
            axes = _place(figure, panel["gridPos"], height)
            if panel["type"] == "row":
                axes.text(0.004, 0.35, f"⌄  {panel['title']}", fontsize=10, weight="bold", transform=axes.transAxes)
                continue
            axes.add_patch(Rectangle((0, 0), 1, 1, color=PANEL, transform=axes.transAxes))
            _DRAWN[panel["type"]](figure, axes, panel, _ask(prometheus, panel, window))
        figure.savefig(output, facecolor=PAGE)
        plt.close(figure)
    Image.open(output).convert("RGB").quantize(160, dither=Image.Dither.NONE).save(output, optimize=True)


def _place(figure: Figure, place: Mapping[str, int], height: float) -> Axes:
    """Empty axes over a panel's place, with a gap between neighbours."""
    column = (WIDTH_PIXELS - MARGIN_PIXELS) / COLUMNS
    left, top = MARGIN_PIXELS + place["x"] * column, MARGIN_PIXELS + place["y"] * UNIT_PIXELS
    width, tall = place["w"] * column - MARGIN_PIXELS, place["h"] * UNIT_PIXELS - MARGIN_PIXELS
    axes = figure.add_axes((left / WIDTH_PIXELS, 1 - (top + tall) / height, width / WIDTH_PIXELS, tall / height))
    axes.axis("off")
    return axes


def _ask(prometheus: Prometheus, panel: Json, window: Window) -> list[Line]:
    lines = []
    down = [rule["matcher"]["options"].strip("/") for rule in panel["fieldConfig"]["overrides"]]
    for target in panel["targets"]:
        query = fill(target["expr"], max(window.scrape_seconds, window.step / 4))
        for labels, points in prometheus.over(query, window.start, window.end, window.step):
            legend = re.sub(r"\{\{(\w+)\}\}", lambda match, of=labels: of.get(match[1], ""), target["legendFormat"])
            if panel["type"] == "table":
                legend = json.dumps(labels)
            sign = -1 if any(re.fullmatch(one, legend) for one in down) else 1
            lines.append(_line(legend, points, window, sign))
    return lines


def _line(legend: str, points: Points, window: Window, sign: int) -> Line:
    count = round((window.end - window.start) / window.step) + 1
    values = [math.nan] * count
    for moment, value in points:
        values[min(count - 1, round((moment - window.start) / window.step))] = sign * value
    return Line(legend, [window.start + index * window.step for index in range(count)], values)


def say(value: float, unit: str) -> str:
    """A value as Grafana writes it, with its unit."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    suffix = {"Bps": "/s", "reqps": " req/s"}.get(unit, "")
    for size, name in STEPS.get("bytes" if unit == "Bps" else unit, ()):
        if abs(value) >= size:
            return f"{value / size:.3g} {name}{suffix}"
    return f"{value:,.4g}{suffix}"


def _title(axes: Axes, panel: Json) -> None:
    place = panel["gridPos"]
    axes.text(
        0.1 / place["w"] + 0.004, 1 - 0.55 / place["h"], panel["title"], fontsize=8.5, weight="bold", va="center",
        transform=axes.transAxes,
    )  # fmt: skip


def _inside(figure: Figure, axes: Axes, panel: Json, bottom: float, left: float = 0.75) -> Axes:
    """Axes within a panel, for the plot: grid units are left free for title, ticks and legend."""
    box, place = axes.get_position(), panel["gridPos"]
    unit, column = box.height / place["h"], box.width / place["w"]
    return figure.add_axes((
        box.x0 + left * column, box.y0 + bottom * unit, box.width - (left + 0.12) * column,
        box.height - (bottom + 1.2) * unit,
    ))  # fmt: skip


def _stat(figure: Figure, axes: Axes, panel: Json, lines: Sequence[Line]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    value = lines[0].last if lines else math.nan
    steps = [step for step in defaults["thresholds"]["steps"] if step["value"] is None or value >= step["value"]]
    colour = NAMED[(steps or defaults["thresholds"]["steps"])[-1]["color"]]
    filled = panel["options"]["colorMode"] == "background"
    if filled:
        axes.add_patch(Rectangle((0, 0), 1, 1, color=colour, transform=axes.transAxes))
    _title(axes, panel)
    text = say(round(value, 3) if abs(value) < 1000 else value, defaults["unit"])
    axes.text(0.5, 0.46, text, fontsize=22, weight="bold", ha="center", va="center", transform=axes.transAxes,
              color="white" if filled else PALETTE[0])  # fmt: skip
    if lines:
        plot = _inside(figure, axes, panel, 0.0, 0.12)
        plot.axis("off")
        colour = "white" if filled else PALETTE[0]
        plot.plot(lines[0].times, lines[0].values, color=colour, linewidth=0.8, alpha=0.45)
        low, high = plot.get_ylim()
        plot.set_ylim(low, low + 3.2 * (high - low))


def _timeseries(figure: Figure, axes: Axes, panel: Json, lines: Sequence[Line]) -> None:
    _title(axes, panel)
    defaults = panel["fieldConfig"]["defaults"]
    custom, unit = defaults["custom"], defaults["unit"]
    if not lines:
        axes.text(0.5, 0.45, defaults.get("noValue", "No data"), ha="center", color=FAINT, fontsize=10,
                  transform=axes.transAxes)  # fmt: skip
        return
    shown = [line for line in lines if any(value for value in line.values if not math.isnan(value))] or lines[:1]
    plot = _inside(figure, axes, panel, 1.75)
    _plot(plot, shown, custom)
    plot.set_facecolor(PANEL)
    plot.set_xlim(shown[0].times[0], shown[0].times[-1])
    low, high = plot.get_ylim()
    flat = all(not value or math.isnan(value) for line in shown for value in line.values)
    plot.set_ylim(0 if defaults.get("min") == 0 else low, 1 if flat else high)
    plot.grid(color=GRID, linewidth=0.6)
    plot.yaxis.set_major_locator(MaxNLocator(4))
    plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: say(value, unit)))
    _clock(plot)
    _legend(axes, panel, [(line.legend, PALETTE[index % len(PALETTE)]) for index, line in enumerate(shown)])


def _plot(plot: Axes, lines: Sequence[Line], custom: Json) -> None:
    colours = [PALETTE[index % len(PALETTE)] for index in range(len(lines))]
    alpha = custom["fillOpacity"] / 100
    times = lines[0].times
    if custom["stacking"]["mode"] == "none":
        for line, colour in zip(lines, colours, strict=True):
            plot.plot(times, line.values, color=colour, linewidth=1.1)
            plot.fill_between(times, line.values, color=colour, alpha=alpha, linewidth=0)
        if all(value > 0 or math.isnan(value) for line in lines for value in line.values):
            known = [value for line in lines for value in line.values if not math.isnan(value)]
            plot.set_ylim(min(known) - 0.1 * (max(known) - min(known)), None)
        return
    base = [0.0] * len(times)
    for line, colour in zip(lines, colours, strict=True):
        top = [below + (0.0 if math.isnan(value) else value) for below, value in zip(base, line.values, strict=True)]
        if custom["drawStyle"] == "bars":
            heights = [high - below for high, below in zip(top, base, strict=True)]
            plot.bar(times, heights, bottom=base, width=times[1] - times[0], color=colour, alpha=0.8)
        else:
            plot.fill_between(times, base, top, color=colour, alpha=alpha, linewidth=0)
            plot.plot(times, top, color=colour, linewidth=1.0)
        base = top


def _clock(plot: Axes) -> None:
    plot.tick_params(colors=FAINT, length=0, labelsize=7)
    start, end = plot.get_xlim()
    apart = next((seconds for seconds in CLOCK if (end - start) / seconds <= 6), CLOCK[-1])
    plot.xaxis.set_major_locator(FixedLocator([apart * n for n in range(int(start / apart) + 1, int(end / apart) + 1)]))
    plot.xaxis.set_major_formatter(
        FuncFormatter(lambda moment, _: datetime.fromtimestamp(moment, timezone.utc).strftime("%H:%M"))
    )
    for side in plot.spines.values():
        side.set_visible(False)


def _legend(axes: Axes, panel: Json, entries: Sequence[tuple[str, str]]) -> None:
    """Marks and names in a line at the panel's foot, as many as there is room for."""
    width = axes.get_window_extent().width
    left, foot = 8.0, 0.45 / panel["gridPos"]["h"]
    for name, colour in entries:
        text = axes.text((left + 17) / width, foot, name, va="center", transform=axes.transAxes, color=TEXT)
        right = text.get_window_extent().x1 - axes.get_window_extent().x0
        if right > width:
            text.set(text="…", color=FAINT, x=1 - 3 / width, ha="right")
            break
        axes.plot([left / width, (left + 12) / width], [foot, foot], color=colour, linewidth=2.5,
                  transform=axes.transAxes, solid_capstyle="butt")  # fmt: skip
        left = right + 12


def _state_timeline(figure: Figure, axes: Axes, panel: Json, lines: Sequence[Line]) -> None:
    _title(axes, panel)
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    looks = {float(number): (look["text"], look["color"]) for number, look in mapping["options"].items()}
    plot = _inside(figure, axes, panel, 1.75, 1.1)
    plot.set_facecolor(PANEL)
    seen = set()
    for row, line in enumerate(reversed(lines)):
        width = line.times[1] - line.times[0]
        for moment, value in zip(line.times, line.values, strict=True):
            if not math.isnan(value):
                seen.add(value)
                plot.barh(row, width * 1.02, left=moment - width / 2, height=0.72, color=looks[value][1], alpha=0.9)
    if lines:
        plot.set_xlim(lines[0].times[0], lines[0].times[-1])
        _clock(plot)
    plot.set_yticks(range(len(lines)), [line.legend for line in reversed(lines)], color=TEXT)
    _legend(axes, panel, [looks[value] for value in sorted(seen)])


def _table(figure: Figure, axes: Axes, panel: Json, lines: Sequence[Line]) -> None:
    _title(axes, panel)
    rows: list[dict[str, Any]] = [json.loads(line.legend) for line in lines if not math.isnan(line.last)]
    names = list(rows[0]) if rows else []
    for index, name in enumerate(names):
        left = 0.02 + index / max(len(names), 1)
        for number, text in enumerate([name, *(row[name] for row in rows)]):
            axes.text(left, 1 - (1.6 + number * 0.85) / panel["gridPos"]["h"], text, va="center",
                      color=PALETTE[2] if number == 0 else TEXT, transform=axes.transAxes)  # fmt: skip


_DRAWN = {"stat": _stat, "timeseries": _timeseries, "state-timeline": _state_timeline, "table": _table}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw the Waggle dashboard from a Prometheus, without Grafana.")
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="URL (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="how far to look back (default %(default)s)")
    parser.add_argument("--scrape-seconds", type=float, default=15.0, help="scrape_interval (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("dashboard.png"), help="PNG (default %(default)s)")
    given = parser.parse_args()
    prometheus, now = Prometheus(given.prometheus), time.time()
    draw(prometheus, Window(now - 60 * given.minutes, now, given.scrape_seconds), given.output)
    prometheus.close()


if __name__ == "__main__":
    main()
