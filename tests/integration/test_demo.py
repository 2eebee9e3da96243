"""`waggle demo` as a person types it: it learns, it agrees, and it leaves nothing running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

WAGGLE = [sys.executable, "-c", "from waggle.cli import main; main()"]


def _left_behind(output: Path) -> list[str]:
    """Command lines of processes that work in ``output``: peers name it as their data directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(output) in line:
            found.append(line)
    return found


@pytest.mark.timeout(400)
def test_demo_learns_agrees_and_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [*WAGGLE, "demo", "--peers", "3", "--outer-steps", "14", "--json", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["run_id"].startswith("demo@")
    assert result["outer_steps"] == 14
    assert result["agreed"] is True
    assert result["loss_last"] <= 0.6 * result["loss_first"]  # the bar: at least 40% less
    assert result["seconds"] > 0
    assert len(result["peers"]) == 3
    for peer in result["peers"]:
        assert peer["outer_step"] == 14
        assert peer["bytes_sent"] > 1e6 and peer["bytes_received"] > 1e6
        assert peer["processes"] == 2  # Python and p2pd
    assert len({peer["digest"] for peer in result["peers"]}) == 1
    assert len({peer["peer_id"] for peer in result["peers"]}) == 3
    assert (output / "loss.png").stat().st_size > 10_000
    assert "after 'def '" in done.stderr  # the sample of what it writes
    assert _left_behind(output) == []


@pytest.mark.timeout(120)
def test_interrupted_demo_leaves_nothing_running(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [*WAGGLE, "demo", "--peers", "2", "--outer-steps", "1000", "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True) as demo:
        deadline = time.monotonic() + 60
        while not list(output.glob("peer-1/log.jsonl")) and time.monotonic() < deadline:
            assert demo.poll() is None, demo.stdout.read() if demo.stdout else ""
            time.sleep(0.1)
        os.kill(demo.pid, signal.SIGINT)
        assert demo.wait(30) == 130
    assert _left_behind(output) == []


@pytest.mark.timeout(120)
def test_killed_demo_takes_its_children_with_it(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [*WAGGLE, "demo", "--peers", "2", "--outer-steps", "1000", "--output", str(output)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as demo:
        deadline = time.monotonic() + 60
        while not list(output.glob("peer-1/log.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        demo.kill()
    gone_by = time.monotonic() + 5
    while _left_behind(output) and time.monotonic() < gone_by:
        time.sleep(0.1)
    assert _left_behind(output) == []
