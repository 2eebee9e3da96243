"""What a demo comes to: read from the peers' journals, shown as a table, a plot, a sample and one line of JSON."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from swarm.errors import StateError
from swarm.manifest import Manifest


@dataclass(frozen=True)
class PeerReport:
    """One peer at its end: the last line of its journal."""

    peer_id: str
    outer_step: int
    digest: str
    bytes_sent: int
    bytes_received: int
    processes: int


@dataclass
class Report:
    """A finished swarm. training, validation: outer step -> loss, the mean over the peers that have it."""

    run_id: str
    peers: list[PeerReport] = field(default_factory=list)
    digests: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    training: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    validation: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def outer_steps(self) -> int:
        """The last committed one."""
        return max((peer.outer_step for peer in self.peers), default=0)

    @property
    def agreed(self) -> bool:
        """Whether at every outer step all digests are equal, and all peers ended at the same one."""
        return all(len(digests) == 1 for digests in self.digests.values()) and len({p.digest for p in self.peers}) == 1

    @property
    def loss_first(self) -> float:
        """The first validation loss."""
        return _mean(self.validation[min(self.validation)]) if self.validation else math.nan

    @property
    def loss_last(self) -> float:
        """The last validation loss."""
        return _mean(self.validation[max(self.validation)]) if self.validation else math.nan


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def read_journals(manifest: Manifest, folders: Sequence[Path]) -> Report:
    """The report of peers whose journals are in ``folders``. Raises StateError when one did not finish."""
    report = Report(manifest.run_id)
    for folder in folders:
        events = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
        for event in events:
            step = event.get("outer_step")
            if event["event"] in ("commit", "download"):
                report.digests[step].add(event["digest"])
            if event["event"] == "commit" and event["loss"] is not None:
                report.training[step].append(event["loss"])
            if event["event"] == "validation" and event["loss"] is not None:
                report.validation[step].append(event["loss"])
        if not events or events[-1]["event"] != "stop":
            raise StateError(f"{folder}: the peer ended without finishing; see its log.jsonl")
        last = events[-1]
        report.peers.append(PeerReport(**{name: last[name] for name in PeerReport.__dataclass_fields__}))
    return report


def summary(report: Report, seconds: float) -> dict[str, Any]:
    """The object of ``waggle demo --json``."""
    return {
        "run_id": report.run_id,
        "outer_steps": report.outer_steps,
        "agreed": report.agreed,
        "loss_first": report.loss_first,
        "loss_last": report.loss_last,
        "seconds": round(seconds, 1),
        "peers": [vars(peer) for peer in report.peers],
    }


def render_progress(statuses: Mapping[str, Mapping[str, Any]]) -> Table:
    """The live table: one row per peer."""
    table = Table(title="the swarm now", title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("peer", no_wrap=True)
    table.add_column("phase", min_width=11)  # may wrap; all else fits 80 characters
    for column in (
        "outer\nstep",
        "inner\nsteps",
        "ex./s",
        "loss",
        "valid.\nloss",
        "group\nsize",
        "MB\nsent",
        "MB\ngot",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("digest", no_wrap=True)
    for name, status in statuses.items():
        if not status:
            table.add_row(name, "starting")
            continue
        table.add_row(
            name,
            status["phase"] + (f" ({status['waiting']})" if status["waiting"] else ""),
            str(status["outer_step"]),
            str(status["inner_steps"]),
            f"{status['examples_per_second']:.0f}",
            _number(status["loss"]),
            _number(status["validation_loss"]),
            str(status["group_size"]),
            _megabytes(status["bytes_sent"]),
            _megabytes(status["bytes_received"]),
            str(status["digest"])[:8],
        )
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f}"


def draw_loss(report: Report, path: Path) -> Path:
    """Draws training and validation loss by outer step as a PNG."""
    import matplotlib

    matplotlib.use("Agg")  # no screen needed
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for label, losses in (("training (mean of the peers)", report.training), ("validation", report.validation)):
        steps = sorted(losses)
        axes.plot(steps, [_mean(losses[step]) for step in steps], marker="o", markersize=3, label=label)
    axes.set(xlabel="outer step", ylabel="loss (nats per token)", title=report.run_id)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return path


def sample_text(manifest: Manifest, data_dir: Path, prompt: str = "def ", length: int = 240) -> str:
    """Text that the committed model generates, seeded by the manifest."""
    from peer.data import open_tokenizer
    from peer.tasks import generate
    from waggle.export import committed_model

    model = committed_model(manifest, data_dir)
    tokenizer = open_tokenizer(manifest)
    ids = generate(model, [int(one) for one in tokenizer.encode(prompt)], length, temperature=0.6, seed=manifest.seed)
    return prompt + tokenizer.decode(ids)
