"""`waggle bootstrap` and `python -m bootstrap`: the same flags, the same daemon."""

from __future__ import annotations

from typing import NoReturn

from bootstrap.config import BootstrapSettings
from swarm.programs import command, new_app
from swarm.programs import main as run_program

HELP = """Introduce peers to each other. A bootstrap holds no model and decides nothing.

Each flag can also be an environment variable (in brackets) or a key of the --config file. Flags win over
the environment, the environment over the file.
"""


def _run(settings: BootstrapSettings) -> int:
    from bootstrap.daemon import run  # imports the network: not for --help

    return run(settings)


bootstrap = command(BootstrapSettings, _run, HELP)


def main() -> NoReturn:
    """The program `python -m bootstrap`."""
    app = new_app(HELP)
    app.command()(bootstrap)
    run_program(lambda: app(prog_name="python -m bootstrap"))
