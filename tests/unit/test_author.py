"""`waggle run new`, `sign`, `publish`, `show`, as an author types them, as far as nobody need be reached."""

from __future__ import annotations

import socket
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peer.tasks import shape_model
from swarm.errors import ExitCode, WaggleError
from swarm.identity import Identity
from swarm.invitation import read_signature
from swarm.manifest import Manifest
from tests.unit.test_cli import WAGGLE, run
from waggle.author import TEMPLATES, how_to_join
from waggle.run import app

PEER_ID = "12D3KooWBVzpKEd2PvND4FrhFzkAjDVXdJpXTDZrbdKg3aqQLaZs"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the author types; also the home directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WAGGLE_INITIAL_PEERS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def typed(*words: str) -> str:
    """What `waggle run ...` prints."""
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(code: ExitCode, *words: str) -> str:
    """The one line of a refusal."""
    with pytest.raises(WaggleError) as caught:
        typed(*words)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_templates_are_those_that_there_are() -> None:
    assert {Path(one.name).stem for one in (files("waggle") / "templates").iterdir()} == set(TEMPLATES)


@pytest.mark.parametrize("template", TEMPLATES)
def test_each_template_makes_a_valid_run(folder: Path, template: str) -> None:
    told = typed("new", "mine", "--template", template)
    manifest = Manifest.load("mine.toml")
    key = folder / ".waggle" / "author.key"
    assert manifest.name == "mine"
    assert manifest.author == Identity.load_or_create(key).peer_id
    assert manifest.author in told
    assert str(key) in told
    assert key.stat().st_mode & 0o777 == 0o400
    assert sum(parameter.numel() for parameter in shape_model(manifest).parameters()) > 100_000
    comments = [line for line in Path("mine.toml").read_text().splitlines() if "#" in line]
    assert len(comments) > 5


def test_the_flags_decide_how_often_peers_talk() -> None:
    told = typed(
        "new", "mine", "--horizon", "300", "--uplink-mbit", "1000", "--peers", "8", "--step-seconds", "60"
    )  # fmt: skip
    assert "chosen for 300 inner steps of 60 s, 8 peers, 1000 Mbit/s up; " in told
    fast = Manifest.load("mine.toml")
    assert fast.round.inner_steps == 1
    told = typed("new", "other", "--uplink-mbit", "0.1")
    assert "chosen for 2,000 inner steps of 1 s, 4 peers, 0.1 Mbit/s up; " in told, "defaults, for nobody can be asked"
    assert (Manifest.load("other.toml").round.inner_steps or 0) > 1


def test_a_plan_that_cannot_be_is_told_before_anything_is_written(folder: Path) -> None:
    assert refused(ExitCode.USAGE, "new", "mine", "--peers", "1").startswith("--peers: must be 2 to 64 peers, not 1")
    assert list(folder.iterdir()) == []


def test_from_a_template_to_a_signature(folder: Path) -> None:
    typed("new", "mine", "--key", "keys/me.key", "--out", "runs/mine.toml")
    file = folder / "runs" / "mine.toml"
    manifest = Manifest.load(file)
    assert f"{manifest.author} (not signed yet)" in typed("show", str(file))
    told = typed("sign", str(file), "--key", "keys/me.key")
    assert f"signed {manifest.run_id} by {manifest.author}" in told
    assert read_signature(file, manifest) is not None
    assert f"{manifest.author} (whose signature holds)" in typed("show", str(file))
    file.write_text(file.read_text().replace("seed = 0", "seed = 1"))
    assert "signs another manifest than mine.toml is now" in refused(ExitCode.MANIFEST, "show", str(file))
    told = typed("sign", str(file), "--key", "keys/me.key")
    assert manifest.run_id not in told, "it is another run"
    assert {path.name for path in file.parent.iterdir()} == {"mine.toml", "mine.toml.sig"}


def test_nothing_is_overwritten(folder: Path) -> None:
    typed("new", "mine")
    before, key = Path("mine.toml").read_bytes(), Path(".waggle/author.key").read_bytes()
    assert refused(ExitCode.USAGE, "new", "mine").startswith("mine.toml is there already, and is not overwritten")
    typed("new", "other")
    assert (Path("mine.toml").read_bytes(), Path(".waggle/author.key").read_bytes()) == (before, key)
    Path("broken.key").write_bytes(b"no key")
    assert "broken.key" in refused(ExitCode.IDENTITY, "new", "third", "--key", "broken.key")
    assert Path("broken.key").read_bytes() == b"no key"
    assert not Path("third.toml").exists()


@pytest.mark.parametrize("name", ["My-Run", "", 'a"b', "a\\", "a\nb", "@NAME@"])
def test_a_name_that_cannot_be_a_runs(folder: Path, name: str) -> None:
    assert refused(ExitCode.MANIFEST, "new", name, "--out", "x.toml").startswith("name: must be 1 to 40 of")
    assert list(folder.iterdir()) == [], "no file, and no key either"


def test_a_template_that_is_not_there() -> None:
    assert "choose one of demo, text, hub" in refused(ExitCode.USAGE, "new", "mine", "--template", "vision")


def test_the_key_must_be_the_authors() -> None:
    typed("new", "mine", "--key", "me.key")
    Identity.load_or_create(Path("you.key"))
    assert refused(ExitCode.MANIFEST, "sign", "mine.toml", "--key", "you.key").startswith("author: names 12D3KooW")
    assert refused(ExitCode.IDENTITY, "sign", "mine.toml", "--key", "lost.key").startswith("key lost.key: not there;")
    assert not Path("lost.key").exists()
    text = Path("mine.toml").read_text()
    Path("mine.toml").write_text("\n".join(line for line in text.splitlines() if not line.startswith("author")))
    assert "add the line author = " in refused(ExitCode.MANIFEST, "sign", "mine.toml", "--key", "me.key")
    assert not Path("mine.toml.sig").exists()


def test_publishing_needs_a_signature_and_somebody_to_tell() -> None:
    typed("new", "mine")
    assert "waggle run sign mine.toml" in refused(ExitCode.MANIFEST, "publish", "mine.toml")
    typed("sign", "mine.toml")
    assert refused(ExitCode.USAGE, "publish", "mine.toml").startswith("initial_peers: is needed and not given")
    wrong = refused(ExitCode.USAGE, "publish", "mine.toml", "--initial-peers", "/ip4/1.2.3/tcp/1/p2p/x")
    assert wrong.startswith("initial_peers: '/ip4/1.2.3/tcp/1/p2p/x'")
    assert "initial_peers: is needed" in refused(ExitCode.USAGE, "show", "mine@0123456789abcdef")


def test_nobody_answers(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        maddr = f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}/p2p/{PEER_ID}"
    typed("new", "mine")
    typed("sign", "mine.toml")
    impatient = f"import waggle.visit; waggle.visit.JOIN_SECONDS = 2.0; {WAGGLE}"
    done = run("-c", impatient, "run", "publish", str(folder / "mine.toml"), "--initial-peers", maddr)
    assert (done.returncode, done.stdout) == (ExitCode.NETWORK, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"waggle: none of the initial peers answers within 2 s ({maddr}); is a bootstrap running")


def test_what_volunteers_are_told() -> None:
    lines = how_to_join("mine@0123456789abcdef", ["/ip4/1.1.1.1/tcp/1/p2p/a", "/ip4/2.2.2.2/tcp/2/p2p/b"]).splitlines()
    peer = "waggle peer --initial-peers /ip4/1.1.1.1/tcp/1/p2p/a --initial-peers /ip4/2.2.2.2/tcp/2/p2p/b"
    assert f"{peer} --run mine@0123456789abcdef" in lines
    assert lines[-2:] == [
        "WAGGLE_INITIAL_PEERS=/ip4/1.1.1.1/tcp/1/p2p/a,/ip4/2.2.2.2/tcp/2/p2p/b",
        "WAGGLE_RUN=mine@0123456789abcdef",
    ]
