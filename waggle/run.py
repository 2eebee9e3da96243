"""`waggle run check` and `waggle run show`: is a manifest valid, and what does it mean for who takes part."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from peer.needs import CODEC_BYTES, in_units, memory
from swarm.programs import new_app

if TYPE_CHECKING:
    from swarm.manifest import Manifest, Optimizer

GROUP_SIZES = (2, 4, 8)

app = new_app("Check and explain a manifest.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A run manifest (TOML).")]


def bytes_per_outer_step(parameters: int, codec: str, group_size: int) -> int:
    """What each peer of the group sends, and receives, in one round: 2 (n - 1) / n * size.

    The optimum of all-reduce (Patarasuk and Yuan, 2009): a peer sends the n - 1 parts that others reduce,
    and its own reduced part to n - 1 peers.
    """
    return round(2 * (group_size - 1) * parameters * CODEC_BYTES[codec] / group_size)


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
    """Says ok and the run id, or what is wrong: one line each, naming field and reason."""
    from peer.tasks import shape_model
    from swarm.manifest import Manifest

    manifest = Manifest.load(file)
    if manifest.model.hub is None:
        shape_model(manifest)  # what only transformers knows: the keys and values of model.config
    typer.echo(f"ok {manifest.run_id}")


@app.command("show")
def show(file: File) -> None:
    """Says what a manifest means: the work, parameters, bytes per outer step, memory."""
    from peer.tasks import count_parameters
    from swarm.manifest import Manifest

    manifest = Manifest.load(file)
    Console().print(render(manifest, count_parameters(manifest)))


def render(manifest: Manifest, parameters: int) -> Table:
    """A table with one line per fact."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(manifest, parameters):
        # Text, not markup: a stranger's manifest must not format our terminal.
        table.add_row(name, Text(value))
    return table


def _facts(manifest: Manifest, parameters: int) -> list[tuple[str, str]]:
    model, data, round_ = manifest.model, manifest.data, manifest.round
    source = {"text": ", ".join(data.paths), "hub": data.dataset}.get(data.source, "")
    facts = [("run_id", manifest.run_id)]
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
        sent = in_units(bytes_per_outer_step(parameters, round_.codec, size))
        facts.append((f"bytes, {size} peers", f"{sent} sent and as much received by each, per outer step"))
    need = memory(manifest, parameters)
    facts += [
        ("memory", f"{in_units(need.total)} at most, beside activations and the program itself:"),
        ("", f"{in_units(need.parameters)} parameters, {in_units(need.gradients)} gradients"),
        ("", f"{in_units(need.inner_optimizer + need.outer_optimizer)} optimizer state"),
        ("", f"{in_units(need.committed)} committed parameters, {in_units(need.round)} during a round"),
    ]
    return facts


def _optimizer(optimizer: Optimizer) -> str:
    name = {"adamw": "AdamW", "sgd": "SGD"}[optimizer.optimizer]
    momentum = f", momentum {optimizer.momentum:g}" if optimizer.momentum else ""
    nesterov = " (Nesterov)" if optimizer.nesterov else ""
    schedule = "" if optimizer.schedule.kind == "constant" else f", {optimizer.schedule.kind} schedule"
    return f"{name} at {optimizer.learning_rate:g}{momentum}{nesterov}{schedule}"
