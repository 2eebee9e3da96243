"""What peers tell the swarm through the DHT: typed, bounded, signed, expiring.

One dictionary per run, one sub-key per peer. The sub-key names the peer, the value is an envelope signed with the
peer's identity over run, body and expiration; whoever reads checks all of it and drops, and counts, what fails.
Peers and bootstraps also refuse to *store* a failing record under a peer's sub-key, so that nobody can shadow a
peer with a forgery that expires later. The same guard stands before the invitation to a run (``swarm.invitation``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgpack
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from hivemind.utils import MSGPackSerializer
from pydantic import Field, ValidationError

from swarm.history import Digest, Examples, PeerIdField, Step
from swarm.identity import Identity, PeerId, verify
from swarm.invitation import INVITATION_SUBKEY, InvitationError, manifest_key, open_invitation
from swarm.wire import Message

MAX_RECORD_BYTES = 8192
MAX_LIFETIME_SECONDS = 300.0
MAX_PEERS = 1024
_CLOCK_SKEW_SECONDS = 3.0  # hivemind's own bound between two peers
_SUBKEY_PREFIX = "waggle1:"


class RecordError(Exception):
    """A record fails a check. ``reason`` is one word for the metrics."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class PeerRecord(Message):
    """What a peer says about itself.

    maddrs: where to dial it, without the /p2p part; none in client mode. outer_step, digest, work: its head.
    group_size: of its last commit. session, started: random and the Unix time of its process's start, by which two
    peers with one key know each other; empty and 0 where it does not say.
    """

    peer_id: PeerIdField
    maddrs: Annotated[list[Annotated[str, Field(max_length=256)]], Field(max_length=16)]
    phase: Annotated[str, Field(max_length=16, pattern=r"^[a-z]+$")]
    outer_step: Step
    digest: Digest
    work: Examples
    group_size: Annotated[int, Field(ge=0, le=1024)] = 0
    client_mode: bool = False
    version: Annotated[str, Field(max_length=32)] = ""
    session: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$")] = ""
    started: Annotated[float, Field(ge=0, le=1e12)] = 0.0


def peers_key(run_id: str) -> str:
    """The DHT key of a run's peers."""
    return f"waggle/1/{run_id}/peers"


def subkey(peer_id: PeerId) -> str:
    """The sub-key of one peer."""
    return _SUBKEY_PREFIX + peer_id


def _signed_bytes(run_id: str, body: bytes, expiration_time: float) -> bytes:
    return b"waggle record 1\0" + bytes(msgpack.packb([run_id, body, expiration_time]))


def seal(identity: Identity, run_id: str, record: PeerRecord, expiration_time: float) -> bytes:
    """The envelope to store. Raises ValueError above MAX_RECORD_BYTES."""
    body = bytes(msgpack.packb(record.model_dump()))
    signature = identity.sign(_signed_bytes(run_id, body, expiration_time))
    envelope = bytes(msgpack.packb([run_id, body, expiration_time, signature]))
    if len(envelope) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(envelope)} bytes")
    return envelope


@dataclass(frozen=True)
class Opened:
    """A record that passed every check."""

    run_id: str
    record: PeerRecord
    expiration_time: float


def unseal(peer_id: PeerId, envelope: Any, expiration_time: float, now: float) -> Opened:
    """Checks an envelope found under ``peer_id``'s sub-key.

    Raises:
        RecordError: size, malformed, owner, signature, lifetime or expired.
    """
    if not isinstance(envelope, bytes):
        raise RecordError("malformed", type(envelope).__name__)
    if len(envelope) > MAX_RECORD_BYTES:
        raise RecordError("size", f"{len(envelope)} bytes")
    try:
        run_id, body, expires, signature = msgpack.unpackb(envelope)
        record = PeerRecord.model_validate(msgpack.unpackb(body))
        if not (isinstance(run_id, str) and isinstance(expires, float) and isinstance(signature, bytes)):
            raise RecordError("malformed", "types")
    except (ValidationError, ValueError, TypeError, msgpack.UnpackException) as error:
        raise RecordError("malformed", (str(error) or repr(error)).splitlines()[0][:200]) from error
    if record.peer_id != peer_id:
        raise RecordError("owner", f"{record.peer_id} under the key of {peer_id}")
    if not verify(peer_id, _signed_bytes(run_id, body, expires), signature):
        raise RecordError("signature", peer_id)
    if expires != expiration_time or expires > now + MAX_LIFETIME_SECONDS + _CLOCK_SKEW_SECONDS:
        raise RecordError("lifetime", f"{expires - now:.0f} s")
    if expires < now:
        raise RecordError("expired", f"{now - expires:.0f} s ago")
    return Opened(run_id, record, expires)


def open_all(run_id: str, found: Mapping[Any, Any], dropped: Callable[[str], None], now: float) -> dict[PeerId, Opened]:
    """The valid records of a run's dictionary, as the DHT returned it: sub-key -> (value, expiration).

    ``dropped`` is called with the reason of each that fails a check.
    """
    records: dict[PeerId, Opened] = {}
    for key, (value, expiration_time) in list(found.items())[: 4 * MAX_PEERS]:
        try:
            if not isinstance(key, str) or not key.startswith(_SUBKEY_PREFIX):
                raise RecordError("malformed", "sub-key")
            opened = unseal(key[len(_SUBKEY_PREFIX) :], value, expiration_time, now)
            if opened.run_id != run_id:
                raise RecordError("run", opened.run_id)
        except RecordError as error:
            dropped(error.reason)
            continue
        if len(records) < MAX_PEERS:
            records[opened.record.peer_id] = opened
    return records


class StoreGuard(RecordValidatorBase):  # type: ignore[misc]  # hivemind ships no types
    """Refuses, at every DHT peer of ours, a Waggle record that fails a check; leaves other programs' records alone."""

    def __init__(self, dropped: Callable[[str], None]):
        self._dropped = dropped

    def validate(self, record: DHTRecord) -> bool:
        """Called by hivemind for what others store here and for what they answer."""
        try:
            key = MSGPackSerializer.loads(record.subkey)
            if not isinstance(key, str) or not (key.startswith(_SUBKEY_PREFIX) or key == INVITATION_SUBKEY):
                return True
            value = MSGPackSerializer.loads(record.value)
        except Exception:  # any decoder's complaint about a stranger's bytes means the same: not one of ours
            self._dropped("malformed")
            return False
        try:
            if key == INVITATION_SUBKEY:
                _check_invitation(record, value)
            else:
                _check_peer(record, key[len(_SUBKEY_PREFIX) :], value)
        except (RecordError, InvitationError) as error:
            if error.reason == "expired":  # it expired on its way: nobody's fault
                return True
            self._dropped(error.reason)
            return False
        return True


def _check_peer(record: DHTRecord, peer_id: PeerId, value: Any) -> None:
    opened = unseal(peer_id, value, record.expiration_time, time.time())
    if record.key != DHTID.generate(source=peers_key(opened.run_id)).to_bytes():
        raise RecordError("run", opened.run_id)  # the peer's own, taken from another run's dictionary


def _check_invitation(record: DHTRecord, value: Any) -> None:
    opened = open_invitation(value, record.expiration_time, time.time())
    if record.key != DHTID.generate(source=manifest_key(opened.run_id)).to_bytes():
        raise RecordError("run", opened.run_id)  # a true one, but to another run
