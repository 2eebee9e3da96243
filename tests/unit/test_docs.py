"""The pages tell all there is: every metric, label and word, every file; and every link leads somewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.metrics import MetricWrapperBase

from peer.metrics import OUTCOMES, REFUSALS, WAITS, PeerMetrics
from peer.phase import Phase
from peer.tasks import shape_model
from swarm.manifest import Manifest
from swarm.metrics import NetworkMetrics

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("swarm", "peer", "bootstrap", "waggle", "bench")
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "bench/**/*.md", "tests/**/*.md", "runs/**/*.md")
    for path in ROOT.glob(pattern)
)
SUFFIXES = {"counter": "_total", "gauge": "", "histogram": ""}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def exposed(metrics: NetworkMetrics) -> dict[str, tuple[str, frozenset[str]]]:
    """name as exposed -> (type, labels) of every waggle_ metric."""
    found = {}
    # A metric with labels and without samples has its label names nowhere but here.
    for collector in list(metrics.registry._collector_to_names):  # no public way to list them
        if isinstance(collector, MetricWrapperBase) and collector._name.startswith("waggle_"):
            name = collector._name + SUFFIXES[collector._type]
            found[name] = (collector._type, frozenset(collector._labelnames))
    return found


def rows(section: str, text: str = METRICS) -> Iterator[list[str]]:
    """The cells of the table rows under a heading, the table's head left out."""
    body = re.split(r"^#+ ", text.split(f"{section}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
    lines = [line for line in body.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def ticked(cell: str) -> frozenset[str]:
    """What stands in backticks."""
    return frozenset(re.findall(r"`([^`]+)`", cell))


def documented(section: str) -> dict[str, tuple[str, frozenset[str]]]:
    return {next(iter(ticked(name))): (kind, ticked(labels)) for name, kind, labels, _ in rows(section)}


@pytest.fixture
def peer_metrics() -> PeerMetrics:
    return PeerMetrics(CollectorRegistry(), "test")


@pytest.fixture
def network_metrics() -> NetworkMetrics:
    return NetworkMetrics(CollectorRegistry(), "bootstrap", "test")


def test_metrics_of_every_program_are_documented(network_metrics: NetworkMetrics) -> None:
    assert documented("## Peers and bootstraps") == exposed(network_metrics)


def test_metrics_of_a_peer_are_documented(peer_metrics: PeerMetrics, network_metrics: NetworkMetrics) -> None:
    common = exposed(network_metrics)
    own = {name: value for name, value in exposed(peer_metrics).items() if name not in common}
    assert documented("## Peers") == own


def test_the_table_shows_names_as_they_are_scraped(peer_metrics: PeerMetrics) -> None:
    scraped = {sample.name for family in peer_metrics.registry.collect() for sample in family.samples}
    for name, (kind, labels) in documented("## Peers").items():
        if not labels:
            assert name in scraped or f"{name}_count" in scraped, (name, kind)


def test_an_undocumented_metric_would_be_noticed(peer_metrics: PeerMetrics) -> None:
    Gauge("waggle_unheard_of", "", ["why"], registry=peer_metrics.registry)
    assert exposed(peer_metrics)["waggle_unheard_of"] == ("gauge", frozenset({"why"}))


def test_every_metric_named_on_any_page_exists(peer_metrics: PeerMetrics) -> None:
    known = set(exposed(peer_metrics))
    known |= {f"{name}{part}" for name in known for part in ("_sum", "_count", "_bucket")}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        # A name ends where no prefix (waggle_, waggle_bytes_*) and no file (waggle_demo.py) goes on.
        named = set(re.findall(r"\bwaggle_[a-z_]*[a-z]\b(?![*.(/])", text))
        assert named <= known, f"{page.relative_to(ROOT)}: {sorted(named - known)}"


def test_labels_and_their_fixed_values(peer_metrics: PeerMetrics) -> None:
    metrics = exposed(peer_metrics)
    told: set[tuple[str, str]] = set()
    values: dict[tuple[str, str], frozenset[str]] = {}
    for labels, of, text in rows("## Labels and their values"):
        for label in ticked(labels):
            for short in of.split(", "):
                name = next(one for one in metrics if one.removesuffix("_total") == f"waggle_{short}")
                told.add((name, label))
                values[name, label] = ticked(text)
    assert told == {(name, label) for name, (_, labels) in metrics.items() for label in labels}
    phases = {phase.value for phase in Phase}
    assert values["waggle_phase", "phase"] == values["waggle_peers", "phase"] == phases
    assert values["waggle_waiting", "reason"] == set(WAITS)


@pytest.mark.parametrize("section, words", [("### Outcomes", OUTCOMES), ("### Refusals", REFUSALS)])
def test_every_word_for_an_end_or_a_refusal_is_explained(section: str, words: frozenset[str]) -> None:
    assert frozenset().union(*(ticked(cells[0]) for cells in rows(section))) == words


def anchors(page: Path) -> set[str]:
    """The headings of a page as GitHub links to them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ +(.*?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in anchors(found), f"{target}: no such heading"


def mapped() -> set[Path]:
    """The files and folders that the README's map names."""
    (text,) = re.findall(r"^```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    found, folder = set(), Path()
    for line in filter(None, text.splitlines()):
        name, _, note = line.strip().partition(" ")
        assert note.strip(), f"{line!r} says nothing about it"
        if line.startswith(" "):
            found.add(folder / name)
        else:
            folder = Path(name)
            found.add(folder)
    return found


def test_every_module_is_on_the_map() -> None:
    modules = {
        path.relative_to(ROOT)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    }
    assert not sorted(modules - mapped())


def test_every_manifest_that_is_ready_to_use_is_on_the_map() -> None:
    assert {path.relative_to(ROOT) for path in (ROOT / "runs").glob("*.toml")} <= mapped()


def test_everything_on_the_map_exists() -> None:
    assert not [str(path) for path in sorted(mapped()) if not (ROOT / path).exists()]


def test_the_manifest_in_the_readme_is_valid(capfd: pytest.CaptureFixture[str]) -> None:
    (text,) = re.findall(r"^```toml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    manifest = Manifest.from_toml(text)
    shape_model(manifest)
    assert len(text.splitlines()) <= 16
    assert capfd.readouterr().err == ""


def test_the_readme_opens_with_the_two_commands() -> None:
    first_screen = README.splitlines()[:8]
    assert [line.split("#")[0].split() for line in first_screen if line.startswith("$")] == [
        ["$", "make", "demo"],
        ["$", "make", "test"],
    ]
