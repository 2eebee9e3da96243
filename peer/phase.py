"""The phases of a peer: one table, no input or output in it.

The daemon reports what happened as an event and takes the next phase from here, so that what a peer may do
when is read in one place, and a test can walk all of it. An event that a phase does not expect raises and
changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType


class Phase(str, Enum):
    """What a peer is doing, as /status and the metric show it."""

    STARTING = "starting"
    JOINING = "joining"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    AVERAGING = "averaging"
    PAUSED = "paused"
    LEAVING = "leaving"
    STOPPED = "stopped"


class Event(str, Enum):
    """What happened to a peer."""

    NETWORKED = "networked"
    LAGGING = "lagging"
    CURRENT = "current"
    CALLED = "called"
    COMMITTED = "committed"
    ABORTED = "aborted"
    WAITING = "waiting"
    RESUMED = "resumed"
    LEAVE = "leave"
    STOPPED = "stopped"


class IllegalEvent(Exception):  # noqa: N818 - it names what happened, as the table does
    """An event came in a phase that does not expect it: a fault of the daemon, never of its surroundings."""


_LIFE: Mapping[tuple[Phase, Event], Phase] = {
    (Phase.STARTING, Event.NETWORKED): Phase.JOINING,
    # Before the first work: is this peer's state the one that the swarm committed?
    (Phase.JOINING, Event.LAGGING): Phase.DOWNLOADING,
    (Phase.JOINING, Event.CURRENT): Phase.TRAINING,
    (Phase.JOINING, Event.WAITING): Phase.PAUSED,
    # A download that fails is tried again without leaving the phase.
    (Phase.DOWNLOADING, Event.CURRENT): Phase.TRAINING,
    (Phase.TRAINING, Event.CALLED): Phase.AVERAGING,
    (Phase.TRAINING, Event.LAGGING): Phase.DOWNLOADING,
    (Phase.TRAINING, Event.WAITING): Phase.PAUSED,
    # A round ends in one of four ways. Aborted keeps the local work: it leads back to training, where a peer
    # whose work is done is called again at once, and one whose swarm lost work with a dead peer does more.
    (Phase.AVERAGING, Event.COMMITTED): Phase.TRAINING,
    (Phase.AVERAGING, Event.ABORTED): Phase.TRAINING,
    (Phase.AVERAGING, Event.LAGGING): Phase.DOWNLOADING,
    (Phase.AVERAGING, Event.WAITING): Phase.PAUSED,
    # A paused peer keeps its local work too; the swarm may meanwhile have gone on without it.
    (Phase.PAUSED, Event.RESUMED): Phase.TRAINING,
    (Phase.PAUSED, Event.LAGGING): Phase.DOWNLOADING,
    (Phase.LEAVING, Event.STOPPED): Phase.STOPPED,
}

TABLE: Mapping[tuple[Phase, Event], Phase] = MappingProxyType(
    {
        **_LIFE,
        # A second reason to leave changes nothing, and nothing leads out of stopped.
        **{(phase, Event.LEAVE): Phase.LEAVING for phase in Phase if phase is not Phase.STOPPED},
    }
)
"""Every legal (phase, event) and the phase it leads to."""


def next_phase(phase: Phase, event: Event) -> Phase:
    """The phase that ``event`` leads to from ``phase``. Raises IllegalEvent where TABLE has no such entry."""
    try:
        return TABLE[phase, event]
    except KeyError:
        legal = ", ".join(known.value for at, known in TABLE if at is phase) or "none"
        raise IllegalEvent(f"{event.value} while {phase.value}; expected: {legal}") from None


def render_table() -> str:
    """TABLE in Markdown, one line per phase, as docs/phases.md shows it."""
    lines = ["| phase | event → next phase |", "|---|---|"]
    for phase in Phase:
        arrows = [f"{event.value} → {to.value}" for (at, event), to in TABLE.items() if at is phase]
        lines.append(f"| {phase.value} | {', '.join(arrows) or 'the end'} |")
    return "\n".join(lines)
