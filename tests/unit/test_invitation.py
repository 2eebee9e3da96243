"""Invitations: what an author signed opens, whatever was changed does not, and the DHT's guard lets nothing else in."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ManifestError
from swarm.identity import is_peer_id
from swarm.invitation import (
    INVITATION_SECONDS,
    INVITATION_SUBKEY,
    Invitation,
    InvitationError,
    authentic,
    expect,
    invite,
    manifest_key,
    open_invitation,
    read_signature,
    signature_path,
    write_signature,
)
from swarm.manifest import MAX_MANIFEST_BYTES, Manifest, is_run_id
from swarm.records import StoreGuard, peers_key, subkey
from tests.chain import PEERS, identity

NOW = 1_000_000.0
LATER = NOW + 600.0
TOML = f"""
waggle = 1
name = "tiny"
author = "{PEERS[0]}"
[model]
type = "gpt2"
[tokenizer]
name = "bytes"
[data]
source = "stdlib"
sequence_length = 32
batch_size = 4
[inner]
optimizer = "adamw"
learning_rate = 0.01
[round]
average = "updates"
inner_steps = 3
"""
MANIFEST = Manifest.from_toml(TOML)
INVITATION = invite(MANIFEST, identity(0))
dumps = DHTProtocol.serializer.dumps


def signed(values: Any, signer: int = 0) -> tuple[bytes, bytes]:
    """Canonical bytes and a signature over them, whatever they are."""
    data = values if isinstance(values, bytes) else json.dumps(values, sort_keys=True).encode()
    return data, identity(signer).sign(b"waggle manifest 1\0" + data)


def reason(canonical: Any, signature: Any) -> str:
    """Why these bytes are no invitation to our run; "" when they are."""
    try:
        expect(authentic(canonical, signature), MANIFEST.run_id)
    except InvitationError as error:
        assert "\n" not in str(error)
        return error.reason
    return ""


def refused(value: Any, expires: float = LATER, now: float = NOW) -> str:
    """Why this value is no invitation in the DHT."""
    try:
        open_invitation(value, expires, now)
    except InvitationError as error:
        return error.reason
    return ""


# -- the author in the manifest ------------------------------------------------------------------------------------


def test_the_author_is_part_of_the_run_and_none_changes_nothing() -> None:
    without = Manifest.from_toml(TOML.replace(f'author = "{PEERS[0]}"', ""))
    other = Manifest.from_toml(TOML.replace(PEERS[0], PEERS[1]))
    assert len({without.run_id, other.run_id, MANIFEST.run_id}) == 3
    assert b"author" not in without.canonical()
    assert all(is_run_id(one.run_id) for one in (without, other, MANIFEST))


@pytest.mark.parametrize("author", ["", "me", PEERS[0][:-1], PEERS[0] + " ", PEERS[0].lower(), "Qm" + "x" * 44])
def test_an_author_is_a_key(author: str) -> None:
    assert not is_peer_id(author)
    with pytest.raises(ManifestError, match=r"^author: must be the public id of a key"):
        Manifest.from_toml(TOML.replace(PEERS[0], author))


@pytest.mark.parametrize("text", ["demo", "demo@", "demo@0123456789abcde", "demo@0123456789ABCDEF", "-a@" + "0" * 16])
def test_what_is_no_run_id(text: str) -> None:
    assert not is_run_id(text)
    assert not is_run_id(f"{MANIFEST.run_id}\n")


# -- signing -------------------------------------------------------------------------------------------------------


def test_who_signs_is_the_author() -> None:
    assert authentic(INVITATION.canonical, INVITATION.signature) == INVITATION
    assert (INVITATION.run_id, INVITATION.author) == (MANIFEST.run_id, PEERS[0])
    assert INVITATION.manifest() == MANIFEST
    with pytest.raises(ManifestError, match=f"^author: names {PEERS[0]}, but the key 1.key is that of {PEERS[1]}"):
        invite(MANIFEST, identity(1))
    unclaimed = Manifest.from_toml(TOML.replace(f'author = "{PEERS[0]}"', ""))
    with pytest.raises(ManifestError, match=f'^author: is not given; add the line author = "{PEERS[0]}"'):
        invite(unclaimed, identity(0))


def test_every_flipped_bit_is_found() -> None:
    reasons: Counter[str] = Counter()
    for which, data in enumerate((INVITATION.canonical, INVITATION.signature)):
        for index in range(len(data)):
            for bit in range(8):
                parts = [bytearray(INVITATION.canonical), bytearray(INVITATION.signature)]
                parts[which][index] ^= 1 << bit
                reasons[reason(*map(bytes, parts))] += 1
    assert reasons[""] == 0
    assert reasons.keys() == {"malformed", "signature"}


@given(st.binary(max_size=80), st.integers(0, len(INVITATION.canonical)), st.integers(0, 80))
def test_any_other_bytes_are_refused(inserted: bytes, at: int, removed: int) -> None:
    """Whatever is put in and taken out, anywhere; and signed again by somebody else, it is no invitation to our run."""
    changed = INVITATION.canonical[:at] + inserted + INVITATION.canonical[at + removed :]
    if changed != INVITATION.canonical:
        assert reason(changed, INVITATION.signature)
        assert reason(*signed(changed, signer=1))


@given(st.binary(max_size=70))
def test_any_other_signature_is_refused(signature: bytes) -> None:
    assert reason(INVITATION.canonical, signature) == "signature"


def test_each_tampering_has_its_reason() -> None:
    values = json.loads(INVITATION.canonical)
    assert reason(INVITATION.canonical, INVITATION.signature) == ""
    assert reason(INVITATION.canonical, identity(1).sign(b"waggle manifest 1\0" + INVITATION.canonical)) == "signature"
    assert reason(INVITATION.canonical, identity(0).sign(INVITATION.canonical)) == "signature", "of another kind"
    assert reason(*signed({**values, "seed": 1})) == "run", "the author's own, but another run"
    assert reason(*signed({**values, "author": PEERS[1]}, signer=1)) == "run", "somebody else's run under our id"
    assert reason(*signed({**values, "author": PEERS[1]})) == "signature"
    assert reason(*signed(json.dumps(values).encode())) == "run", "not the canonical form"
    assert reason(*signed(b"[" * 60_000)) == "malformed"
    assert reason(*signed(b" " * (MAX_MANIFEST_BYTES + 1))) == "size"
    strange: list[Any] = [
        None, [], {}, {"name": "tiny"}, {**values, "author": 7}, {**values, "name": None},
        {**values, "name": "../tiny"}, {**values, "name": ""}, b"", b"\xff",
    ]  # fmt: skip
    assert {reason(*signed(value)) for value in strange} == {"malformed"}
    assert reason("text", INVITATION.signature) == reason(INVITATION.canonical, "text") == "malformed"


def test_a_manifest_of_another_version_is_told_apart_from_a_forgery() -> None:
    values = {**json.loads(INVITATION.canonical), "waggle": 2, "pace": "fast"}
    newer = authentic(*signed(values))
    with pytest.raises(ManifestError) as caught:
        newer.manifest()
    first, *others = str(caught.value).splitlines()
    assert first == f"run {newer.run_id}: its manifest is its author's, but not for this version of Waggle"
    assert [line.split(":")[0] for line in others] == ["waggle", "pace"]


# -- in the DHT ----------------------------------------------------------------------------------------------------


def test_an_envelope_opens_within_its_lifetime() -> None:
    assert open_invitation(INVITATION.envelope(), LATER, NOW) == INVITATION
    assert refused(INVITATION.envelope(), NOW - 1) == "expired"
    for strange in (NOW + INVITATION_SECONDS + 61, float("inf"), float("nan")):
        assert refused(INVITATION.envelope(), strange) == "lifetime"
    assert refused(bytes(MAX_MANIFEST_BYTES + 257)) == "size"


@given(st.none() | st.text() | st.binary(max_size=300) | st.lists(st.binary()) | st.integers(0, 2**63))
def test_anything_else_is_no_envelope(value: Any) -> None:
    assert refused(value) == "malformed"
    assert refused(msgpack.packb(value)) == "malformed"


def test_the_largest_manifest_fits_into_its_envelope() -> None:
    values = json.loads(INVITATION.canonical)
    spare = MAX_MANIFEST_BYTES - len(json.dumps({**values, "more": ""}, sort_keys=True).encode())
    canonical, signature = signed({**values, "more": "x" * spare})
    assert len(canonical) == MAX_MANIFEST_BYTES
    assert refused(Invitation("", "", canonical, signature).envelope()) == ""


def guarded(value: Any, key: str = "", name: Any = INVITATION_SUBKEY, seconds: float = 600.0) -> tuple[bool, list[str]]:
    """The guard's verdict on a record as hivemind hands it over, and the reasons it counted."""
    dropped: list[str] = []
    source = key or manifest_key(MANIFEST.run_id)
    record = DHTRecord(DHTID.generate(source=source).to_bytes(), dumps(name), dumps(value), time.time() + seconds)
    return StoreGuard(dropped.append).validate(record), dropped


def test_the_guard_stores_an_invitation_and_no_forgery() -> None:
    forged = msgpack.packb([INVITATION.canonical, bytes(64)])
    another = invite(Manifest.from_toml(TOML.replace("tiny", "other")), identity(0))
    assert guarded(INVITATION.envelope()) == (True, [])
    assert guarded(forged) == (False, ["signature"])
    assert guarded("hello") == (False, ["malformed"])
    assert guarded(another.envelope()) == (False, ["run"]), "it would hide ours"
    assert guarded(INVITATION.envelope(), peers_key(MANIFEST.run_id)) == (False, ["run"])
    assert guarded(INVITATION.envelope(), seconds=2 * INVITATION_SECONDS) == (False, ["lifetime"])
    assert guarded(bytes(MAX_MANIFEST_BYTES + 300)) == (False, ["size"])
    assert guarded(INVITATION.envelope(), seconds=-1) == (True, []), "it expired on its way: nobody's fault"
    assert guarded(INVITATION.envelope(), name=subkey(PEERS[0])) == (False, ["malformed"])
    assert guarded("hello", name=f"{INVITATION_SUBKEY}s") == (True, []), "not one of ours"


# -- beside a file -------------------------------------------------------------------------------------------------


def test_a_signature_beside_its_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    assert read_signature(file, MANIFEST) is None
    path = write_signature(file, INVITATION)
    assert path == signature_path(file) == tmp_path / "run.toml.sig"
    assert read_signature(file, MANIFEST) == INVITATION
    assert write_signature(file, INVITATION) == path, "it may be signed again"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "not a signature"),
        ("[" * 5000, "not a signature"),
        ("[]", "not a signature"),
        ('{"run_id": "x", "signature": "no hex"}', "not a signature"),
        ('{"run_id": "tiny@0000000000000000", "signature": ""}', "signs another manifest than run.toml is now"),
        (json.dumps({"run_id": MANIFEST.run_id, "signature": "00" * 64}), "the signature does not hold"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(tmp_path: Path, content: str, says: str) -> None:
    (tmp_path / "run.toml.sig").write_text(content)
    with pytest.raises(ManifestError, match=says) as caught:
        read_signature(tmp_path / "run.toml", MANIFEST)
    assert "\n" not in str(caught.value)


def test_a_signature_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ManifestError, match="cannot be written"):
        write_signature(tmp_path / "file" / "run.toml", INVITATION)
    (tmp_path / "run.toml.sig").mkdir()
    with pytest.raises(ManifestError, match="cannot be read"):
        read_signature(tmp_path / "run.toml", MANIFEST)
