"""Logs: one format for everybody's lines. Logging is global to a process, so each test has its own."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import textwrap

import pytest

PREAMBLE = """
import logging, threading, warnings
import structlog
from swarm import logs
log = structlog.get_logger("peer.daemon")
"""


def lines_of(code: str, **environment: str) -> list[str]:
    """The standard error of a process that runs `code`; its standard output must stay empty."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def objects_of(code: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines_of(code)]


def test_json_has_one_object_per_line() -> None:
    (first, second) = objects_of("""
        logs.configure("json")
        log.info("committed", outer_step=3, loss=float("nan"), path=__import__("pathlib").Path("a"))
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("failed")
    """)
    assert first.pop("timestamp")
    assert first == {
        "event": "committed",
        "level": "info",
        "logger": "peer.daemon",
        "outer_step": 3,
        "loss": "nan",
        "path": "a",
    }
    assert "ZeroDivisionError" in str(second["exception"])


def test_auto_is_json_when_nobody_watches_and_lines_on_a_terminal() -> None:
    code = 'logs.configure("auto"); log.info("committed", outer_step=3)'
    (event,) = objects_of(code)
    assert event["outer_step"] == 3
    ours, theirs = pty.openpty()
    try:
        subprocess.run([sys.executable, "-c", PREAMBLE + code], stderr=theirs, check=True, timeout=120)
        line = os.read(ours, 10_000).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "committed" in line
    assert "\x1b[" in line, "a terminal has colours"
    assert not line.startswith("{")


def test_console_lines_without_a_terminal_have_no_colours() -> None:
    (line,) = lines_of('logs.configure("console"); log.info("committed %d", 3, loss=float("inf"))')
    assert "[info     ] committed 3" in line
    assert "[peer.daemon] loss=inf" in line
    assert "\x1b" not in line


@pytest.mark.parametrize("library_first", [True, False])
def test_hivemind_and_transformers_speak_through_us(library_first: bool) -> None:
    imports = "import hivemind.utils.logging\nfrom transformers.utils import logging as theirs\ntheirs.get_logger()\n"
    configure = 'logs.configure("json", "debug", "warning")\n'
    use = """
log.debug("ours")
logging.getLogger("hivemind.p2p").warning("dialled %s", "nobody")
logging.getLogger("hivemind.p2p").info("chatter")
logging.getLogger("transformers.models").warning("weights")
logging.getLogger("transformers.models").info("chatter")
logging.getLogger("uvicorn.error").info("chatter")
logging.getLogger("uvicorn.error").warning("served")
logging.getLogger("multiaddr.transforms").debug("chatter")
"""
    code = imports + configure + use if library_first else configure + imports + "logs.tame()\n" + use
    said = [(event["logger"], event["level"], event["event"]) for event in objects_of(code)]
    assert said == [
        ("peer.daemon", "debug", "ours"),
        ("hivemind.p2p", "warning", "dialled nobody"),
        ("transformers.models", "warning", "weights"),
        ("uvicorn.error", "warning", "served"),
    ]


def test_hivemind_has_its_own_level() -> None:
    events = objects_of("""
        logs.configure("json", "warning", "debug")
        log.info("chatter")
        logging.getLogger("hivemind.dht").debug("found")
        logging.getLogger("elsewhere").info("chatter")
    """)
    assert [event["event"] for event in events] == ["found"]


def test_identity_is_on_every_line_of_every_thread_and_library() -> None:
    events = objects_of("""
        logs.configure("json")
        log.info("before")
        logs.bind(peer_id="12D3KooWabcdef", run_id="demo@0123456789abcdef")
        thread = threading.Thread(target=lambda: log.info("thread"))
        thread.start()
        thread.join()
        logging.getLogger("library").info("library")
        log.info("another", peer_id="Qm")
        logs.unbind()
        log.info("after")
    """)
    assert [event.get("peer_id") for event in events] == [
        None,
        "12D3KooWabcdef",
        "12D3KooWabcdef",
        "Qm",
        None,
    ]
    assert events[1]["run_id"] == "demo@0123456789abcdef"


def test_people_see_the_end_of_our_peer_id_and_the_whole_of_others() -> None:
    ours, theirs = lines_of("""
        logs.configure("console")
        logs.bind(peer_id="12D3KooWabcdef", run_id="demo@0123456789abcdef")
        log.info("ours")
        log.info("theirs", peer_id="12D3KooWuvwxyz")
    """)
    assert "peer=abcdef" in ours
    assert "demo@" not in ours
    assert "peer_id=12D3KooWuvwxyz" in theirs


def test_configure_again_replaces_and_does_not_add() -> None:
    lines = lines_of("""
        logs.configure("json")
        logs.configure("console", "warning")
        log.warning("once")
        log.info("chatter")
    """)
    assert len(lines) == 1
    assert "once" in lines[0]


def test_warnings_become_lines() -> None:
    (event,) = objects_of('logs.configure("json"); warnings.warn("old")')
    assert event["logger"] == "py.warnings"
    assert "UserWarning: old" in str(event["event"])


def test_an_unknown_level_is_refused() -> None:
    assert lines_of("""
        try:
            logs.configure("json", "loud")
        except ValueError as error:
            import sys
            print(error, file=sys.stderr)
    """) == ["unknown log level 'loud'"]
