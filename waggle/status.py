"""`waggle status`: what a running peer or bootstrap says about itself."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from rich.text import Text

from swarm.errors import NetworkError, UsageError

TIMEOUT_SECONDS = 5.0


def show(http: str, as_json: bool) -> None:
    """Prints the status of the program that serves HTTP at `http` (a URL, or HOST:PORT).

    Raises UsageError when that is no address, NetworkError when nobody there answers as we do.
    """
    status = fetch(http)
    if as_json:
        print(json.dumps(status, indent=2))  # noqa: T201 - the output of the command
    else:
        Console().print(render(status, now=time.time()))


def fetch(http: str) -> dict[str, Any]:
    """The /status of the program at `http`, as it tells it. Raises as `show` does."""
    url = _status_url(http)
    try:
        # No proxy from the environment: it would be asked about its own loopback.
        with httpx.Client(trust_env=False, timeout=TIMEOUT_SECONDS) as client:
            response = client.get(url)
            response.raise_for_status()
            status = response.json()
    except httpx.InvalidURL:
        raise UsageError(f"--http: '{http}' is not a URL; expected e.g. http://127.0.0.1:8080") from None
    except httpx.HTTPStatusError as error:
        raise NetworkError(f"{url} answers {error.response.status_code}: is a waggle program there?") from None
    except httpx.HTTPError as error:
        raise NetworkError(
            f"nobody answers at {url} ({_reason(error)}): is the peer running, and is this its --http? "
            "A bootstrap serves on port 8081 by default"
        ) from None
    except ValueError:
        status = None
    if not isinstance(status, dict):
        raise NetworkError(f"what answers at {url} is not a waggle program: choose its address with --http")
    return status


def render(status: Mapping[str, Any], now: float) -> Table:
    """A table with one line per fact. now: seconds since the epoch, for ages."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in status.items():
        # Text, not markup: what peers say of themselves must not be able to format our terminal.
        table.add_row(name, Text(_readable(name, value, now)))
    return table


def _status_url(http: str) -> str:
    text = http.strip().rstrip("/")
    if text.lower() == "off":
        raise UsageError("--http: HTTP is off (WAGGLE_HTTP), so there is no status to show")
    if "://" not in text:
        text = f"http://{text}"
    return text if text.endswith("/status") else f"{text}/status"


def _reason(error: httpx.HTTPError) -> str:
    return "no answer in time" if isinstance(error, httpx.TimeoutException) else str(error).lower()


def _readable(name: str, value: Any, now: float) -> str:
    if value is None or value in ("", [], {}):
        return "-"
    if name.endswith("_timestamp") and isinstance(value, (int, float)):
        return f"{_age(now - value)} ago" if value > 0 else "-"
    if name.endswith("_seconds") and isinstance(value, (int, float)):
        return _age(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return "\n".join(item if isinstance(item, str) else json.dumps(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {_readable(str(key), item, now)}" for key, item in value.items())
    return str(value)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
