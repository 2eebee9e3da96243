"""The HTTP pages of a process: a real server, real requests."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from structlog.testing import capture_logs

from swarm.errors import ExitCode, NetworkError
from swarm.exposition import Exposition


class Program:
    """What an exposition looks at, to be changed by the tests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rounds = Counter("waggle_rounds", "Rounds.", ["outcome"], registry=self.registry)
        self.healthy = True
        self.ready = False
        self.status: dict[str, Any] = {"phase": "training"}
        self.exposition = Exposition(self.registry, lambda: self.status, lambda: self.healthy, lambda: self.ready)


@pytest.fixture
async def program() -> AsyncIterator[Program]:
    program = Program()
    await program.exposition.start("127.0.0.1", 0)
    yield program
    await program.exposition.stop()


@pytest.fixture
async def client(program: Program) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=program.exposition.url, trust_env=False, timeout=10) as client:
        yield client


async def test_metrics_as_text(program: Program, client: httpx.AsyncClient) -> None:
    program.rounds.labels("committed").inc(3)
    response = await client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    samples = {sample.name: sample.value for family in parse_text(response.text) for sample in family.samples}
    assert samples["waggle_rounds_total"] == 3


async def test_metrics_as_openmetrics(program: Program, client: httpx.AsyncClient) -> None:
    program.rounds.labels("committed").inc()
    response = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    (family,) = parse_openmetrics(response.text)
    assert family.name == "waggle_rounds"


@pytest.mark.parametrize("page, name", [("/healthz", "healthy"), ("/readyz", "ready")])
async def test_health_and_readiness(page: str, name: str, program: Program, client: httpx.AsyncClient) -> None:
    for value, code in ((True, 200), (False, 503)):
        setattr(program, name, value)
        response = await client.get(page)
        assert response.status_code == code
        assert response.json() == {name: value}


async def test_status_is_json_even_where_numbers_are_not(program: Program, client: httpx.AsyncClient) -> None:
    program.status = {"loss": math.nan, "peers": ({"rate": math.inf, "size": 2},), "digest": None}
    response = await client.get("/status")
    assert response.status_code == 200
    assert response.json() == {"loss": None, "peers": [{"rate": None, "size": 2}], "digest": None}


@pytest.mark.parametrize("page", ["/metrics", "/healthz", "/readyz", "/status"])
async def test_pages_can_only_be_read(page: str, client: httpx.AsyncClient) -> None:
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert (await client.request(method, page)).status_code == 405
    assert (await client.get(f"{page}/more")).status_code == 404


async def test_a_status_that_fails_fails_alone(program: Program, client: httpx.AsyncClient) -> None:
    program.status = {"oops": object()}
    assert (await client.get("/status")).status_code == 500
    assert (await client.get("/healthz")).status_code == 200


async def test_an_occupied_port_is_told_with_the_setting_to_change() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        exposition = Program().exposition
        with pytest.raises(NetworkError) as caught:
            await exposition.start("127.0.0.1", port)
        assert str(caught.value) == (
            f"http: 127.0.0.1:{port} is occupied: stop the other program; choose another address with "
            "--http HOST:PORT (port 0 picks a free one, off serves nothing)"
        )
        assert caught.value.exit_code is ExitCode.NETWORK
        await exposition.stop()


async def test_an_address_of_another_machine() -> None:
    with pytest.raises(NetworkError, match=r"http: 192\.0\.2\.1:0 is not an address of this machine"):
        await Program().exposition.start("192.0.2.1", 0)  # RFC 5737: nobody's


async def test_a_name_nobody_knows() -> None:
    with pytest.raises(NetworkError, match=r"http: nobody\.invalid:0 cannot be listened on"):
        await Program().exposition.start("nobody.invalid", 0)  # RFC 6761: never resolves


async def test_stop_waits_for_nobody(program: Program, client: httpx.AsyncClient) -> None:
    assert (await client.get("/healthz")).status_code == 200  # and the connection stays open
    host, port = program.exposition.url.removeprefix("http://").split(":")
    _, silent = await asyncio.open_connection(host, int(port))
    silent.write(b"GET /status HTTP/1.1\r\n")
    await silent.drain()
    before = time.monotonic()
    await program.exposition.stop()
    assert time.monotonic() - before < 2.0
    silent.close()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    await program.exposition.stop()


async def test_start_and_stop_in_one_breath() -> None:
    exposition = Program().exposition
    await exposition.start("localhost", 0)
    await asyncio.wait_for(exposition.stop(), 5)


async def test_ipv6() -> None:
    program = Program()
    try:
        await program.exposition.start("::1", 0)
    except NetworkError:
        pytest.skip("this machine has no IPv6 loopback")
    async with httpx.AsyncClient(trust_env=False) as client:
        assert program.exposition.url.startswith("http://[::1]:")
        assert (await client.get(f"{program.exposition.url}/healthz")).status_code == 200
    await program.exposition.stop()


async def test_the_signals_are_left_alone() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    program = Program()
    await program.exposition.start("127.0.0.1", 0)
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(f"{program.exposition.url}/healthz")  # so the server runs
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before
    await program.exposition.stop()


def test_it_serves_from_a_loop_in_another_thread() -> None:
    program = Program()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(program.exposition.start("127.0.0.1", 0), loop).result(10)
        with httpx.Client(trust_env=False) as client:
            assert client.get(f"{program.exposition.url}/status").json() == {"phase": "training"}
        asyncio.run_coroutine_threadsafe(program.exposition.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("host, warned", [("127.0.0.1", False), ("0.0.0.0", True)])
async def test_it_says_so_when_others_can_read(host: str, warned: bool) -> None:
    exposition = Program().exposition
    with capture_logs() as events:
        await exposition.start(host, 0)
        await exposition.stop()
    assert [event["log_level"] for event in events] == (["warning"] if warned else [])
    assert all("open to whoever reaches this address" in event["event"] for event in events)
