"""Shutdown: real processes, real signals."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from swarm.lifecycle import Shutdown

PREAMBLE = """
import asyncio, hashlib, os, subprocess, sys, threading
from swarm import logs
from swarm.lifecycle import Shutdown
logs.configure("console")
shutdown = Shutdown()
shutdown.install()
def ready(*words):
    print("ready", *words, flush=True)
"""
BUSY = 'hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)'  # minutes of one C call that releases the GIL
DEADLINE_SECONDS = 30


@contextmanager
def program(code: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process running `code`, once it said that it is ready, and the words it said it with."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        words = process.stdout.readline().split()
        assert words[:1] == ["ready"], process.communicate()
        yield process, words[1:]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_wakes_the_main_thread_with_its_reason(signum: signal.Signals) -> None:
    code = """
        ready()
        assert shutdown.wait(30)
        assert shutdown.requested
        print(shutdown.reason)
    """
    with program(code) as (process, _):
        process.send_signal(signum)
        out, err = process.communicate(timeout=DEADLINE_SECONDS)
    assert out.strip() == signum.name
    assert process.returncode == 0
    assert f"reason={signum.name}" in err
    assert "shutting down" in err


def test_a_signal_ends_an_asyncio_program() -> None:
    code = """
        async def main():
            event = asyncio.Event()
            loop = asyncio.get_running_loop()
            shutdown.on_request(lambda: loop.call_soon_threadsafe(event.set))
            ready()
            await asyncio.wait_for(event.wait(), 30)
            print("left:", shutdown.reason)
        asyncio.run(main())
    """
    with program(code) as (process, _):
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    assert out.strip() == "left: SIGTERM"
    assert process.returncode == 0


def test_a_signal_is_heard_while_the_main_thread_computes() -> None:
    code = f"""
        shutdown.on_request(lambda: print("heard", flush=True))
        ready()
        {BUSY}
    """
    with program(code) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "heard"
        assert process.poll() is None


@pytest.mark.parametrize("first, second", [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGINT", "SIGTERM")])
def test_a_second_signal_kills_the_children_and_ends_at_once(first: str, second: str) -> None:
    code = f"""
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        shutdown.on_force(lambda: 1 / 0)
        shutdown.on_force(child.kill)
        shutdown.on_request(lambda: print("heard", flush=True))
        ready(child.pid)
        {BUSY}
    """
    with program(code) as (process, (pid,)):
        child = psutil.Process(int(pid))
        process.send_signal(signal.Signals[first])
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "heard"
        process.send_signal(signal.Signals[second])
        _, err = process.communicate(timeout=DEADLINE_SECONDS)
        assert process.returncode == 128 + signal.Signals[second]
        assert "leaving at once" in err
        _, alive = psutil.wait_procs([child], timeout=DEADLINE_SECONDS)
        assert not alive, "the child outlived its parent"


def test_the_first_signal_does_not_force_a_program_that_leaves_by_itself() -> None:
    code = """
        shutdown.on_request(lambda: None)
        shutdown.request("max_outer_steps")
        ready()
        sys.stdin.readline()
        print(shutdown.reason)
    """
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)],
        stdin=reader,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(reader)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        process.send_signal(signal.SIGTERM)
        os.write(writer, b"\n")
        out, _ = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        os.close(writer)
        process.kill()
        process.communicate()
    assert out.strip() == "max_outer_steps"
    assert process.returncode == 0


def test_the_first_reason_stays_and_everybody_is_told_once() -> None:
    shutdown = Shutdown()
    told: list[str] = []
    shutdown.on_request(lambda: told.append("early"))
    shutdown.on_request(lambda: 1 / 0)  # logged, and the others are told all the same
    shutdown.on_request(lambda: told.append("second"))
    assert not shutdown.requested
    assert shutdown.reason == ""
    assert not shutdown.wait(0)
    shutdown.request("the last outer step")
    shutdown.request("something else")
    shutdown.on_request(lambda: told.append("late"))
    assert shutdown.requested
    assert shutdown.reason == "the last outer step"
    assert told == ["early", "second", "late"]


async def test_asyncio_is_told_from_another_thread() -> None:
    shutdown = Shutdown()
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    shutdown.on_request(lambda: loop.call_soon_threadsafe(event.set))
    thread = threading.Thread(target=shutdown.request, args=("asked",))
    thread.start()
    await asyncio.wait_for(event.wait(), DEADLINE_SECONDS)
    thread.join()


def test_uninstall_gives_the_signals_back() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)]
    threads = set(threading.enumerate())
    shutdown = Shutdown()
    shutdown.install()
    (watcher,) = set(threading.enumerate()) - threads
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] != before
    os.kill(os.getpid(), signal.SIGTERM)
    assert shutdown.wait(DEADLINE_SECONDS)
    shutdown.uninstall()
    shutdown.uninstall()
    assert [signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGINT)] == before
    watcher.join(DEADLINE_SECONDS)
    assert not watcher.is_alive()


def test_only_the_main_thread_can_take_the_signals() -> None:
    said: list[str] = []

    def install() -> None:
        try:
            Shutdown().install()
        except RuntimeError as error:
            said.append(str(error))

    thread = threading.Thread(target=install)
    thread.start()
    thread.join()
    assert said == ["signals can be taken over in the main thread only"]
