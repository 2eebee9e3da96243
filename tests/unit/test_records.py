"""Records in the DHT: what is sealed opens, what was tampered with does not, and says why."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

import msgpack
import pytest
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from swarm.identity import Identity
from swarm.records import (
    MAX_LIFETIME_SECONDS,
    MAX_PEERS,
    MAX_RECORD_BYTES,
    Opened,
    PeerRecord,
    RecordError,
    StoreGuard,
    open_all,
    peers_key,
    seal,
    subkey,
    unseal,
)
from tests.chain import PEERS, RUN_ID, digest, identity

NOW = 1_000_000.0
LATER = NOW + 30.0
OTHER_RUN = "other@fedcba9876543210"


def a_record(number: int = 0, **fields: Any) -> PeerRecord:
    plain: dict[str, Any] = {
        "peer_id": PEERS[number], "maddrs": ["/ip4/10.0.0.1/tcp/31337"], "phase": "training", "outer_step": 3,
        "digest": digest("state"), "work": 120, "group_size": 4, "client_mode": False, "version": "0.1.0",
    }  # fmt: skip
    return PeerRecord(**{**plain, **fields})


def sealed(number: int = 0, run_id: str = RUN_ID, expires: float = LATER, signer: Identity | None = None) -> bytes:
    return seal(signer or identity(number), run_id, a_record(number), expires)


def resealed(number: int, body: Any, run_id: Any = RUN_ID, expires: Any = LATER, signature: Any = None) -> bytes:
    """An envelope that its owner signed, whatever is in it."""
    packed = body if isinstance(body, bytes) else msgpack.packb(body)
    message = b"waggle record 1\0" + msgpack.packb([run_id, packed, expires])
    return bytes(msgpack.packb([run_id, packed, expires, signature or identity(number).sign(message)]))


def reason_of(envelope: Any, peer_id: str = PEERS[0], expires: float = LATER, now: float = NOW) -> str:
    try:
        unseal(peer_id, envelope, expires, now)
    except RecordError as error:
        assert "\n" not in str(error)
        return error.reason
    return ""


records = st.builds(
    PeerRecord,
    peer_id=st.just(PEERS[0]),
    maddrs=st.lists(st.text(max_size=40), max_size=16),
    phase=st.sampled_from(["training", "averaging", "leaving"]),
    outer_step=st.integers(0, 2**53 - 1),
    digest=st.just(digest("state")),
    work=st.integers(0, 2**53 - 1),
    group_size=st.integers(0, 1024),
    client_mode=st.booleans(),
    version=st.text(max_size=32),
)
lifetimes = st.floats(0.0, MAX_LIFETIME_SECONDS)

# -- one envelope --------------------------------------------------------------------------------------------------


@given(records, st.text(max_size=64), lifetimes)
def test_what_is_sealed_opens_as_it_was(record: PeerRecord, run_id: str, lifetime: float) -> None:
    envelope = seal(identity(0), run_id, record, NOW + lifetime)
    assert unseal(PEERS[0], envelope, NOW + lifetime, NOW) == Opened(run_id, record, NOW + lifetime)


def test_every_flipped_bit_is_found() -> None:
    envelope = sealed()
    assert reason_of(envelope) == ""
    reasons: Counter[str] = Counter()
    for index in range(len(envelope)):
        for bit in range(8):
            damaged = bytearray(envelope)
            damaged[index] ^= 1 << bit
            reasons[reason_of(bytes(damaged))] += 1
    assert reasons[""] == 0
    assert reasons.keys() <= {"malformed", "owner", "signature", "lifetime", "expired"}


@given(st.binary(max_size=300) | st.recursive(st.none() | st.floats() | st.text() | st.binary(), st.lists))
def test_anything_else_is_malformed(value: Any) -> None:
    assert reason_of(value) == "malformed"
    assert reason_of(msgpack.packb(value)) == "malformed"


@pytest.mark.parametrize(
    "envelope",
    [
        pytest.param(b"\xc1", id="a-byte-that-is-no-msgpack"),
        pytest.param(b"", id="empty"),
        pytest.param(sealed()[:-1], id="truncated"),
        pytest.param(sealed() + b"\0", id="longer"),
        pytest.param(sealed().decode("latin-1"), id="text"),
        pytest.param(bytearray(sealed()), id="a-bytearray"),
        pytest.param(msgpack.packb([RUN_ID, b"", LATER]), id="three-fields"),
        pytest.param(resealed(0, b"\xc1"), id="a-body-that-is-no-msgpack"),
        pytest.param(resealed(0, b""), id="an-empty-body"),
        pytest.param(resealed(0, []), id="a-body-that-is-a-list"),
        pytest.param(resealed(0, {**a_record().model_dump(), "more": 1}), id="an-unknown-field"),
        pytest.param(resealed(0, {**a_record().model_dump(), "work": -1}), id="a-field-out-of-bounds"),
        pytest.param(resealed(0, {**a_record().model_dump(), "client_mode": 1}), id="a-field-of-another-type"),
        pytest.param(resealed(0, a_record().model_dump(), run_id=7), id="a-run-that-is-a-number"),
        pytest.param(resealed(0, a_record().model_dump(), expires=int(LATER)), id="an-expiration-that-is-an-int"),
        pytest.param(resealed(0, a_record().model_dump(), signature="x" * 64), id="a-signature-that-is-text"),
    ],
)
def test_an_envelope_in_another_form_is_malformed(envelope: Any) -> None:
    assert reason_of(envelope) == "malformed"


def test_each_tampering_has_its_reason() -> None:
    body = a_record().model_dump()
    assert reason_of(sealed(), peer_id=PEERS[1]) == "owner"
    assert reason_of(sealed(1)) == "owner"
    assert reason_of(sealed(signer=identity(1))) == "signature"
    assert reason_of(resealed(0, body, signature=bytes(64))) == "signature"
    assert reason_of(resealed(0, body, signature=bytes(63))) == "signature"
    assert reason_of(sealed(), expires=LATER + 1) == "lifetime", "the DHT keeps it longer than was signed"
    assert reason_of(sealed(), expires=LATER - 1) == "lifetime"
    assert reason_of(sealed(), now=LATER) == ""
    assert reason_of(sealed(), now=LATER + 0.1) == "expired"
    for_ever = NOW + MAX_LIFETIME_SECONDS + 4.0
    assert reason_of(sealed(expires=for_ever), expires=for_ever) == "lifetime"
    for strange in (float("inf"), float("nan")):
        assert reason_of(sealed(expires=strange), expires=strange) == "lifetime"
    assert reason_of(sealed() + bytes(MAX_RECORD_BYTES)) == "size"


def test_another_run_expiration_or_record_needs_another_signature() -> None:
    run_id, body, expires, signature = msgpack.unpackb(sealed())
    other_body = msgpack.packb(a_record(work=121).model_dump())
    assert reason_of(msgpack.packb([run_id, body, expires, signature])) == ""
    assert reason_of(msgpack.packb([OTHER_RUN, body, expires, signature])) == "signature"
    assert reason_of(msgpack.packb([run_id, other_body, expires, signature])) == "signature"
    assert reason_of(msgpack.packb([run_id, body, expires + 1, signature]), expires=expires + 1) == "signature"


def test_a_record_too_large_is_not_sealed() -> None:
    record = a_record(maddrs=["\N{HONEYBEE}" * 256] * 16)
    with pytest.raises(ValueError, match="a record of"):
        seal(identity(0), RUN_ID, record, LATER)
    largest = a_record(maddrs=["x" * 256] * 16, version="\N{HONEYBEE}" * 32, work=2**53 - 1, outer_step=2**53 - 1)
    assert len(seal(identity(0), "x" * 64, largest, LATER)) <= MAX_RECORD_BYTES


@pytest.mark.parametrize(
    "fields",
    [
        {"maddrs": ["x"] * 17},
        {"maddrs": ["x" * 257]},
        {"phase": "Training"},
        {"phase": "x" * 17},
        {"phase": "training\n"},
        {"peer_id": "short"},
        {"digest": "0" * 63},
        {"group_size": 1025},
        {"version": "x" * 33},
        {"outer_step": 2**53},
    ],
)
def test_a_record_is_bounded(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        a_record(**fields)


# -- a run's dictionary --------------------------------------------------------------------------------------------


def test_all_valid_records_are_opened_and_the_others_counted() -> None:
    found: dict[Any, Any] = {subkey(PEERS[number]): (sealed(number), LATER) for number in range(3)}
    found |= {
        subkey(PEERS[3]): (sealed(0), LATER),
        subkey(PEERS[4]): (sealed(4, signer=identity(0)), LATER),
        subkey(PEERS[5]): (sealed(5, run_id=OTHER_RUN), LATER),
        subkey(PEERS[6]): (sealed(6, expires=NOW - 1), NOW - 1),
        subkey(PEERS[7]): (sealed(7), LATER + 60),
        subkey(PEERS[8]): (bytes(MAX_RECORD_BYTES + 1), LATER),
        subkey(PEERS[9]): ("hello", LATER),
        PEERS[10]: (sealed(10), LATER),
        b"bytes": (sealed(11), LATER),
        17: (sealed(11), LATER),
        subkey(""): (sealed(11), LATER),
    }
    dropped: list[str] = []
    opened = open_all(RUN_ID, found, dropped.append, NOW)
    assert opened == {PEERS[number]: Opened(RUN_ID, a_record(number), LATER) for number in range(3)}
    assert Counter(dropped) == Counter(
        {"owner": 2, "signature": 1, "run": 1, "expired": 1, "lifetime": 1, "size": 1, "malformed": 4}
    )


def test_no_more_peers_are_opened_than_a_run_may_have() -> None:
    strangers = {f"stranger {number}": (b"", LATER) for number in range(3 * MAX_PEERS)}
    found = {**strangers, subkey(PEERS[0]): (sealed(), LATER)}
    dropped: list[str] = []
    assert list(open_all(RUN_ID, found, dropped.append, NOW)) == PEERS[:1]
    assert len(dropped) == 3 * MAX_PEERS
    found = {**strangers, **{f"more {number}": (b"", LATER) for number in range(MAX_PEERS)}, **found}
    dropped.clear()
    assert open_all(RUN_ID, found, dropped.append, NOW) == {}, "a flood is not read to its end"
    assert len(dropped) == 4 * MAX_PEERS


# -- the guard of a DHT peer ---------------------------------------------------------------------------------------

dumps = DHTProtocol.serializer.dumps


def guarded(value: bytes, key: Any, expires: float, run_id: str = RUN_ID) -> tuple[bool, list[str]]:
    """The guard's verdict on a record as hivemind hands it over, and the reasons it counted."""
    dropped: list[str] = []
    record = DHTRecord(DHTID.generate(source=peers_key(run_id)).to_bytes(), dumps(key), value, expires)
    return StoreGuard(dropped.append).validate(record), dropped


def test_the_guard_stores_what_would_open() -> None:
    expires = time.time() + 30
    assert guarded(dumps(sealed(expires=expires)), subkey(PEERS[0]), expires) == (True, [])


def test_the_guard_refuses_forgeries() -> None:
    expires = time.time() + 30
    good = sealed(expires=expires)
    assert guarded(dumps(good), subkey(PEERS[1]), expires) == (False, ["owner"])
    assert guarded(dumps(sealed(expires=expires, signer=identity(1))), subkey(PEERS[0]), expires) == (
        False,
        ["signature"],
    )
    assert guarded(dumps(good), subkey(PEERS[0]), expires + 1000) == (False, ["lifetime"]), "it would outlive the owner"
    assert guarded(dumps("hello"), subkey(PEERS[0]), expires) == (False, ["malformed"])
    assert guarded(b"\xc1", subkey(PEERS[0]), expires) == (False, ["malformed"])
    assert guarded(b"", subkey(PEERS[0]), expires) == (False, ["malformed"])


def test_the_guard_refuses_a_peers_record_of_another_run() -> None:
    expires = time.time() + 30
    theirs = dumps(sealed(run_id=OTHER_RUN, expires=expires))
    assert guarded(theirs, subkey(PEERS[0]), expires, run_id=OTHER_RUN) == (True, [])
    assert guarded(theirs, subkey(PEERS[0]), expires) == (False, ["run"]), "it would shadow the peer in this run"


def test_a_record_that_expired_on_its_way_is_nobodys_fault() -> None:
    expires = time.time() - 1
    assert guarded(dumps(sealed(expires=expires)), subkey(PEERS[0]), expires) == (True, [])


@pytest.mark.parametrize("key", ["hello", b"hello", 7, 1.5, ("tuple",), None, True, "waggle", subkey(PEERS[0])[1:]])
@pytest.mark.parametrize("value", [b"", b"\xc1", b"hello", dumps({"a": 1})])
def test_the_guard_leaves_the_records_of_others_alone(key: Any, value: bytes) -> None:
    """Whatever they hold. Sub-key None is how hivemind marks a record without one."""
    assert guarded(value, key, time.time() + 10_000) == (True, [])
