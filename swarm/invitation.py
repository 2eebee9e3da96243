"""An invitation: a run's manifest with its author's signature, which prove themselves to whoever knows the run id.

The run id holds the manifest's digest, the manifest names its author, and the author's key signed the manifest. So it
does not matter who passes an invitation on, and any peer can keep it in the DHT while the run lives. What is checked
here is only that: that a manifest is the run's, and its author's. Whether this Waggle can read it, ``manifest`` says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from swarm.errors import ManifestError
from swarm.files import write_bytes
from swarm.identity import Identity, PeerId, verify
from swarm.manifest import MAX_MANIFEST_BYTES, Manifest, is_run_id, run_id_of

INVITATION_SUBKEY = "waggle1-manifest"
"""There is one valid invitation to a run, so it has one place in the run's dictionary."""
INVITATION_SECONDS = 3600.0
_CLOCK_SECONDS = 60.0  # a stranger's clock may be ahead; the content is the same for ever anyhow
_MAX_ENVELOPE_BYTES = MAX_MANIFEST_BYTES + 256
_MAX_SIGNATURE_FILE_BYTES = 4096
_PREFIX = b"waggle manifest 1\0"


class InvitationError(Exception):
    """An invitation fails a check. ``reason`` is one word for the metrics, the same as for other records."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class Invitation:
    """A manifest's canonical bytes and the signature that its author's key made over them.

    Only ``invite`` and ``authentic`` make one, so that whoever holds one need not check it again.
    """

    run_id: str
    author: PeerId
    canonical: bytes
    signature: bytes

    def envelope(self) -> bytes:
        """What is stored in the DHT."""
        return bytes(msgpack.packb([self.canonical, self.signature]))

    def manifest(self) -> Manifest:
        """What it invites to. Raises ManifestError where another version of Waggle wrote it."""
        try:
            return Manifest.from_canonical(self.canonical)
        except ManifestError as error:
            lines = [f"run {self.run_id}: its manifest is its author's, but not for this version of Waggle"]
            raise ManifestError("\n".join([*lines, *str(error).splitlines()])) from error


def manifest_key(run_id: str) -> str:
    """The DHT key of a run's invitation."""
    return f"waggle/1/{run_id}/manifest"


def invite(manifest: Manifest, identity: Identity) -> Invitation:
    """Signs a manifest.

    Raises:
        ManifestError: it names no author, or another one.
    """
    if manifest.author is None:
        raise ManifestError(f'author: is not given; add the line author = "{identity.peer_id}", above the tables')
    if manifest.author != identity.peer_id:
        raise ManifestError(
            f"author: names {manifest.author}, but the key {identity.path} is that of {identity.peer_id}; "
            "give the author's key with --key, or change the line"
        )
    canonical = manifest.canonical()
    return Invitation(manifest.run_id, identity.peer_id, canonical, identity.sign(_PREFIX + canonical))


def authentic(canonical: Any, signature: Any) -> Invitation:
    """The invitation that these bytes are, of whatever run.

    Raises:
        InvitationError: size, malformed or signature.
    """
    if not (isinstance(canonical, bytes) and isinstance(signature, bytes)):
        raise InvitationError("malformed", "types")
    if len(canonical) > MAX_MANIFEST_BYTES:
        raise InvitationError("size", f"{len(canonical)} bytes")
    try:
        values = json.loads(canonical.decode("utf-8"))
        name, author = values["name"], values["author"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvitationError("malformed", f"not a manifest with an author ({type(error).__name__})") from error
    if not (isinstance(name, str) and isinstance(author, str)):
        raise InvitationError("malformed", "name or author")
    run_id = run_id_of(name, canonical)
    if not is_run_id(run_id):
        raise InvitationError("malformed", "name")
    if not verify(author, _PREFIX + canonical, signature):
        raise InvitationError("signature", "not made by the key of its author")
    return Invitation(run_id, author, canonical, signature)


def expect(invitation: Invitation, run_id: str) -> Invitation:
    """``invitation``, if it is to that run. Raises InvitationError("run")."""
    if invitation.run_id != run_id:
        raise InvitationError("run", f"its digest makes it {invitation.run_id}, not {run_id}")
    return invitation


# -- in the DHT --------------------------------------------------------------------------------------------------


def open_invitation(value: Any, expiration_time: float, now: float) -> Invitation:
    """Checks what was found, or is to be stored, under INVITATION_SUBKEY until ``expiration_time``.

    The expiration is not signed, for any peer may renew it; it is only bounded.

    Raises:
        InvitationError: size, malformed, signature, lifetime or expired.
    """
    if not isinstance(value, bytes):
        raise InvitationError("malformed", type(value).__name__)
    if len(value) > _MAX_ENVELOPE_BYTES:
        raise InvitationError("size", f"{len(value)} bytes")
    if not expiration_time <= now + INVITATION_SECONDS + _CLOCK_SECONDS:
        raise InvitationError("lifetime", f"{expiration_time - now:.0f} s")
    if expiration_time < now:
        raise InvitationError("expired", f"{now - expiration_time:.0f} s ago")
    try:
        canonical, signature = msgpack.unpackb(value)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise InvitationError("malformed", type(error).__name__) from error
    return authentic(canonical, signature)


# -- beside a manifest file ----------------------------------------------------------------------------------------


def signature_path(file: Path) -> Path:
    """Where the signature of a manifest file is kept: FILE.sig."""
    return file.with_name(f"{file.name}.sig")


def write_signature(file: Path, invitation: Invitation) -> Path:
    """Writes FILE.sig, in one step. Raises ManifestError when the folder cannot be written."""
    path = signature_path(file)
    content = {"run_id": invitation.run_id, "author": invitation.author, "signature": invitation.signature.hex()}
    try:
        write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())
    except OSError as error:
        raise ManifestError(f"{str(path)!r}: cannot be written ({error.strerror})") from error
    return path


def read_signature(file: Path, manifest: Manifest) -> Invitation | None:
    """The invitation that FILE and FILE.sig make; None without a FILE.sig.

    Raises:
        ManifestError: FILE.sig is unreadable, or does not sign this manifest.
    """
    path = signature_path(file)
    try:
        with path.open("rb") as stored:
            data = stored.read(_MAX_SIGNATURE_FILE_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ManifestError(f"{str(path)!r}: cannot be read ({error.strerror})") from error
    try:
        content = json.loads(data)
        run_id, signature = content["run_id"], bytes.fromhex(content["signature"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ManifestError(f"{str(path)!r}: not a signature; sign the manifest again, or remove it") from error
    if run_id != manifest.run_id:
        raise ManifestError(
            f"{str(path)!r}: signs another manifest than {file.name} is now ({manifest.run_id}); "
            "sign it again, or remove the signature"
        )
    try:
        return authentic(manifest.canonical(), signature)
    except InvitationError as error:
        raise ManifestError(
            f"{str(path)!r}: the signature does not hold ({error}); do not trust {file.name}"
        ) from error
