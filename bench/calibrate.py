"""Measures an emulated link with plain TCP before anything is measured on it.

    sudo .venv/bin/python -m bench.calibrate --mbit 100 --ms 12.5

Two hosts send each other zeros through a few ordinary sockets: goodput each way, both ways at once, and the round trip
of a small message. What is more than 5 % off the link's own figures (10 % both ways at once, where acknowledgements
wait behind data) is said, and no table is made on such a link. Where hosts have links of several kinds, one host of
each kind is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.internet import Internet, InternetError, LinkSpec
from bench.tables import one_line

TOLERANCE = 0.05
BOTH_TIMES = 2.0
"""How much more both ways at once may be off."""
TRIES = 2
SECONDS = 4.0
"""Of each stream, after ``WARM_SECONDS`` in which TCP finds the rate."""
WARM_SECONDS = 3.0
_PINGS = 20
_PORT = 5077
_WHOLE_SECONDS = 40.0
STREAMS = 4
"""At once: one alone cannot fill both ways, as its acknowledgements queue behind the other way's data."""
_KINDS = ("forth", "back", "both")
_BLOCK = bytes(1 << 16)


class CalibrationError(Exception):
    """The link is not what it is said to be."""


@dataclass(frozen=True)
class Calibration:
    """Between two hosts: Mbit/s of payload from the first to the second, back, both at once, and the round trip."""

    forth_mbit: float
    back_mbit: float
    both_forth_mbit: float
    both_back_mbit: float
    round_trip_ms: float

    def faults(self, one: LinkSpec, other: LinkSpec, tolerance: float = TOLERANCE) -> list[str]:
        """What is further than ``tolerance`` from what the two links should give."""
        forth, back = min(one.up_mbit, other.mbit), min(other.up_mbit, one.mbit)
        wanted = {
            "forth_mbit": forth, "both_forth_mbit": forth, "back_mbit": back, "both_back_mbit": back,
            "round_trip_ms": 2 * (one.ms + other.ms),
        }  # fmt: skip
        measured = asdict(self)
        return [
            f"{name} is {measured[name]:.1f} and should be {value:g}"
            for name, value in wanted.items()
            if value and abs(measured[name] / value - 1) > tolerance * (BOTH_TIMES if "both" in name else 1.0)
        ]

    def __str__(self) -> str:
        return (
            f"{self.forth_mbit:.1f} and {self.back_mbit:.1f} Mbit/s one at a time, {self.both_forth_mbit:.1f} and "
            f"{self.both_back_mbit:.1f} both at once, round trip {self.round_trip_ms:.1f} ms"
        )


def calibrate(internet: Internet, one: int = 0, other: int = 1) -> Calibration:
    """Measures between two hosts, in some 20 seconds. Raises CalibrationError when there is no traffic at all."""

    def ask(host: int, *arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench.calibrate", *arguments]
        return internet.start(host, command, stdout=subprocess.PIPE, text=True)

    server = ask(other, "--serve", internet.hosts[other].address)
    assert server.stdout is not None
    server.stdout.readline()  # it listens
    client = ask(one, "--connect", internet.hosts[other].address)
    try:
        longest = _WHOLE_SECONDS + len(_KINDS) * (SECONDS + WARM_SECONDS)
        ours, theirs = (json.loads(process.communicate(timeout=longest)[0]) for process in (client, server))
        return Calibration(theirs["forth"], ours["back"], theirs["both"], ours["both"], ours["round_trip_ms"])
    except (subprocess.TimeoutExpired, ValueError) as error:
        raise CalibrationError(f"a stall between two hosts ({internet.counts()}): {str(error)[-100:]}") from error
    finally:
        for process in (client, server):
            process.kill()
            process.communicate()


def pairs(links: Sequence[LinkSpec]) -> list[tuple[int, int]]:
    """For each kind of link the first host that has it, and the host to measure it with: the one with the widest link.

    Between two hosts the narrower link shows, so that a host with a wide one hides nothing of the other's.
    """
    firsts = [links.index(link) for link in dict.fromkeys(links)]
    return [
        (one, max((host for host in range(len(links)) if host != one), key=lambda host: _narrowest(links[host])))
        for one in firsts
    ]


def _narrowest(link: LinkSpec) -> float:
    return min(link.up_mbit, link.mbit)


def checked(internet: Internet, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """The calibration of the first host's link, for a table's JSON; "others": that of each other kind of link.

    Raises CalibrationError: a link that is off, twice. Twice, since another program that takes the cores for a moment
    is no fault of the link.
    """
    first, *others = [_checked(internet, one, other, tolerance) for one, other in pairs(internet.links)]
    return {**first, "others": others}


def _checked(internet: Internet, one: int, other: int, tolerance: float) -> dict[str, Any]:
    link = internet.links[one]
    faults: list[str] = []
    for _ in range(TRIES):
        try:
            found = calibrate(internet, one, other)
        except CalibrationError as error:
            faults = [str(error)]
            print(f"not calibrated: {link}: {error}", file=sys.stderr, flush=True)
            continue
        faults = found.faults(link, internet.links[other], tolerance)
        print(f"calibrated: {link}: {found}" + "".join(f"; {fault}" for fault in faults), file=sys.stderr, flush=True)
        if not faults:
            return {**asdict(found), "link": str(link)}
    raise CalibrationError(f"the link of host {one} ({link}) is off: " + "; ".join(faults))


# -- in the hosts --------------------------------------------------------------------------------------------


def _send(connections: Sequence[socket.socket]) -> None:
    """Zeros over all of them at once, until the time is over."""

    def one(connection: socket.socket) -> None:
        end = time.monotonic() + WARM_SECONDS + SECONDS
        with contextlib.suppress(OSError):  # the other end has hung up
            while time.monotonic() < end:
                connection.sendall(_BLOCK)
            connection.shutdown(socket.SHUT_WR)

    _each(one, connections)


def _receive(connections: Sequence[socket.socket]) -> float:
    """Mbit/s over all of them together, once they are warm; reads to their end."""
    first = time.monotonic() + WARM_SECONDS
    counts = [0] * len(connections)

    def one(connection: socket.socket) -> None:
        buffer, index = bytearray(1 << 18), connections.index(connection)
        while size := connection.recv_into(buffer):
            if first <= time.monotonic() < first + SECONDS:
                counts[index] += size

    _each(one, connections)
    return sum(counts) * 8e-6 / SECONDS


def _each(work: Callable[[socket.socket], None], connections: Sequence[socket.socket]) -> None:
    threads = [threading.Thread(target=work, args=(connection,)) for connection in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _exchange(kind: str, connections: Sequence[socket.socket], serving: bool) -> float:
    """This side's part in one measurement; what it received, in Mbit/s."""
    sends = kind == "both" or (kind == "back") == serving
    receives = kind == "both" or not sends
    sender = threading.Thread(target=_send, args=(connections,))
    if sends:
        sender.start()
    rate = _receive(connections) if receives else 0.0
    if sends:
        sender.join()
    return rate


def serve(address: str) -> None:
    """Answers one ``connect``; prints that it listens, and then its own rates."""
    with socket.create_server((address, _PORT), backlog=16) as listening:
        print("listening", flush=True)
        connection, _ = listening.accept()
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while word := connection.recv(64):
                connection.sendall(word)
        rates = {}
        for kind in _KINDS:
            connections = [listening.accept()[0] for _ in range(STREAMS)]
            rates[kind] = _exchange(kind, connections, serving=True)
            for connection in connections:
                connection.close()
        print(json.dumps(rates), flush=True)


def connect(address: str) -> dict[str, float]:
    """The other side of ``serve``: its rates, and the round trip in milliseconds."""
    with socket.create_connection((address, _PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = sorted(_ping(connection) for _ in range(_PINGS))
    rates = {}
    for kind in _KINDS:
        connections = [socket.create_connection((address, _PORT)) for _ in range(STREAMS)]
        rates[kind] = _exchange(kind, connections, serving=False)
        for connection in connections:
            connection.close()
    return {**rates, "round_trip_ms": 1000 * trips[_PINGS // 2]}


def _ping(connection: socket.socket) -> float:
    began = time.monotonic()
    connection.sendall(b"?")
    connection.recv(1)
    return time.monotonic() - began


def main() -> int:
    """Calibrates a link and says whether it is what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbit", type=float, default=100.0)
    parser.add_argument("--up-mbit", type=float)
    parser.add_argument("--ms", type=float, default=12.5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--connect", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
    elif arguments.connect:
        print(json.dumps(connect(arguments.connect)))
    else:
        link = LinkSpec(arguments.mbit, arguments.up_mbit or arguments.mbit, arguments.ms)
        with one_line("bench.calibrate", InternetError, CalibrationError), Internet([link, link]) as internet:
            began = internet.cpu_seconds
            print(json.dumps(checked(internet), indent=1))
            print(f"router: {internet.cpu_seconds - began:.2f} CPU seconds", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
