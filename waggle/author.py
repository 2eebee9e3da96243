"""What the author of a run does: a manifest from a template, its signature, its publication."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.errors import IdentityError, ManifestError, NetworkError, UsageError
from swarm.files import write_bytes
from swarm.identity import Identity
from swarm.invitation import INVITATION_SECONDS, Invitation, invite, read_signature, signature_path, write_signature
from swarm.manifest import Manifest

if TYPE_CHECKING:
    from swarm.network import Network

TEMPLATES = ("demo", "text", "hub")


def new(name: str, out: Path, template: str, key: Path) -> Manifest:
    """Writes a manifest from a template, with the id of the author's key in it; makes the key if it is missing.

    Raises:
        UsageError: no such template, or ``out`` is there already.
        ManifestError: ``name`` cannot be a run's, or ``out`` cannot be written.
        IdentityError: the key cannot be read or made.
    """
    if template not in TEMPLATES:
        raise UsageError(f"--template: '{template}' is not there; choose one of {', '.join(TEMPLATES)}")
    if out.exists():
        raise UsageError(f"{out} is there already, and is not overwritten: choose another with --out, or remove it")
    blank = (files("waggle") / "templates" / f"{template}.toml").read_text(encoding="utf-8")
    blank = blank.replace('"@NAME@"', json.dumps(name, ensure_ascii=False))  # JSON spells a text as TOML does
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
    return manifest


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
