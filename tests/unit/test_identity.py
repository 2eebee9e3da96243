"""Identity files and signatures: real files, real processes, and the real p2pd as the judge of peer ids."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import base58
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ExitCode, IdentityError
from swarm.identity import Identity, verify
from swarm.p2pd import P2PD, P2PDOptions
from tests.chain import identity

HEADER = b"\x08\x01\x12\x40"  # protobuf: Ed25519, 64 bytes
ALICE, BOB = identity(0), identity(1)


def a_key_file(folder: Path) -> Path:
    return Identity.load_or_create(folder / "identity.key").path


def test_a_new_identity_is_for_its_owner_only_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "identity.key"
    created = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert [one.name for one in path.parent.iterdir()] == ["identity.key"], "no temporary file is left"
    before = path.read_bytes()
    loaded = Identity.load_or_create(path)
    assert loaded.peer_id == created.peer_id
    assert path.read_bytes() == before
    assert verify(created.peer_id, b"hello", loaded.sign(b"hello"))


def test_two_identities_differ(tmp_path: Path) -> None:
    assert a_key_file(tmp_path / "a").read_bytes() != a_key_file(tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda key: b"", id="empty"),
        pytest.param(lambda key: key[:-1], id="truncated"),
        pytest.param(lambda key: key + b"\n", id="longer"),
        pytest.param(lambda key: b"\x08\x00" + key[2:], id="another-key-type"),
        pytest.param(lambda key: HEADER + key[36:] + key[4:36], id="halves-swapped"),
        pytest.param(lambda key: key[:-1] + bytes([key[-1] ^ 1]), id="public-key-of-another"),
        pytest.param(lambda key: b"-----BEGIN PRIVATE KEY-----\n", id="pem"),
        pytest.param(lambda key: bytes(len(key)), id="zeros"),
    ],
)
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, damage: object) -> None:
    path = a_key_file(tmp_path)
    path.chmod(0o600)
    content = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(content)
    with pytest.raises(IdentityError, match="not a libp2p Ed25519 key file") as caught:
        Identity.load_or_create(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code is ExitCode.IDENTITY
    assert path.read_bytes() == content


@given(st.binary(max_size=100))
def test_a_file_of_any_bytes_is_refused_and_kept(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("identity") / "identity.key"
    path.write_bytes(content)
    with pytest.raises(IdentityError):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_place_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a folder")
    for path in (tmp_path, occupied / "identity.key"):
        with pytest.raises(IdentityError) as caught:
            Identity.load_or_create(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_link_to_nowhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "identity.key"
    path.symlink_to(tmp_path / "lost.key")
    with pytest.raises(IdentityError, match=r"identity\.key"):
        Identity.load_or_create(path)
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_create_at_once_share_one_key(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from swarm.identity import Identity
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    print(Identity.load_or_create(Path(sys.argv[1]) / f"{number}.key").peer_id)
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:  # both are ready: this starts them together
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[0].split() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0] == said[1]
    assert len(set(said[0])) == 40
    assert len(list(tmp_path.iterdir())) == 40


async def test_libp2p_derives_the_same_peer_id(tmp_path: Path) -> None:
    ours = Identity.load_or_create(tmp_path / "identity.key")
    p2pd = await P2PD.start(P2PDOptions(ours.path, host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    try:
        assert p2pd.p2p.peer_id.to_base58() == ours.peer_id
    finally:
        await p2pd.stop()


@given(st.binary(max_size=2000))
def test_a_signature_holds_for_its_message_and_its_signer_only(message: bytes) -> None:
    signature = ALICE.sign(message)
    assert len(signature) == 64
    assert verify(ALICE.peer_id, message, signature)
    assert not verify(BOB.peer_id, message, signature)
    assert not verify(ALICE.peer_id, message + b"\0", signature)


@given(st.binary(min_size=1, max_size=100), st.data())
def test_one_flipped_bit_breaks_a_signature(message: bytes, data: st.DataObject) -> None:
    signature = ALICE.sign(message)
    in_message, in_signature = (
        data.draw(st.integers(0, 8 * len(whole) - 1), label=label)
        for whole, label in ((message, "in message"), (signature, "in signature"))
    )

    def flipped(whole: bytes, bit: int) -> bytes:
        return whole[: bit // 8] + bytes([whole[bit // 8] ^ 1 << bit % 8]) + whole[bit // 8 + 1 :]

    assert not verify(ALICE.peer_id, flipped(message, in_message), signature)
    assert not verify(ALICE.peer_id, message, flipped(signature, in_signature))


@given(st.binary(max_size=100).filter(lambda signature: len(signature) != 64))
def test_a_signature_of_another_length_is_false(signature: bytes) -> None:
    assert not verify(ALICE.peer_id, b"message", signature)


def test_an_id_in_another_form_verifies_nothing() -> None:
    message = b"message"
    signature = ALICE.sign(message)
    raw = base58.b58decode(ALICE.peer_id)
    forms = {
        "nothing": "",
        "shortened": ALICE.peer_id[:-1],
        "lengthened": ALICE.peer_id + "1",
        "a trailing newline": ALICE.peer_id + "\n",
        "trailing spaces": ALICE.peer_id + "  ",
        "a leading space": " " + ALICE.peer_id,
        "a leading zero byte": "1" + ALICE.peer_id,
        "upper case": ALICE.peer_id.upper(),
        "not ASCII": ALICE.peer_id + "\N{HONEYBEE}",
        "a multiaddr": f"/p2p/{ALICE.peer_id}",
        "hex": raw.hex(),
        "sha256, as of an RSA key": base58.b58encode(b"\x12\x20" + raw[-32:]).decode(),
        "another key type": base58.b58encode(raw[:3] + b"\x02" + raw[4:]).decode(),
        "the bare key": base58.b58encode(raw[-32:]).decode(),
    }
    assert verify(ALICE.peer_id, message, signature)
    assert {what for what, form in forms.items() if verify(form, message, signature)} == set()


@given(st.text(max_size=60))
def test_any_text_for_an_id_is_false(text: str) -> None:
    assert not verify(text, b"message", ALICE.sign(b"message"))
