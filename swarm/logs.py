"""One stream of log lines on standard error: ours, hivemind's, uvicorn's and transformers' look the same.

Everything passes through the standard library's root logger, and structlog renders it: readable lines for
people, one JSON object per line for machines. Libraries that bring a handler of their own lose it, not their
voice. Modules log through ``structlog.get_logger(__name__)``.
"""

from __future__ import annotations

import logging
import math
import sys

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

# These install their own handler and stop propagating when they are imported
# (hivemind/utils/logging.py, transformers/utils/logging.py; huggingface_hub and datasets likewise).
_SELF_WILLED = ("hivemind", "transformers", "huggingface_hub", "datasets")

# Chatter that no setting of ours is about: below this level a message says nothing to whoever runs a peer.
_LEAST = {
    "asyncio": logging.INFO,
    "datasets": logging.WARNING,
    "filelock": logging.WARNING,
    "fsspec": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "matplotlib": logging.WARNING,
    "multiaddr": logging.INFO,
    "transformers": logging.WARNING,
    "urllib3": logging.WARNING,
    "uvicorn": logging.WARNING,
}

# What every line of this process carries. Not a context variable: those do not reach other threads.
_identity: dict[str, str] = {}

_hivemind_level = logging.WARNING

_OURS = "waggle"


def configure(log_format: str = "auto", level: str = "info", hivemind_level: str = "warning") -> None:
    """Sends every log line of this process to standard error; may be called again to change its mind.

    log_format: "console", "json", or "auto" (console when standard error is a terminal). level: of
    everything, except that hivemind has its own and other libraries stay above their chatter.
    """
    global _hivemind_level  # noqa: PLW0603 - as wide as logging itself, which is global too
    _hivemind_level = _number(hivemind_level)
    handler = logging.StreamHandler(sys.stderr)
    handler.set_name(_OURS)
    terminal = sys.stderr.isatty()
    as_json = log_format == "json" or (log_format == "auto" and not terminal)
    handler.setFormatter(_formatter(as_json=as_json, colours=terminal))
    root = logging.getLogger()
    for old in list(root.handlers):
        if old.get_name() == _OURS:  # a test runner or an embedding program keeps what it installed
            root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(_number(level))
    for name, least in _LEAST.items():
        logging.getLogger(name).setLevel(max(least, _number(level)))
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.contextvars.merge_contextvars,
            *_origin(),
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.processors.StackInfoRenderer(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    tame()


def tame() -> None:
    """Takes from libraries the handlers that they installed when imported; hivemind gets its own level.

    Call it after importing hivemind or transformers: what is not imported yet cannot be tamed yet.
    """
    for name in _SELF_WILLED:
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(max(_LEAST.get(name, logging.NOTSET), logging.getLogger().level))
    logging.getLogger("hivemind").setLevel(_hivemind_level)


def bind(**identity: str) -> None:
    """Adds names (peer_id, run_id) to every later line of this process, from any thread or library."""
    _identity.update(identity)


def unbind() -> None:
    """Forgets what `bind` added."""
    _identity.clear()


def _number(level: str) -> int:
    number = logging.getLevelName(level.upper())
    if not isinstance(number, int):
        raise ValueError(f"unknown log level '{level}'")
    return number


def _formatter(as_json: bool, colours: bool) -> structlog.stdlib.ProcessorFormatter:
    """Renders our events and other libraries' records alike."""
    render: list[Processor]
    if as_json:
        render = [
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            _finite,
            structlog.processors.JSONRenderer(default=str),
        ]
    else:
        plain = structlog.dev.plain_traceback  # the default draws frames as wide as the terminal
        render = [
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            _shorten,
            structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain),
        ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, *_origin()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _add_identity, *render],
    )


def _origin() -> list[Processor]:
    return [structlog.stdlib.add_logger_name, structlog.stdlib.add_log_level]


def _add_identity(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    for name, value in _identity.items():
        event.setdefault(name, value)
    return event


def _shorten(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """For people: of what is the same on every line, only the end of our peer id."""
    if event.get("run_id") == _identity.get("run_id"):
        event.pop("run_id", None)
    if "peer_id" in event and event["peer_id"] == _identity.get("peer_id"):
        event["peer"] = event.pop("peer_id")[-6:]
    return event


def _finite(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """JSON has no NaN and no infinity; Python would write them all the same."""
    for name, value in event.items():
        if isinstance(value, float) and not math.isfinite(value):
            event[name] = str(value)
    return event
