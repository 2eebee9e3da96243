"""What the dashboard shows: one line per question, with its queries. `deploy.dashboard` makes Grafana's JSON of it.

In a query, ``@`` stands for the dashboard's choice of runs and instances. ``$__rate_interval`` is Grafana's: some
scrapes, and more the longer the time shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PHASES = ("starting", "joining", "downloading", "training", "averaging", "paused", "leaving", "stopped")
REACHABILITY = ("unknown", "public", "private")
CHOSEN = 'run=~"$run", instance=~"$instance"'
_PHASE = " or ".join(f'waggle_phase{{@, phase="{phase}"}} * {number}' for number, phase in enumerate(PHASES))
_RATE = "[$__rate_interval]"

Thresholds = Mapping[str, float]
"""Colour -> from which value it holds; green holds below the first."""


@dataclass(frozen=True)
class Panel:
    """A question and its answer. ``queries``: legend (with {{label}}) -> PromQL. ``width``: of 24 columns."""

    title: str
    description: str
    queries: Mapping[str, str]
    unit: str = "short"
    width: int = 8
    kind: str = "timeseries"
    thresholds: Thresholds = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    """For timeseries: stack, bars, zero, negative (a regular expression of legends that are drawn downwards). For
    state-timeline: states, the words for 0, 1, 2 ... For all: empty, what is shown where there is nothing."""


@dataclass(frozen=True)
class Row:
    """Panels side by side, under a title if it has one; ``height`` in Grafana's units of 30 pixels."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8


def _stat(title: str, description: str, query: str, unit: str = "none", **thresholds: float) -> Panel:
    return Panel(title, description, {"": query}, unit=unit, width=3, kind="stat", thresholds=thresholds)


FIRST_LOOK = Row(
    "",
    (
        _stat("Outer step", "Where most of the swarm stands.", "max(waggle_swarm_outer_step{@})"),
        _stat(
            "Since the last commit",
            "Of the peer that committed last. Red is no limit of Waggle's: set it to some outer steps of your run.",
            "time() - max(waggle_last_commit_timestamp_seconds{@} > 0)", "s", yellow=300, red=900,
        ),
        _stat(
            "Validation loss", "On examples that nobody trains on, in nats per token; mean over the watched peers.",
            "avg(waggle_validation_loss{@} != 0)",
        ),
        _stat(
            "Peers of the run", "As the watched peer that sees most of them counts them, itself included.",
            'max(sum without (phase) (waggle_peers{@, phase!~"leaving|stopped"})) + 1',
        ),
        _stat("Group", "Peers in the group of the last commit.", "max(waggle_group_size{@})"),
        _stat(
            "Furthest behind", "Outer steps that the last of the watched peers lacks. One for a moment is normal.",
            "max(clamp_min(waggle_swarm_outer_step{@} - waggle_outer_step{@}, 0))", yellow=1, red=3,
        ),
        _stat(
            "Alerts", "Alerts that fire now; docs/operating.md says what to do about each.",
            'count(ALERTS{alertstate="firing", alertname=~"Waggle.+", run=~"$run"}) or vector(0)', red=1,
        ),
        _stat(
            "Down", "Peers and bootstraps that answered within the last day and do not now.",
            'count(max_over_time(up{job=~"peer|bootstrap", run=~"$run"}[1d]) == 1 '
            'unless up{job=~"peer|bootstrap"} == 1) or vector(0)', red=1,
        ),
    ),
    height=4,
)  # fmt: skip

# "!= 0": a loss is 0 before the first one is known. NaN is not 0, and stays.
LEARNING = Row(
    "Is the swarm learning?",
    (
        Panel(
            "Validation loss of each peer",
            "Equal on all peers at the same outer step, so the lines should lie on each other.",
            {"{{instance}}": "waggle_validation_loss{@} != 0"}, unit="none",
        ),
        Panel(
            "Training loss of each peer",
            "Mean over the local work of each peer for its last commit, in nats per token.",
            {"{{instance}}": "waggle_loss{@} != 0"}, unit="none",
        ),
        Panel(
            "Outer step of each peer",
            "Flat: no commits. A line below the others: that peer is behind. A jump: it downloaded.",
            {"{{instance}}": "waggle_outer_step{@}"}, unit="none",
        ),
    ),
)  # fmt: skip

TAKING_PART = Row(
    "Who takes part?",
    (
        Panel(
            "Phases", "What each watched peer is doing. Averaging for long: a round waits for somebody.",
            {"{{instance}}": f"sum by (instance) ({_PHASE})"}, width=12, kind="state-timeline",
            options={"states": PHASES},
        ),
        Panel(
            "Peers by phase", "Other peers of the run, watched or not, by what they say; the most that any peer sees.",
            {"{{phase}}": "max by (phase) (waggle_peers{@})"}, width=6, options={"stack": True, "zero": True},
        ),
        Panel(
            "Why no group forms",
            "Watched peers that wait, by reason: company: too few peers; majority: too few of those who signed the "
            "last commit; leader: nobody gives a seat; full: no seat left.",
            {"{{reason}}": "sum by (reason) (waggle_waiting{@})"}, width=6, options={"stack": True, "zero": True},
        ),
    ),
    height=7,
)  # fmt: skip

ROUNDS = Row(
    "Rounds",
    (
        Panel(
            "Rounds by outcome", "Attempts per minute of all watched peers. docs/metrics.md explains every outcome.",
            {"{{outcome}}": f"sum by (outcome) (rate(waggle_rounds_total{{@}}{_RATE})) * 60"},
            options={"stack": True, "zero": True},
        ),
        Panel(
            "Seconds of a round",
            "Mean by stage, of rounds that committed. group: until all are there; exchange: the all-reduce; "
            "commit: the votes.",
            {
                "{{stage}}": f"sum by (stage) (rate(waggle_round_seconds_sum{{@}}{_RATE}))"
                f" / sum by (stage) (rate(waggle_round_seconds_count{{@}}{_RATE}))"
            }, unit="s", options={"stack": True, "zero": True},
        ),
        Panel(
            "Slow rounds", "The 95th percentile of each stage.",
            {
                "{{stage}}": "histogram_quantile(0.95, "
                f"sum by (le, stage) (rate(waggle_round_seconds_bucket{{@}}{_RATE})))"
            }, unit="s", options={"zero": True},
        ),
        Panel(
            "Commits", "Per minute, of each peer. Peers in the same groups have the same line.",
            {"{{instance}}": f'rate(waggle_rounds_total{{@, outcome="committed"}}{_RATE}) * 60'}, width=6,
            options={"zero": True},
        ),
        Panel(
            "Group size", "Peers in the group of each peer's last commit.",
            {"{{instance}}": "waggle_group_size{@}"}, width=6, options={"zero": True},
        ),
        Panel(
            "Behind the swarm",
            "Outer steps that a peer lacks: one for a moment after a commit. What it knows of the swarm may also lag.",
            {"{{instance}}": "clamp_min(waggle_swarm_outer_step{@} - waggle_outer_step{@}, 0)"}, width=6,
            options={"zero": True},
        ),
        Panel(
            "Refusals", "Contributions and messages refused, by reason. The log names the peer they came from.",
            {"{{reason}}": f"sum by (reason) (increase(waggle_refusals_total{{@}}{_RATE})) > 0"}, width=6,
            options={"bars": True, "stack": True, "zero": True, "empty": "nothing was refused"},
        ),
    ),
)  # fmt: skip

WORK = Row(
    "Work",
    (
        Panel(
            "Examples per second", "Of each watched peer, over its last half minute of work.",
            {"{{instance}}": "waggle_examples_per_second{@}"}, options={"stack": True, "zero": True},
        ),
        Panel(
            "Share of time in rounds", "Seconds in committed rounds per second: what training together costs.",
            {"{{instance}}": f"sum by (instance) (rate(waggle_round_seconds_sum{{@}}{_RATE}))"}, unit="percentunit",
            options={"zero": True},
        ),
        Panel(
            "Share of time waiting for data", "Much of it: the source or the disk is slower than the device.",
            {"{{instance}}": f"rate(waggle_data_wait_seconds_total{{@}}{_RATE})"}, unit="percentunit",
            options={"zero": True},
        ),
    ),
)  # fmt: skip

BYTES = Row(
    "Bytes and state",
    (
        Panel(
            "Traffic", "Bytes per second of all watched peers, by purpose; sent is drawn downwards.",
            {"{{direction}}, {{purpose}}": f"sum by (direction, purpose) (rate(waggle_bytes_total{{@}}{_RATE}))"},
            unit="Bps", width=6, options={"negative": "sent.*"},
        ),
        Panel(
            "Bytes per commit", "What a peer sends and receives for one outer step.",
            {
                "{{instance}}": f'sum by (instance) (rate(waggle_bytes_total{{@, purpose="round"}}{_RATE}))'
                f' / sum by (instance) (rate(waggle_rounds_total{{@, outcome="committed"}}{_RATE}))'
            }, unit="bytes", width=6, options={"zero": True},
        ),
        Panel(
            "State transfers", "Downloads and uploads of the committed state that ended.",
            {
                "{{direction}}, {{outcome}}": "sum by (direction, outcome) "
                f"(increase(waggle_state_transfers_total{{@}}{_RATE}))"
            }, width=6, options={"bars": True, "stack": True, "zero": True, "empty": "no transfers"},
        ),
        Panel(
            "Age of the checkpoint", "Seconds since each peer's last checkpoint was written.",
            {"{{instance}}": "time() - (waggle_last_checkpoint_timestamp_seconds{@} > 0)"}, unit="s", width=6,
            options={"zero": True, "empty": "no checkpoint yet"},
        ),
    ),
)  # fmt: skip

NETWORK = Row(
    "Network",
    (
        Panel(
            "DHT requests", "Per second, by operation and outcome.",
            {
                "{{operation}}, {{outcome}}": "sum by (operation, outcome) "
                f"(rate(waggle_dht_requests_total{{@}}{_RATE}))"
            }, unit="reqps", width=6, options={"stack": True, "zero": True},
        ),
        Panel(
            "DHT latency", "Median and 95th percentile of requests, failed ones included.",
            {
                f"{{{{operation}}}}, {name}": f"histogram_quantile({quantile}, sum by (le, operation) "
                f"(rate(waggle_dht_request_seconds_bucket{{@}}{_RATE})))"
                for name, quantile in (("median", 0.5), ("95 %", 0.95))
            }, unit="s", width=6, options={"zero": True},
        ),
        Panel(
            "Routing table", "Peers that each program's DHT knows. None for long: it is cut off.",
            {"{{instance}}": "waggle_dht_peers{@}"}, width=6, options={"zero": True},
        ),
        Panel(
            "Records dropped", "DHT records that failed a check: broken, forged, expired, of another run.",
            {"{{reason}}": f"sum by (reason) (increase(waggle_records_dropped_total{{@}}{_RATE})) > 0"}, width=6,
            options={"bars": True, "stack": True, "zero": True, "empty": "none was dropped"},
        ),
        Panel(
            "Connections", "libp2p connections that each p2pd holds.",
            {"{{instance}}": 'sum by (instance) (libp2p_rcmgr_connections{@, scope="system"})'}, width=6,
            options={"zero": True},
        ),
        Panel(
            "Connections opened", "Per minute, by direction and transport. Many: they break, or strangers come.",
            {
                "{{dir}}, {{transport}}": "sum by (dir, transport) "
                f"(rate(libp2p_swarm_connections_opened_total{{@}}{_RATE})) * 60"
            }, width=6, options={"zero": True},
        ),
        Panel(
            "Reachability", "What p2pd found out about itself: private means that nobody can dial it.",
            {"{{instance}}": "libp2p_autonat_reachability_status{@}"}, width=12, kind="state-timeline",
            options={"states": REACHABILITY},
        ),
    ),
    height=7,
)  # fmt: skip

PROGRAMS = Row(
    "Programs",
    (
        Panel(
            "Memory", "Resident memory of each program and its p2pd.",
            {"{{instance}} {{job}}": 'process_resident_memory_bytes{@, job=~"peer|bootstrap|p2pd"}'},
            unit="bytes", options={"zero": True},
        ),
        Panel(
            "CPU", "Cores that each program and its p2pd use.",
            {"{{instance}} {{job}}": f'rate(process_cpu_seconds_total{{@, job=~"peer|bootstrap|p2pd"}}{_RATE})'},
            unit="none", options={"zero": True},
        ),
        Panel(
            "What runs where", "Peers of one run should have one version.",
            {"": "sum by (instance, program, version, python) (waggle_build_info{@})"}, kind="table",
        ),
    ),
)  # fmt: skip

ROWS = (FIRST_LOOK, LEARNING, TAKING_PART, ROUNDS, WORK, BYTES, NETWORK, PROGRAMS)
