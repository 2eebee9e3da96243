"""What the author of a run does: a manifest from a template, its signature, its publication."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.errors import IdentityError, ManifestError, NetworkError, UsageError
from swarm.files import write_bytes
from swarm.identity import Identity
from swarm.invitation import INVITATION_SECONDS, Invitation, invite, read_signature, signature_path, write_signature
from swarm.manifest import Manifest, Round
from waggle.advice import Advice, choose

if TYPE_CHECKING:
    from swarm.network import Network

MAX_WARMUP_STEPS = 500


@dataclass(frozen=True)
class Template:
    """parameters: of its model, counted here so that it need not be built. horizon: inner steps that suit it."""

    parameters: int
    horizon: int


TEMPLATES = {
    "demo": Template(parameters=434_944, horizon=2000),
    "text": Template(parameters=3_279_360, horizon=2000),
    "hub": Template(parameters=101_569_280, horizon=50_000),
}


@dataclass(frozen=True)
class Plan:
    """What the author expects, in the words of ``advice.choose``."""

    horizon: int
    uplink_mbit: float
    peers: int
    step_seconds: float


def template_of(name: str) -> Template:
    """The template of that name. Raises UsageError."""
    if name not in TEMPLATES:
        raise UsageError(f"--template: '{name}' is not there; choose one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def new(name: str, out: Path, template: str, key: Path, plan: Plan) -> tuple[Manifest, Advice]:
    """Writes a manifest from a template, with rounds that fit the plan and the id of the author's key in it.

    Makes the key if it is missing.

    Raises:
        UsageError: no such template, ``out`` is there already, or the plan is none.
        ManifestError: ``name`` cannot be a run's, or ``out`` cannot be written.
        IdentityError: the key cannot be read or made.
    """
    if out.exists():
        raise UsageError(f"{out} is there already, and is not overwritten: choose another with --out, or remove it")
    blank, advice = filled(name, template, plan)
    Manifest.from_toml(blank.replace('author = "@AUTHOR@"', ""))  # before a key is made for it
    author = Identity.load_or_create(key)
    text = blank.replace("@AUTHOR@", author.peer_id)
    manifest = Manifest.from_toml(text)
    try:
        write_bytes(out, text.encode("utf-8"), replace=False)
    except FileExistsError as error:
        raise UsageError(f"{out} is there already, and is not overwritten") from error
    except OSError as error:
        raise ManifestError(f"{str(out)!r}: cannot be written ({error.strerror})") from error
    return manifest, advice


def filled(name: str, template: str, plan: Plan) -> tuple[str, Advice]:
    """A template with all that it leaves open, but for "@AUTHOR@". Raises UsageError."""
    parameters = template_of(template).parameters
    advice = choose(parameters, plan.horizon, plan.uplink_mbit, plan.peers, plan.step_seconds)
    blank = (files("waggle") / "templates" / f"{template}.toml").read_text(encoding="utf-8")
    blank = _with_rounds(blank, advice, plan.horizon)
    return blank.replace('"@NAME@"', json.dumps(name, ensure_ascii=False)), advice  # JSON spells a text as TOML does


def _with_rounds(blank: str, advice: Advice, horizon: int) -> str:
    """A template with its schedule, [outer] and [round] filled in."""
    cost, outer = advice.cost, advice.outer
    optimizer = ['optimizer = "sgd"', f"learning_rate = {outer.learning_rate}"]
    if outer.momentum:
        optimizer += [f"momentum = {outer.momentum}", f"nesterov = {str(outer.nesterov).lower()}"]
    else:
        optimizer[-1] += "               # the mean of the peers' parameters is the new state"
    lines = [f"# {line}" for line in advice.why]
    lines += ['average = "updates"', f"inner_steps = {cost.inner_steps}".ljust(34) + "# of each peer, before a round"]
    lines += [f"{name} = {json.dumps(value)}" for name, value in asdict(cost.sending).items() if value is not None]
    if cost.overlap:
        lines.append("overlap = 1".ljust(34) + "# a round runs during the next local work")
    if cost.phase_seconds != Round.model_fields["exchange_seconds"].default:
        lines += [f"exchange_seconds = {cost.phase_seconds}", f"commit_seconds = {cost.phase_seconds}"]
    filled = blank.replace("@OUTER@", "\n".join(optimizer)).replace("@ROUND@", "\n".join(lines))
    warmup_steps = min(MAX_WARMUP_STEPS, max(1, horizon // 50))
    return filled.replace("@WARMUP@", str(warmup_steps)).replace("@HORIZON@", str(horizon))


def sign(file: Path, key: Path) -> tuple[Invitation, Path]:
    """Signs a manifest file with its author's key; the invitation, and where the signature is.

    Raises:
        ManifestError: the manifest is invalid, or names no author, or another than the key's.
        IdentityError: the key is not there, or cannot be read.
    """
    manifest = Manifest.load(file)
    if manifest.author is not None and not key.exists():
        raise IdentityError(f"key {key}: not there; give the key of {manifest.author} with --key")
    invitation = invite(manifest, Identity.load_or_create(key))
    return invitation, write_signature(file, invitation)


def signed(file: Path) -> Invitation:
    """The invitation that FILE and FILE.sig make. Raises ManifestError."""
    manifest = Manifest.load(file)
    invitation = read_signature(file, manifest)
    if invitation is None:
        raise ManifestError(
            f"{str(signature_path(file))!r}: not there; sign the manifest first: waggle run sign {file}"
        )
    return invitation


def publish(invitation: Invitation, initial_peers: Sequence[str]) -> None:
    """Stores an invitation in the DHT and reads it back.

    Raises:
        NetworkError: no initial peer answers, or none of them keeps it.
    """
    from waggle.visit import visit

    async def store(network: Network) -> None:
        await network.publish_invitation(invitation)  # that nobody took it may mean that somebody has it
        if await network.read_invitation(invitation.run_id) != invitation:
            raise NetworkError(
                f"run {invitation.run_id}: the initial peers answer, but do not keep it; "
                "are they of this version of Waggle, and is the clock of this machine right?"
            )

    asyncio.run(visit(initial_peers, store))


def how_to_join(run_id: str, initial_peers: Sequence[str]) -> str:
    """What an author passes on to volunteers."""
    flags = " ".join(f"--initial-peers {maddr}" for maddr in initial_peers)
    return "\n".join([
        f"it is kept for {INVITATION_SECONDS / 60:.0f} minutes, and for as long as a peer of the run is there",
        "",
        "Volunteers type",
        f"waggle peer {flags} --run {run_id}",
        "",
        "or put into .env",
        f"WAGGLE_INITIAL_PEERS={','.join(initial_peers)}",
        f"WAGGLE_RUN={run_id}",
    ])  # fmt: skip
