"""`waggle peer` and `python -m peer`: the same flags, the same daemon."""

from __future__ import annotations

from typing import NoReturn

from peer.config import PeerSettings
from swarm.programs import command, new_app
from swarm.programs import main as run_program

HELP = """Take part in a run: train on this machine, average with the swarm.

Each flag can also be an environment variable (in brackets) or a key of the --config file. Flags win over
the environment, the environment over the file.
"""


def _run(settings: PeerSettings) -> int:
    from peer.daemon import run  # imports torch: not for --help

    return run(settings)


peer = command(PeerSettings, _run, HELP)


def main() -> NoReturn:
    """The program `python -m peer`."""
    app = new_app(HELP)
    app.command()(peer)
    run_program(lambda: app(prog_name="python -m peer"))
