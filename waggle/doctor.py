"""`waggle doctor`: what would keep a volunteer's peer from training, found before it starts, and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peer.config import PeerSettings, run_name
from swarm import logs
from swarm.programs import command
from swarm.settings import Level, Metavar
from waggle import checks
from waggle.checks import Check, Verdict, first_failure

HELP = """Check this machine before a peer starts on it.

Takes the flags, the environment and the file of `waggle peer`; without --run, what a run needs is not checked.
Starts nothing that stays and changes nothing. Ends with 0, or with the exit code that the peer would end with.
"""
_COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


class DoctorSettings(PeerSettings):
    """A peer's, but that a run need not be named."""

    run: Annotated[str, AfterValidator(run_name), Metavar("RUN")] = Field(
        default="", description="The run to take part in: its id, NAME@DIGEST, or its manifest, a TOML file."
    )
    log_level: Level = Field(default="error", description="The least severe message that is logged.")


def examine(settings: PeerSettings) -> Iterator[Check]:
    """All checks, quick and local ones first."""
    from waggle.reach import initial_peers, reachability  # imports torch, through hivemind

    yield from checks.versions()
    run, manifest, parameters = checks.read_run(settings)
    yield run
    if manifest is not None:
        yield checks.extras(manifest)
    yield checks.device(settings.device)
    yield checks.memory_left(manifest, parameters, settings.device)
    yield checks.disk(settings.data_dir, settings.checkpoints_kept, manifest, parameters)
    yield checks.identity(settings.identity_path)
    yield checks.open_files()
    yield from checks.ports(settings)
    yield reachability(settings)
    yield from asyncio.run(initial_peers(settings.initial_peers))


def render(found: Sequence[Check]) -> Table:
    """A table with a line per check, and one below what is not well: what to do."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in found:
        # Text, not markup: addresses and paths may hold brackets.
        table.add_row(one.name, Text(one.verdict.value, _COLOURS[one.verdict]), Text(one.detail))
        if one.advice:
            table.add_row("", "", Text(f"-> {one.advice}", "italic"))
    return table


def as_json(found: Sequence[Check]) -> str:
    """For programs: the checks in their order, and the exit code."""
    rows = [
        {"name": one.name, "verdict": one.verdict.value, "detail": one.detail, "advice": one.advice} for one in found
    ]
    return json.dumps({"checks": rows, "exit_code": first_failure(found).value}, indent=2)


def _run(settings: DoctorSettings, json: bool) -> int:
    found = list(examine(settings))
    logs.tame()
    if json:
        print(as_json(found))  # noqa: T201 - the output of the command
    else:
        Console().print(render(found))
    return first_failure(found).value


doctor = command(DoctorSettings, _run, HELP, {"json": "As JSON, for programs."})
