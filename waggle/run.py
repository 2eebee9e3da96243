"""`waggle run`: what authors do with a manifest, and what it means for who takes part."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peer.needs import in_units, memory, wire_bytes
from swarm.errors import UsageError
from swarm.programs import new_app

if TYPE_CHECKING:
    from swarm.invitation import Invitation
    from swarm.manifest import Manifest, Optimizer

GROUP_SIZES = (2, 4, 8)

app = new_app("Make, check, explain, sign and publish a manifest.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A run manifest (TOML).")]
Key = Annotated[Path, typer.Option(metavar="FILE", help="The author's key.")]
InitialPeers = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MULTIADDR", envvar="WAGGLE_INITIAL_PEERS", show_envvar=False,
        help="Who to find the swarm through: ADDRESS/p2p/PEER_ID. Repeat it, or separate with commas.",
    ),
]  # fmt: skip
AUTHOR_KEY = Path("~/.waggle/author.key")


def bytes_per_outer_step(
    parameters: int, codec: str, group_size: int, keep_one_in: int = 64, mean_keep_one_in: int | None = None
) -> int:
    """What each peer of the group sends, and receives, in one round: (n - 1) / n * (contribution + mean).

    The optimum of all-reduce (Patarasuk and Yuan, 2009): a peer sends the n - 1 parts that others reduce,
    and its own reduced part to n - 1 peers.
    """
    each = sum(wire_bytes(codec, keep_one_in, mean_keep_one_in))
    return round((group_size - 1) * parameters * each / group_size)


def in_words(manifest: Manifest) -> str:
    """What happens in one outer step."""
    data, round_ = manifest.data, manifest.round
    batch = f"{data.batch_size} examples of {data.sequence_length} tokens"
    if round_.inner_steps is not None:
        each, start = f"takes {round_.inner_steps} inner steps on {batch}", "when all have"
    else:
        each, start = f"takes inner steps on {batch}", f"at {round_.target_batch} examples in the whole swarm"
    if manifest.inner is None:
        work = f"each peer {each} and adds up gradients"
        what = "their mean gradient"
    else:
        work = f"each peer {each} with {_optimizer(manifest.inner)}"
        what = "the mean of their updates"
    return f"{work}; {start}, {what} ({round_.codec}) is applied by {_optimizer(manifest.outer)}"


@app.command("check")
def check(file: File) -> None:
    """Says ok and the run id, or what is wrong: one line each, naming field and reason.

    Of what is valid and was seen to learn badly it says "note: ..." on the error stream.
    """
    from peer.tasks import shape_model
    from swarm.manifest import Manifest
    from waggle.advice import doubts

    manifest = Manifest.load(file)
    if manifest.model.hub is None:
        shape_model(manifest)  # what only transformers knows: the keys and values of model.config
    typer.echo(f"ok {manifest.run_id}")
    for doubt in doubts(manifest):
        typer.echo(f"note: {doubt}", err=True)


@app.command("show")
def show(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run manifest (TOML), or a run id.")],
    initial_peers: InitialPeers = None,
) -> None:
    """Says what a run means: author, work, parameters, bytes per outer step, memory."""
    from peer.tasks import count_parameters
    from swarm.invitation import read_signature
    from swarm.manifest import Manifest, is_run_id

    invitation: Invitation | None
    if is_run_id(run):
        invitation = _look_up(run, initial_peers)
        manifest = invitation.manifest()
    else:
        manifest = Manifest.load(run)
        invitation = read_signature(Path(run), manifest)
    Console().print(render(manifest, count_parameters(manifest), invitation is not None))


@app.command("new")
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people will call the run.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; NAME.toml by default.")] = None,
    template: Annotated[str, typer.Option(metavar="demo|text|hub", help="What it begins as.")] = "demo",
    key: Key = AUTHOR_KEY,
    horizon: Annotated[int | None, typer.Option(metavar="STEPS", help="Inner steps of each peer in all.")] = None,
    uplink_mbit: Annotated[float | None, typer.Option(metavar="MBIT", help="Uplink of a slow peer, Mbit/s.")] = None,
    peers: Annotated[int | None, typer.Option(metavar="COUNT", help="Peers that you expect.")] = None,
    step_seconds: Annotated[float | None, typer.Option(metavar="SECONDS", help="What an inner step takes.")] = None,
) -> None:
    """Writes a manifest to begin with, and makes the author's key if it is missing.

    How often peers talk, and in which codec, is chosen for the run's length and the peers' link. A terminal is asked
    for what is not given.
    """
    from waggle import author

    plan = author.Plan(
        horizon=_asked(horizon, "inner steps that each peer will make in all", author.template_of(template).horizon),
        uplink_mbit=_asked(uplink_mbit, "uplink of a slow peer, Mbit/s", 20.0),
        peers=_asked(peers, "peers that you expect", 4),
        step_seconds=_asked(step_seconds, "seconds that an inner step takes", 1.0),
    )
    file, key = out or Path(f"{name}.toml"), key.expanduser()
    manifest, advice = author.new(name, file, template, key, plan)
    typer.echo(f"{file} is a run of the author {manifest.author}, whose key is {key}: keep it")
    typer.echo("; ".join(advice.why))
    typer.echo(f"next: edit it, then waggle run check {file}, waggle run sign {file}")


@app.command("sign")
def sign(file: File, key: Key = AUTHOR_KEY) -> None:
    """Signs a manifest with the key of the author that it names; writes FILE.sig."""
    from waggle import author

    invitation, path = author.sign(file, key.expanduser())
    typer.echo(f"signed {invitation.run_id} by {invitation.author} in {path}")
    typer.echo(f"next: waggle run publish {file} --initial-peers MULTIADDR")


@app.command("publish")
def publish(file: File, initial_peers: InitialPeers = None) -> None:
    """Publishes a signed manifest where volunteers can find it, and says what they type."""
    from waggle import author

    invitation = author.signed(file)
    maddrs = _initial_peers(initial_peers)
    author.publish(invitation, maddrs)
    typer.echo(f"published {invitation.run_id} by {invitation.author}")
    typer.echo(author.how_to_join(invitation.run_id, maddrs))


N = TypeVar("N", int, float)


def _asked(given: N | None, question: str, default: N) -> N:
    """What was given, or is answered, or the default where nobody can be asked."""
    if given is not None or not sys.stdin.isatty():
        return default if given is None else given
    answer: N = typer.prompt(question, default=default, type=type(default))
    return answer


def _look_up(run_id: str, initial_peers: list[str] | None) -> Invitation:
    import asyncio

    maddrs = _initial_peers(initial_peers)
    from waggle.visit import look_up

    return asyncio.run(look_up(run_id, maddrs))


def _initial_peers(given: list[str] | None) -> list[str]:
    """What was given, checked. Raises UsageError."""
    from swarm.addresses import check_initial_peer

    where = "(flag --initial-peers, variable WAGGLE_INITIAL_PEERS)"
    maddrs = [maddr for text in given or [] for maddr in re.split(r"[,\s]+", text) if maddr]
    if not maddrs:
        raise UsageError(f"initial_peers: is needed and not given {where}")
    try:
        return [check_initial_peer(maddr) for maddr in maddrs]
    except ValueError as error:
        raise UsageError(f"initial_peers: {error} {where}") from None


def render(manifest: Manifest, parameters: int, signed: bool = False) -> Table:
    """A table with one line per fact. signed: whether there is a signature, which then holds."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(manifest, parameters, signed):
        # Text, not markup: a stranger's manifest must not format our terminal.
        table.add_row(name, Text(value))
    return table


def _facts(manifest: Manifest, parameters: int, signed: bool) -> list[tuple[str, str]]:
    model, data, round_ = manifest.model, manifest.data, manifest.round
    source = {"text": ", ".join(data.paths), "hub": data.dataset}.get(data.source, "")
    author = f"{manifest.author} ({'whose signature holds' if signed else 'not signed yet'})"
    facts = [("run_id", manifest.run_id), ("author", author if manifest.author else "none")]
    if manifest.description:
        facts.append(("description", manifest.description))
    facts += [
        ("task", manifest.task),
        ("model", f"{model.type or model.hub}, {parameters:,} parameters"),
        ("data", " ".join((data.source, source, f"(tokenizer {manifest.tokenizer.name})")).replace("  ", " ")),
        ("outer step", in_words(manifest)),
        ("group", f"{round_.min_group_size} to {round_.max_group_size} peers"),
    ]
    sizes = [size for size in GROUP_SIZES if round_.min_group_size <= size <= round_.max_group_size]
    for size in sizes or [round_.min_group_size]:
        sent = in_units(
            bytes_per_outer_step(parameters, round_.codec, size, round_.keep_one_in, round_.mean_keep_one_in)
        )
        facts.append((f"bytes, {size} peers", f"{sent} sent and as much received by each, per outer step"))
    need = memory(manifest, parameters)
    facts += [
        (
            "memory",
            f"{in_units(need.total)} at most, if no peer is in client mode, beside activations and the program itself:",
        ),
        ("", f"{in_units(need.parameters)} parameters, {in_units(need.gradients)} gradients"),
        ("", f"{in_units(need.inner_optimizer + need.outer_optimizer)} optimizer state"),
        ("", f"{in_units(need.committed)} committed parameters, {in_units(need.round)} during a round"),
    ]
    return facts


def _optimizer(optimizer: Optimizer) -> str:
    name = {"adamw": "AdamW", "sgd": "SGD", "muon": "Muon and AdamW"}[optimizer.optimizer]
    momentum = f", momentum {optimizer.momentum:g}" if optimizer.momentum else ""
    nesterov = " (Nesterov)" if optimizer.nesterov else ""
    schedule = "" if optimizer.schedule.kind == "constant" else f", {optimizer.schedule.kind} schedule"
    return f"{name} at {optimizer.learning_rate:g}{momentum}{nesterov}{schedule}"
