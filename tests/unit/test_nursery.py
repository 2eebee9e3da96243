"""Programs from a nursery are what any program is: streams, exit code, command line, and no life without the tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.nursery import SEEDS, Fork, Nursery
from tests.processes import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a nursery forks, and renames its forks in /proc")
WAITS = "import sys, time; print('here', *sys.argv, flush=True); time.sleep(60)"


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery("import json") as nursery:
        yield nursery


def start(nursery: Nursery, folder: Path, code: str, *arguments: str, how: str = "-c") -> Fork:
    command = [sys.executable, how, code, *arguments]
    return nursery.start(command, folder / "out", folder / "err", {"WHERE": "here"})


def said(folder: Path) -> str:
    return (folder / "out").read_text() if (folder / "out").exists() else ""


def test_it_ends_as_any_program_does(nursery: Nursery, tmp_path: Path) -> None:
    code = "import atexit, os, sys; atexit.register(print, 'the end'); print(os.environ['WHERE']); sys.exit(3)"
    assert start(nursery, tmp_path, code).wait() == 3
    assert said(tmp_path) == "here\nthe end\n"
    assert start(nursery, tmp_path, "raise ValueError('no')").wait() == 1
    assert (tmp_path / "err").read_text().endswith("ValueError: no\n")
    assert start(nursery, tmp_path, "print(os)").wait() == 1, "it sees nothing of what was imported, by name"
    assert start(nursery, tmp_path, "json.tool", "--help", how="-m").wait() == 0
    assert said(tmp_path).startswith("here\nthe end\nusage: "), "appended"


def test_it_is_a_process_of_its_own(nursery: Nursery, tmp_path: Path) -> None:
    program = start(nursery, tmp_path, WAITS, "one", "two words")
    until(lambda: said(tmp_path), 10, "it says something")
    assert said(tmp_path) == "here -c one two words\n"
    process = psutil.Process(program.pid)
    assert [word for word in process.cmdline() if word] == [sys.executable, "-c", WAITS, "one", "two words"]
    assert os.getsid(program.pid) == program.pid
    assert program.poll() is None
    program.send_signal(signal.SIGTERM)
    assert program.wait() == program.poll() == -signal.SIGTERM
    program.kill()  # of one that has ended: nothing


def test_programs_do_not_outlive_their_nursery(tmp_path: Path) -> None:
    with Nursery("import json") as nursery:
        programs = [start(nursery, tmp_path, WAITS, str(number)) for number in range(2)]
        until(lambda: said(tmp_path).count("here") == 2, 10, "both are there")
    assert [program.wait() for program in programs] == [-signal.SIGKILL] * 2
    until(lambda: not any(psutil.pid_exists(program.pid) for program in programs), 10, "both are gone")


def test_some_programs_order_texts_in_other_ways_than_others(nursery: Nursery, tmp_path: Path) -> None:
    for _ in range(2 * SEEDS):
        assert start(nursery, tmp_path, "print(hash('a text'))").wait() == 0
    assert len(set(said(tmp_path).splitlines())) == SEEDS
