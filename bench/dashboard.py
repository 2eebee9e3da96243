"""Draws docs/dashboard.png: the dashboard of a real swarm that a real Prometheus watched for some minutes.

    .venv/bin/python -m bench.dashboard --minutes 6

A bootstrap and three peers of the demo run on loopback. The third joins late; the second is killed half-way and comes
back with the same identity a little later: both are to be seen. Needs Prometheus (apt-get install prometheus).
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.picture import Window, draw
from deploy.queries import Prometheus, configure
from waggle.demo import MANIFEST, introduction
from waggle.processes import Child, Processes

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "dashboard.png"
NAMES = ("bootstrap", "peer-1", "peer-2", "peer-3")
SCRAPE_SECONDS = 5
QUIET = {"WAGGLE_LOG_FORMAT": "json", "WAGGLE_BOOTSTRAP_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1"}


class Swarm:
    """The programs, their addresses for Prometheus, and what happens to them."""

    def __init__(self, processes: Processes):
        self._processes = processes
        self._http = {name: _free_address() for name in NAMES}
        self._p2pd = {name: _free_address() for name in NAMES}
        bootstrap = self._start("bootstrap", "bootstrap", "--identity", str(processes.folder / "bootstrap.key"))
        self._maddr = introduction(processes, bootstrap, threading.Event())

    @property
    def targets(self) -> list[tuple[str, str, str]]:
        """(job, instance, HOST:PORT) of all."""
        jobs = [("bootstrap" if name == "bootstrap" else "peer", name, self._http[name]) for name in NAMES]
        return [*jobs, *(("p2pd", name, self._p2pd[name]) for name in NAMES)]

    def peer(self, name: str) -> Child:
        """Starts a peer; the same name again is the same identity."""
        data = ["--data-dir", str(self._processes.folder / name), "--data-shard", f"{NAMES.index(name) - 1}/3"]
        run = ["--run", str(MANIFEST), "--initial-peers", self._maddr, "--threads", "1"]
        return self._start(name, "peer", *run, *data)

    def _start(self, name: str, module: str, *flags: str) -> Child:
        loopback = ["--host-maddrs", "/ip4/127.0.0.1/tcp/0", "--no-nat-port-map"]
        shown = ["--http", self._http[name], "--p2pd-metrics", self._p2pd[name]]
        return self._processes.start(name, module, [*loopback, *shown, *flags], QUIET)


def _free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextmanager
def watching(folder: Path, swarm: Swarm) -> Iterator[Prometheus]:
    """A Prometheus with our configuration, until the context ends."""
    program = shutil.which("prometheus")
    if program is None:
        raise SystemExit("Prometheus is not installed: apt-get install prometheus")
    config, log = configure(folder / "prometheus", swarm.targets, SCRAPE_SECONDS), folder / "prometheus.log"
    command = [program, "--config.file", str(config), "--storage.tsdb.path", str(folder / "data")]
    with log.open("wb") as err:
        process = subprocess.Popen([*command, "--web.listen-address", "127.0.0.1:0"], stderr=err)
    try:
        while not (match := re.search(r'msg="Listening on" address=(\S+)', log.read_text(encoding="utf-8"))):
            if process.poll() is not None:
                raise SystemExit(f"Prometheus ended: {log.read_text(encoding='utf-8')}")
            time.sleep(0.1)
        yield Prometheus(f"http://{match[1]}")
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--output", type=Path, default=PICTURE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Processes(Path(folder)) as processes:
        swarm = Swarm(processes)
        swarm.peer("peer-1")
        killed = swarm.peer("peer-2")
        with watching(Path(folder), swarm) as prometheus:
            began = time.time()
            for share, event in (
                (0.2, lambda: swarm.peer("peer-3")),
                (0.5, killed.process.kill),
                (0.65, lambda: swarm.peer("peer-2")),
                (1.0, lambda: None),
            ):
                time.sleep(max(0.0, began + share * 60 * given.minutes - time.time()))
                event()
            draw(prometheus, Window(began, time.time(), SCRAPE_SECONDS), given.output)
            prometheus.close()


if __name__ == "__main__":
    main()
