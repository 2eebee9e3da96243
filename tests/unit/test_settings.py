"""Settings: where they come from, what is said of mistakes, and that the pages list exactly them."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from bootstrap.config import BootstrapSettings
from peer.config import PeerSettings
from swarm.errors import ExitCode, UsageError
from swarm.settings import Settings, catalogue, render_table

DOCS = Path(__file__).parents[2] / "docs"
PEER_ID = "12D3KooWGRUKcRBBx3g7wqVYo2ZQ5uYoL4UoyYtsBRK9A1cKpeYo"
PEER = f"/ip4/203.0.113.7/tcp/31337/p2p/{PEER_ID}"
OTHER = f"/ip6/2001:db8::1/udp/4001/quic-v1/p2p/{PEER_ID}"
PROGRAMS = pytest.mark.parametrize("settings", [PeerSettings, BootstrapSettings])


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in list(os.environ):
        if name.startswith("WAGGLE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def problems(settings: type[Settings] = PeerSettings, **flags: object) -> list[str]:
    with pytest.raises(UsageError) as caught:
        settings.load(**flags)
    assert caught.value.exit_code is ExitCode.USAGE
    return str(caught.value).splitlines()


@pytest.mark.parametrize("flag, variable, file", list(product([True, False], repeat=3)))
def test_flags_over_environment_over_file_over_default(
    flag: bool, variable: bool, file: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "waggle.toml"
    path.write_text('run = "a.toml"\n' + ("threads = 3\n" if file else ""))
    if variable:
        monkeypatch.setenv("WAGGLE_THREADS", "2")
    settings = PeerSettings.load(config=str(path), threads="1" if flag else None)
    assert settings.threads == (1 if flag else 2 if variable else 3 if file else 0)
    assert settings.run == "a.toml"


def test_bootstrap_reads_its_own_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "bootstrap.toml"
    path.write_text('log_level = "error"')
    monkeypatch.setenv("WAGGLE_HTTP", "127.0.0.1:1")
    monkeypatch.setenv("WAGGLE_BOOTSTRAP_NAT_PORT_MAP", "false")
    monkeypatch.setenv("WAGGLE_BOOTSTRAP_CONFIG", str(path))
    settings = BootstrapSettings.load()
    assert settings.http_address == ("127.0.0.1", 8081)
    assert not settings.nat_port_map
    assert settings.log_level == "error"


@pytest.mark.parametrize("text", [f"{PEER},{OTHER}", f"{PEER} {OTHER}", f" {PEER} ,\n{OTHER}, "])
def test_lists_from_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAGGLE_INITIAL_PEERS", text)
    assert PeerSettings.load(run="a.toml").initial_peers == [PEER, OTHER]


def test_lists_from_flags_and_file(tmp_path: Path) -> None:
    path = tmp_path / "waggle.toml"
    path.write_text(f'initial_peers = ["{PEER}"]\nhost_maddrs = "/ip4/0.0.0.0/tcp/1, /ip6/::/tcp/1"')
    settings = PeerSettings.load(run="a.toml", config=str(path), initial_peers=[])
    assert settings.initial_peers == [PEER]
    assert settings.host_maddrs == ["/ip4/0.0.0.0/tcp/1", "/ip6/::/tcp/1"]
    settings = PeerSettings.load(run="a.toml", initial_peers=[f"{PEER},{OTHER}", PEER])
    assert settings.initial_peers == [PEER, OTHER, PEER]


def test_an_empty_variable_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAGGLE_THREADS", "")
    monkeypatch.setenv("WAGGLE_INITIAL_PEERS", "")
    settings = PeerSettings.load(run="a.toml")
    assert settings.threads == 0
    assert settings.initial_peers == []


def test_home_is_expanded(tmp_path: Path) -> None:
    settings = PeerSettings.load(run="~/a.toml")
    home = tmp_path / "home"
    assert settings.run == str(home / "a.toml")
    assert settings.data_dir == home / ".waggle"
    assert settings.identity_path == home / ".waggle" / "identity.key"
    assert PeerSettings.load(run="a.toml", identity="~/my.key").identity_path == home / "my.key"
    assert BootstrapSettings.load().identity == home / ".waggle" / "bootstrap.key"


def test_one_line_per_problem_names_flag_and_variable() -> None:
    lines = problems(initial_peers=["/ip4/1.2.3/tcp/1", PEER, "nonsense"], threads="-1", device="tpu")
    assert lines == [
        "run: is needed and not given (flag --run, variable WAGGLE_RUN)",
        "initial_peers: '/ip4/1.2.3/tcp/1': '1.2.3' is not an IPv4 address; expected e.g. "
        "/ip4/203.0.113.7/tcp/31337/p2p/12D3Koo... (flag --initial-peers, variable WAGGLE_INITIAL_PEERS)",
        "initial_peers: 'nonsense': a multiaddr starts with a slash; expected e.g. "
        "/ip4/203.0.113.7/tcp/31337/p2p/12D3Koo... (flag --initial-peers, variable WAGGLE_INITIAL_PEERS)",
        "device: 'tpu' is not a device; expected auto, cpu, cuda or cuda:INDEX (flag --device, variable WAGGLE_DEVICE)",
        "threads: '-1': input should be greater than or equal to 0 (flag --threads, variable WAGGLE_THREADS)",
    ]


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("http", "8080", "'8080': is not HOST:PORT"),
        ("p2pd_metrics", "here", "'here': is not HOST:PORT"),
        ("log_format", "xml", "'xml': input should be 'auto', 'console' or 'json'"),
        ("log_level", "loud", "input should be 'debug', 'info', 'warning' or 'error'"),
        ("announce_maddrs", "/ip4/203.0.113.7/tcp/0", "nobody can dial port 0"),
        ("host_maddrs", "/dns4/example.org/tcp/1", "a name cannot be listened on"),
        ("max_outer_steps", "0", "greater than or equal to 1"),
        ("data_shard", "4/4", "'4/4' is not a shard; expected I/N with I from 0 to N-1"),
        ("client_mode", "perhaps", "'perhaps': input should be a valid boolean"),
        ("run", "", "at least 1 character"),
    ],
)
def test_what_is_said_of_a_wrong_value(name: str, value: str, said: str) -> None:
    (line,) = problems(**{"run": "a.toml", name: value})
    assert line.startswith(f"{name}: ")
    assert said in line
    assert f"variable WAGGLE_{name.upper()})" in line


def test_unknown_keys_of_the_file_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "waggle.toml"
    path.write_text('run = "a.toml"\ninital_peers = []\nzzz = 1\nconfig = "b.toml"')
    assert problems(config=str(path)) == [
        f"{path}: unknown setting 'inital_peers'; did you mean 'initial_peers'?",
        f"{path}: unknown setting 'zzz'",
        f"{path}: unknown setting 'config'",
    ]


def test_a_settings_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, broken, binary = tmp_path / "missing.toml", tmp_path / "broken.toml", tmp_path / "binary.toml"
    broken.write_text("run = ")
    binary.write_bytes(b"\xff\xfe")
    assert problems(config=str(missing)) == [f"config: {missing}: no such file or directory"]
    assert problems(config=str(tmp_path)) == [f"config: {tmp_path}: is a directory"]
    for path in (broken, binary):
        (line,) = problems(config=str(path))
        assert line.startswith(f"config: {path} is not a TOML file: ")
    monkeypatch.setenv("WAGGLE_CONFIG", str(missing))
    assert problems() == [f"config: {missing}: no such file or directory"]


def test_values_derived_from_settings() -> None:
    settings = PeerSettings.load(run="a.toml", data_shard="1/4", http="off", log_level="INFO")
    assert settings.shard == (1, 4)
    assert settings.http_address is None
    assert settings.p2pd_metrics_address == ""
    assert settings.log_level == "info"
    assert PeerSettings.load(run="a.toml").shard is None
    assert PeerSettings.load(run="a.toml", p2pd_metrics="off").p2pd_metrics_address == ""
    assert PeerSettings.load(run="a.toml", p2pd_metrics="[::1]:9").p2pd_metrics_address == "[::1]:9"


def test_settings_are_frozen() -> None:
    settings = PeerSettings.load(run="a.toml")
    with pytest.raises(ValidationError, match="frozen"):
        settings.threads = 4
    assert problems(run="a.toml", thread=4) == ["thread: unknown setting"]


@PROGRAMS
def test_every_setting_is_documented(settings: type[Settings]) -> None:
    section = section_of(settings)
    for name, field in settings.model_fields.items():
        assert field.description, f"{settings.__name__}.{name} has no description"
    for setting in catalogue(settings):
        assert f"| `{setting.flag}` | `{setting.variable}` |" in section, f"docs/settings.md lacks {setting.flag}"
    assert {setting.name for setting in catalogue(settings)} == set(settings.model_fields)


@PROGRAMS
def test_every_documented_setting_exists_as_documented(settings: type[Settings]) -> None:
    documented = set(re.findall(r"^\| `(--[a-z0-9-]+)`", section_of(settings), flags=re.MULTILINE))
    assert documented == {setting.flag for setting in catalogue(settings)}
    table = render_table(settings)
    assert table in section_of(settings), f"docs/settings.md must hold:\n{table}"


def section_of(settings: type[Settings]) -> str:
    heading = {"PeerSettings": "## waggle peer", "BootstrapSettings": "## waggle bootstrap"}[settings.__name__]
    page = (DOCS / "settings.md").read_text(encoding="utf-8")
    return page.split(f"{heading}\n")[1].split("\n## ")[0]


def test_every_exit_code_is_documented() -> None:
    page = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    documented = re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", page, flags=re.MULTILINE)
    assert documented == [(str(code.value), code.name) for code in ExitCode]
