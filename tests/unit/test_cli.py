"""The programs as people type them: real processes, and a real server behind `waggle status`."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from bootstrap.config import BootstrapSettings
from peer.config import PeerSettings
from swarm.errors import MissingExtraError, NetworkError, UsageError
from swarm.exposition import Exposition
from swarm.programs import main, version
from swarm.settings import Settings, catalogue
from waggle.status import fetch, render, show

ROOT = Path(__file__).parents[2]
WAGGLE = "from waggle.cli import main; main()"
STATUS = {
    "run_id": "demo@0123456789abcdef",
    "phase": "training",
    "maddrs": ["/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/2"],
    "loss": 2.34567891,
    "digest": None,
    "last_commit_timestamp": 1000.0,
}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A program of ours in its own process, with nothing of ours in its environment but `environment`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WAGGLE_")}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        env={**clean, "COLUMNS": "200", **environment},
        check=False,
    )


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A running program's HTTP address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    exposition = Exposition(CollectorRegistry(), lambda: STATUS, lambda: True, lambda: True)
    asyncio.run_coroutine_threadsafe(exposition.start("127.0.0.1", 0), loop).result(10)
    yield exposition.url
    asyncio.run_coroutine_threadsafe(exposition.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_version() -> None:
    done = run("-c", WAGGLE, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"waggle {version()}\n", "")


def test_help_lists_the_commands_and_loads_no_torch() -> None:
    done = run("-X", "importtime", "-c", WAGGLE, "--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in ("bootstrap", "demo", "peer", "run", "status"))
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "swarm.settings" in imported
    assert not imported & {"torch", "hivemind", "transformers"}


def test_the_installed_program_is_this_one() -> None:
    assert 'waggle = "waggle.cli:main"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("name, settings", [("peer", PeerSettings), ("bootstrap", BootstrapSettings)])
def test_both_spellings_have_every_flag(name: str, settings: type[Settings]) -> None:
    module, subcommand = run("-m", name, "--help"), run("-c", WAGGLE, name, "--help")
    assert module.returncode == subcommand.returncode == 0
    assert module.stdout.partition("\n")[2] == subcommand.stdout.partition("\n")[2]
    for setting in catalogue(settings):
        assert f"  {setting.flag} " in module.stdout
        assert setting.variable in module.stdout
        if setting.kind == "switch":
            assert f"--no-{setting.flag[2:]}" in module.stdout


def test_mistakes_are_told_in_one_go_without_a_traceback() -> None:
    spelled = [
        run("-m", "peer", "--threads", "many", "--initial-peers", "nonsense", WAGGLE_DEVICE="tpu"),
        run("-c", WAGGLE, "peer", "--threads", "many", "--initial-peers", "nonsense", WAGGLE_DEVICE="tpu"),
    ]
    for done in spelled:
        assert done.returncode == 2
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert [line.split(":")[1] for line in lines] == [" run", " initial_peers", " device", " threads"]
        assert all(line.startswith("waggle: ") for line in lines)


def test_lists_and_switches_arrive(tmp_path: Path) -> None:
    code = (
        "from swarm.programs import command, main, new_app; from peer.config import PeerSettings\n"
        "def show(s): print(s.run, s.initial_peers, s.client_mode, s.nat_port_map, s.threads); return 7\n"
        "app = new_app('x'); app.command()(command(PeerSettings, show, 'x')); main(app)"
    )
    peers = [f"/ip4/203.0.113.{n}/tcp/1/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N" for n in (1, 2, 3)]
    config = tmp_path / "waggle.toml"
    config.write_text("threads = 5\nclient_mode = false")
    flags = ["--run", "a.toml", "--config", str(config), "--client-mode", "--no-nat-port-map"]
    done = run("-c", code, *flags, "--initial-peers", f"{peers[0]},{peers[1]}", "--initial-peers", peers[2])
    assert done.stdout == f"a.toml {peers} True False 5\n", done.stderr
    assert done.returncode == 7


def test_an_unknown_flag_is_a_usage_error() -> None:
    done = run("-c", WAGGLE, "peer", "--speed", "11")
    assert done.returncode == 2
    assert "No such option: --speed" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "error, code, told",
    [
        (UsageError("a: wrong\nb: wrong"), 2, "waggle: a: wrong\nwaggle: b: wrong\n"),
        (NetworkError("p2pd is gone"), 4, "waggle: p2pd is gone\n"),
        (MissingExtraError(""), 9, "waggle: MissingExtraError\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_how_a_program_ends(error: BaseException, code: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        main(program)
    assert caught.value.code == code
    assert capsys.readouterr() == ("", told)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    done = run("-c", "from swarm.programs import main; main(lambda: 1 / 0)")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_ctrl_c_ends_with_130_and_no_traceback() -> None:
    code = (
        "import signal; from swarm.programs import main, new_app\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whoever runs us in the background ignores it
        "app = new_app('x')\n"
        "@app.command()\n"
        "def wait(): print('ready', flush=True); signal.pause()\n"
        "main(app)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err


def test_status_as_json(url: str) -> None:
    done = run("-c", WAGGLE, "status", "--json", "--http", url)
    assert done.returncode == 0
    assert json.loads(done.stdout) == STATUS


def test_status_as_a_table(url: str) -> None:
    done = run("-c", WAGGLE, "status", WAGGLE_HTTP=url.removeprefix("http://"))
    assert done.returncode == 0, done.stderr
    assert "demo@0123456789abcdef" in done.stdout
    assert "training" in done.stdout


def test_the_table_is_readable() -> None:
    console = Console(width=100)
    with console.capture() as capture:
        status = {**STATUS, "name": "[red]x", "peers": [{"phase": "training"}], "by_phase": {"training": 2}}
        console.print(render(status, now=1090.0))
    shown = [line.split() for line in capture.get().splitlines()]
    assert ["loss", "2.346"] in shown
    assert ["digest", "-"] in shown
    assert ["last_commit_timestamp", "90", "s", "ago"] in shown
    assert ["name", "[red]x"] in shown
    assert ["by_phase", "training", "2"] in shown
    assert ["/ip4/127.0.0.1/tcp/2"] in shown, "one line per address"


def test_status_of_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    done = run("-c", WAGGLE, "status", "--http", f"http://127.0.0.1:{port}")
    assert done.returncode == 4
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"waggle: nobody answers at http://127.0.0.1:{port}/status (")
    assert "is the peer running, and is this its --http?" in line


def test_status_asks_the_address_that_is_meant(url: str) -> None:
    for spelled in (url, f"{url}/", f"{url}/status", url.removeprefix("http://")):
        assert fetch(spelled) == STATUS
    with pytest.raises(NetworkError, match="answers 404: is a waggle program there"):
        fetch(f"{url}/elsewhere")
    with pytest.raises(NetworkError, match="is not a waggle program"):
        fetch(f"{url}/metrics?/status")
    with pytest.raises(UsageError, match="HTTP is off"):
        show("off", as_json=True)
    with pytest.raises(UsageError, match="is not a URL"):
        fetch("http://[::1")


def at_a_terminal(folder: Path, answers: str, *arguments: str) -> str:
    """What `waggle run new` shows on a terminal where ``answers`` are typed, echo included."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", WAGGLE, "run", "new", "bees", "--key", "me.key", *arguments],
            stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as child:  # fmt: skip
            os.write(ours, answers.encode())
            shown, _ = child.communicate(timeout=60)
    finally:
        os.close(ours)
        os.close(theirs)
    assert child.returncode == 0, shown
    return shown


def test_a_terminal_is_asked_for_the_horizon_and_the_link(tmp_path: Path) -> None:
    shown = at_a_terminal(tmp_path, "900\nquick\n50\n\n2\n")
    for question in ("in all [2000]: ", "Mbit/s [20.0]: ", "expect [4]: ", "takes [1.0]: "):
        assert question in shown
    assert shown.count("Mbit/s [20.0]: ") == 2, "what is no number is asked again"
    assert "chosen for 900 inner steps of 2 s, 4 peers, 50 Mbit/s up" in shown


def test_a_terminal_is_not_asked_for_what_is_given(tmp_path: Path) -> None:
    flags = ["--horizon", "900", "--uplink-mbit", "50", "--step-seconds", "2"]
    shown = at_a_terminal(tmp_path, "6\n", *flags)
    assert shown.count("]: ") == 1
    assert "chosen for 900 inner steps of 2 s, 6 peers, 50 Mbit/s up" in shown
