"""The program `waggle`: sub-commands, each importing what it needs only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from bootstrap.command import bootstrap
from peer.command import peer
from swarm.programs import main as run_program
from swarm.programs import new_app, version
from waggle.doctor import doctor
from waggle.run import app as run_app

app = new_app("Train one model together, peer to peer.", no_args_is_help=True)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"waggle {version()}")
        raise typer.Exit


@app.callback()
def _waggle(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Train one model together, peer to peer."""


@app.command("demo")
def _demo(
    peers: Annotated[int, typer.Option(min=2, max=16, help="How many peers to start.")] = 3,
    outer_steps: Annotated[int, typer.Option(min=1, help="How many outer steps to train for.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="End with one line of JSON.")] = False,
    output: Annotated[Path, typer.Option(metavar="DIR", help="Where logs and the plot of the loss are left.")] = Path(
        "waggle-demo"
    ),
) -> None:
    """A bootstrap and some peers on this machine, on the embedded data."""
    from waggle.demo import demo

    demo(peers, outer_steps, as_json, output)


@app.command("status")
def _status(
    http: Annotated[
        str,
        typer.Option(metavar="URL", envvar="WAGGLE_HTTP", help="Where the peer or bootstrap serves HTTP (its --http)."),
    ] = "http://127.0.0.1:8080",
    as_json: Annotated[bool, typer.Option("--json", help="As the program itself tells it.")] = False,
) -> None:
    """What a running peer or bootstrap is doing."""
    from waggle.status import show

    show(http, as_json)


@app.command("export")
def _export(
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make; it must not be there yet.")],
    data_dir: Annotated[
        Path, typer.Option(metavar="DIR", envvar="WAGGLE_DATA_DIR", help="Where the peer keeps its checkpoints.")
    ] = Path("~/.waggle"),
    run: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Which run, where the directory holds more than one.")
    ] = None,
) -> None:
    """The newest checkpoint as a folder that transformers' from_pretrained loads."""
    from waggle.export import export

    typer.echo(f"written to {export(data_dir.expanduser(), run, output)}")


app.command("bootstrap")(bootstrap)
app.command("peer")(peer)
app.command("doctor")(doctor)
app.add_typer(run_app, name="run", help="Make, check, explain, sign and publish a manifest.")


def main() -> NoReturn:
    """Runs `waggle` and ends the process with its exit code (docs/exit-codes.md)."""
    run_program(lambda: app(prog_name="waggle"))
