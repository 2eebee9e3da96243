"""From the setting `run` to the run, as far as nobody need be asked: files, copies, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from peer.config import PeerSettings
from peer.enrolment import Tally, cache_path, enrol, keep, load
from swarm.errors import ManifestError, StateError, UsageError
from swarm.identity import Identity
from swarm.invitation import Invitation, invite, write_signature
from swarm.lifecycle import Shutdown
from swarm.manifest import Manifest
from tests.chain import PEERS, identity
from tests.unit.test_invitation import INVITATION, MANIFEST, TOML

RUN_ID = MANIFEST.run_id


@pytest.fixture
def us(tmp_path: Path) -> Identity:
    return Identity.load_or_create(tmp_path / "identity.key")


def settings(folder: Path, run: str) -> PeerSettings:
    return PeerSettings.load(run=run, data_dir=str(folder))


def test_a_run_is_a_file_or_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/bee")
    assert settings(tmp_path, RUN_ID).run_id == RUN_ID
    for file in ("run.toml", "./demo@0123456789abcdef", "runs/a@b", "mine@home.toml"):
        assert settings(tmp_path, file).run_id is None
    assert settings(tmp_path, "~/run.toml").run == "/home/bee/run.toml"


@pytest.mark.parametrize("run", ["demo@", "demo@0123456789abcde", "demo@0123456789ABCDEF", "Demo@0123456789abcdef"])
def test_a_run_id_with_a_typing_error_is_not_taken_for_a_file(tmp_path: Path, run: str) -> None:
    with pytest.raises(UsageError, match=f"^run: '{run}' is not a run id; expected NAME@DIGEST"):
        settings(tmp_path, run)


def test_a_file_needs_no_signature(tmp_path: Path, us: Identity) -> None:
    file = tmp_path / "run.toml"
    file.write_text(TOML)
    run = enrol(settings(tmp_path, str(file)), us, Shutdown())
    assert (run.manifest, run.invitation) == (MANIFEST, None)
    write_signature(file, INVITATION)
    assert enrol(settings(tmp_path, str(file)), us, Shutdown()).invitation == INVITATION
    file.write_text(TOML.replace("inner_steps = 3", "inner_steps = 4"))
    with pytest.raises(ManifestError, match="signs another manifest than"):
        enrol(settings(tmp_path, str(file)), us, Shutdown())


def test_a_copy_needs_nobody(tmp_path: Path, us: Identity) -> None:
    keep(tmp_path, INVITATION)
    run = enrol(settings(tmp_path, RUN_ID), us, Shutdown())
    assert (run.manifest, run.invitation) == (MANIFEST, INVITATION)


def test_without_a_copy_somebody_must_be_asked(tmp_path: Path, us: Identity) -> None:
    with pytest.raises(UsageError, match=f"^initial_peers: run {RUN_ID} must be fetched from somebody") as caught:
        enrol(settings(tmp_path, RUN_ID), us, Shutdown())
    assert "\n" not in str(caught.value)


OTHER = invite(Manifest.from_toml(TOML.replace("tiny", "other")), identity(0))
FORGED = Invitation(RUN_ID, PEERS[0], INVITATION.canonical.replace(b"0.01", b"0.02"), INVITATION.signature)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(INVITATION.canonical, id="cut-off"),
        pytest.param(INVITATION.canonical + b"\nno hex\n", id="no-hex"),
        pytest.param(INVITATION.canonical + b"\n\xff\n", id="no-text"),
        pytest.param(FORGED.canonical + b"\n" + FORGED.signature.hex().encode(), id="changed"),
        pytest.param(OTHER.canonical + b"\n" + OTHER.signature.hex().encode(), id="another-run"),
        pytest.param(b"x" * 500_000, id="endless"),
    ],
)
def test_a_corrupt_copy_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = cache_path(tmp_path, RUN_ID)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    assert load(tmp_path, RUN_ID) is None
    assert not path.exists()
    assert path.with_name("invitation.corrupt").read_bytes() == content, "never deleted"
    keep(tmp_path, INVITATION)
    assert load(tmp_path, RUN_ID) == INVITATION


def test_a_data_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(StateError, match="cannot be written"):
        keep(tmp_path, INVITATION)
    with pytest.raises(StateError, match="cannot be read"):
        load(tmp_path, RUN_ID)


def test_refusals_are_counted_and_passed_on() -> None:
    outer, inner = Tally(), None
    inner = Tally(outer)
    for reason in ("signature", "run", "signature"):
        inner.record_dropped(reason)
    assert inner.refused == outer.refused == {"signature": 2, "run": 1}
