"""The table of phases: what it promises of every walk through it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.phase import TABLE, Event, IllegalEvent, Phase, next_phase, render_table

DOCS = Path(__file__).parents[2] / "docs" / "phases.md"
walks = st.lists(st.sampled_from(Event), max_size=40)


def walk(events: Iterable[Event]) -> list[Phase]:
    """The phases passed through, events that are illegal where they come left out."""
    phases = [Phase.STARTING]
    for event in events:
        if (phases[-1], event) in TABLE:
            phases.append(next_phase(phases[-1], event))
    return phases


@pytest.mark.parametrize(
    "events, end",
    [
        ([Event.NETWORKED, Event.CURRENT, Event.CALLED, Event.COMMITTED], Phase.TRAINING),
        ([Event.NETWORKED, Event.LAGGING, Event.CURRENT, Event.CALLED, Event.ABORTED], Phase.TRAINING),
        ([Event.NETWORKED, Event.WAITING, Event.RESUMED, Event.CALLED], Phase.AVERAGING),
        ([Event.NETWORKED, Event.CURRENT, Event.CALLED, Event.WAITING, Event.LAGGING], Phase.DOWNLOADING),
        ([Event.LEAVE, Event.LEAVE, Event.STOPPED], Phase.STOPPED),
    ],
)
def test_lives_of_a_peer(events: list[Event], end: Phase) -> None:
    phase = Phase.STARTING
    for event in events:
        phase = next_phase(phase, event)
    assert phase is end


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("event", list(Event))
def test_an_event_is_in_the_table_or_raises(phase: Phase, event: Event) -> None:
    if (phase, event) in TABLE:
        assert next_phase(phase, event) is TABLE[phase, event]
    else:
        with pytest.raises(IllegalEvent, match=f"{event.value} while {phase.value}"):
            next_phase(phase, event)


def test_an_illegal_event_changes_nothing() -> None:
    before = dict(TABLE)
    with pytest.raises(IllegalEvent, match="expected: called, lagging, waiting, leave"):
        next_phase(Phase.TRAINING, Event.COMMITTED)
    assert dict(TABLE) == before
    with pytest.raises(TypeError):
        TABLE[Phase.TRAINING, Event.COMMITTED] = Phase.STOPPED  # type: ignore[index]


@settings(deadline=None, derandomize=True)
@given(walks)
def test_every_walk_can_still_leave_and_stop(events: list[Event]) -> None:
    phase = walk(events)[-1]
    if phase is not Phase.STOPPED:
        assert next_phase(next_phase(phase, Event.LEAVE), Event.STOPPED) is Phase.STOPPED


@settings(deadline=None, derandomize=True)
@given(walks)
def test_no_work_before_the_state_is_known_to_be_the_committed_one(events: list[Event]) -> None:
    phases = walk(events)
    for before, after in pairwise(phases):
        if after is Phase.AVERAGING:
            assert before is Phase.TRAINING
        if before is Phase.DOWNLOADING and after is not Phase.LEAVING:
            assert after is Phase.TRAINING


@settings(deadline=None, derandomize=True)
@given(walks)
def test_leaving_is_final(events: list[Event]) -> None:
    phases = walk(events)
    if Phase.LEAVING in phases:
        rest = phases[phases.index(Phase.LEAVING) :]
        assert set(rest) <= {Phase.LEAVING, Phase.STOPPED}


def test_every_phase_can_be_reached_and_every_event_is_used() -> None:
    reached = {Phase.STARTING}
    while more := {to for (at, _), to in TABLE.items() if at in reached} - reached:
        reached |= more
    assert reached == set(Phase)
    assert {event for _, event in TABLE} == set(Event)


def test_the_page_shows_the_table_and_explains_every_word() -> None:
    page = DOCS.read_text(encoding="utf-8")
    assert render_table() in page, f"docs/phases.md must hold:\n{render_table()}"
    phases, events = page.split("## Phases")[1].split("## Events")
    assert all(f"- **{phase.value}**" in phases for phase in Phase)
    assert all(f"- **{event.value}**" in events for event in Event)


def test_phases_need_no_torch_hivemind_or_clock() -> None:
    code = "import sys, peer.phase; print(*({'torch', 'hivemind', 'asyncio'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == ""
