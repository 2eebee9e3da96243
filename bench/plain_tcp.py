"""How fast can plain TCP move what an all-reduce moves? The floor that these hosts have in practice.

    sudo .venv/bin/python -m bench.plain_tcp

Every host sends every other one what a reducer gets and gives, 2 / n of the vector in each direction, over one warm
connection, and waits for nothing: no mean, no verdict, no codec. Seconds from the first that starts to the last that
has everything. Writes bench/results/plain_tcp.json.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from statistics import median

from bench.calibrate import CalibrationError, checked
from bench.floors import floor_seconds
from bench.goodput import EVEN
from bench.internet import Internet, InternetError
from bench.tables import keep, one_line, say

PEERS, MEGABYTES, ROUNDS = 4, 40, 5
_PORT = 4730
_WHOLE_SECONDS = 60.0


def rounds(internet: Internet) -> list[float]:
    """Seconds of each round, after one that warms the connections up. Raises CalibrationError: a host is stuck."""
    addresses = [host.address for host in internet.hosts]
    flow = 2 * MEGABYTES * 10**6 // len(addresses)
    processes: list[subprocess.Popen[str]] = []
    stuck = threading.Timer((ROUNDS + 2) * _WHOLE_SECONDS, lambda: [process.kill() for process in processes])
    stuck.start()
    try:
        for host in range(len(addresses)):
            command = [sys.executable, "-m", "bench.plain_tcp", "--host", str(host), "--bytes", str(flow), *addresses]
            processes.append(
                internet.start(host, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
        found = []
        for process in processes:
            _answer(process)  # it is connected to all
        for _ in range(1 + ROUNDS):
            for process in processes:
                assert process.stdin is not None
                process.stdin.write("go\n")
            marks = [json.loads(_answer(process)) for process in processes]
            found.append(max(end for _, end in marks) - min(begin for begin, _ in marks))
        return found[1:]
    finally:
        stuck.cancel()
        for process in processes:
            process.kill()
            process.communicate()


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise CalibrationError("a host of plain TCP has ended")
    return line


# -- in the hosts --------------------------------------------------------------------------------------------


def serve(host: int, addresses: Sequence[str], flow_bytes: int) -> None:
    """One host: connects to all, and moves ``flow_bytes`` to and from each whenever a line comes."""
    with socket.create_server((addresses[host], _PORT), backlog=16) as listening:
        connections = [_dialled(address) for address in addresses[:host]]
        connections += [listening.accept()[0] for _ in addresses[host + 1 :]]
    print("ready", flush=True)
    for _ in sys.stdin:
        begin = time.monotonic()
        work = [threading.Thread(target=move, args=(one, flow_bytes)) for move in (_send, _take) for one in connections]
        for thread in work:
            thread.start()
        for thread in work:
            thread.join()
        print(json.dumps([begin, time.monotonic()]), flush=True)


def _dialled(address: str) -> socket.socket:
    """The other host may not listen yet."""
    end = time.monotonic() + _WHOLE_SECONDS
    while True:
        try:
            return socket.create_connection((address, _PORT))
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


def _send(connection: socket.socket, count: int) -> None:
    connection.sendall(bytes(count))


def _take(connection: socket.socket, count: int) -> None:
    buffer = bytearray(1 << 18)
    while count:
        got = connection.recv_into(buffer, min(count, len(buffer)))
        if not got:
            raise ConnectionError("the other host has hung up")
        count -= got


def main() -> int:
    """Measures, or is one of the hosts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("addresses", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--host", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--bytes", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.host is not None:
        serve(arguments.host, arguments.addresses, arguments.bytes)
        return 0
    with one_line("bench.plain_tcp", InternetError, CalibrationError), Internet([EVEN] * PEERS) as internet:
        calibration, size = checked(internet), MEGABYTES * 10**6
        seconds = rounds(internet)
        floor = floor_seconds(size, size, [(EVEN.up_mbit, EVEN.mbit)] * PEERS)
        say(
            "floor", round(floor, 2), "seconds", [round(one, 2) for one in seconds], "median", round(median(seconds), 2)
        )
        keep("plain_tcp", "even", {
            "calibration": calibration, "peers": PEERS, "megabytes": MEGABYTES, "floor_seconds": floor,
            "seconds": seconds,
        })  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
