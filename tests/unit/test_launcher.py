"""The launcher: a child that dies with its parent, whatever kills the parent. Real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from swarm import launcher

LAUNCHER = [sys.executable, "-I", "-S", str(Path(launcher.__file__))]
DEADLINE_SECONDS = 5.0

# The program that is started: says its process id, then waits for ever.
CHILD = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
# Its parent, which does the same. Both hold the test's pipe, so its end says that both are gone.
PARENT = f"""
import os, signal, subprocess, sys
command = [*{LAUNCHER!r}, str(os.getpid()), sys.executable, "-c", {CHILD!r}]
child = subprocess.Popen(command, start_new_session=True)
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_its_parent(how: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    child = 0
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)  # it lives
        parent.send_signal(how)
        out, _ = parent.communicate(timeout=DEADLINE_SECONDS)  # ends when both have let go of the pipe
        assert out == ""
        assert parent.returncode == -how
        child = 0
    finally:
        parent.kill()
        parent.communicate()
        if child:
            os.kill(child, signal.SIGKILL)


def test_the_program_takes_the_launchers_place() -> None:
    code = "import os, sys; print(os.getpid(), sys.argv[1:]); sys.exit(7)"
    command = [*LAUNCHER, str(os.getpid()), sys.executable, "-c", code, "-listen=/unix/a b", ""]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out, _ = started.communicate(timeout=30)
    assert out == f"{started.pid} ['-listen=/unix/a b', '']\n"
    assert started.returncode == 7


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_nothing_starts_when_the_parent_is_gone_already() -> None:
    somebody_else = str(os.getppid())
    command = [*LAUNCHER, somebody_else, sys.executable, "-c", "print('started')"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
