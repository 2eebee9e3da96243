"""One key file per peer: its libp2p peer id, and the key that signs its records and votes.

The file holds an Ed25519 key as libp2p's ``PrivateKey`` protobuf, the form p2pd reads. Ed25519, not hivemind's RSA,
because the peer id of a small key *contains* the public key (libp2p specs, peer-ids/peer-ids.md): whoever knows a
peer id can check its signatures and needs no key from anybody.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarm.errors import IdentityError

PeerId = str
"""A libp2p peer id in base58, as people paste it: ``12D3KooW...``."""

# protobuf: field 1 (key type) = 1 (Ed25519), field 2 (data) = length, bytes
_PRIVATE_PREFIX = b"\x08\x01\x12\x40"
_PUBLIC_PREFIX = b"\x08\x01\x12\x20"
_IDENTITY_MULTIHASH = b"\x00\x24"


def _peer_id(public_key: bytes) -> PeerId:
    return base58.b58encode(_IDENTITY_MULTIHASH + _PUBLIC_PREFIX + public_key).decode()


@lru_cache(maxsize=4096)
def _public_key(peer_id: PeerId) -> Ed25519PublicKey | None:
    try:
        public_key = base58.b58decode(peer_id)[-32:]
    except ValueError:
        return None
    # One key, one id: the decoder lets trailing spaces pass.
    if len(public_key) != 32 or _peer_id(public_key) != peer_id:
        return None
    return Ed25519PublicKey.from_public_bytes(public_key)


def is_peer_id(text: str) -> bool:
    """Whether ``text`` is the id of an Ed25519 key, spelled in the one way that there is."""
    return len(text) <= 64 and _public_key(text) is not None


def verify(peer_id: PeerId, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``message`` was made by the key behind ``peer_id``."""
    key = _public_key(peer_id)
    if key is None:
        return False
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True)
class Identity:
    """A private key and the peer id that follows from it."""

    key: Ed25519PrivateKey
    peer_id: PeerId
    path: Path

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """Reads the identity, or makes one (mode 0400) where no file is.

        Raises:
            IdentityError: the file is unreadable, corrupt, or its folder cannot be written. It is never replaced.
        """
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return cls._create(path)
        except OSError as error:
            raise IdentityError(f"identity {path}: cannot be read ({error.strerror}); fix its permissions") from error
        key = _parse(data)
        if key is None:
            raise IdentityError(
                f"identity {path}: not a libp2p Ed25519 key file ({len(data)} bytes); restore it from your backup, "
                "or move it away to start with a new peer id"
            )
        return cls(key, _peer_id(key.public_key().public_bytes_raw()), path)

    @classmethod
    def _create(cls, path: Path) -> Identity:
        key = Ed25519PrivateKey.generate()
        public = key.public_key().public_bytes_raw()
        temporary: str | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
            with os.fdopen(handle, "wb") as file:
                file.write(_PRIVATE_PREFIX + key.private_bytes_raw() + public)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o400)
            # A link, not a rename: it never replaces a key that another process made meanwhile.
            os.link(temporary, path)
        except FileExistsError as error:
            if not path.exists():  # a symbolic link to nowhere: reading finds no file, creating finds one
                raise IdentityError(f"identity {path}: a link to a file that is not there; remove the link") from error
            return cls.load_or_create(path)
        except OSError as error:
            raise IdentityError(
                f"identity {path}: cannot be created ({error.strerror}); choose a writable --data-dir or --identity"
            ) from error
        finally:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
        return cls(key, _peer_id(public), path)

    def sign(self, message: bytes) -> bytes:
        """The 64-byte Ed25519 signature over ``message``."""
        return self.key.sign(message)


def _parse(data: bytes) -> Ed25519PrivateKey | None:
    if len(data) != len(_PRIVATE_PREFIX) + 64 or not data.startswith(_PRIVATE_PREFIX):
        return None
    private, public = data[len(_PRIVATE_PREFIX) :][:32], data[-32:]
    key = Ed25519PrivateKey.from_private_bytes(private)
    return key if key.public_key().public_bytes_raw() == public else None
