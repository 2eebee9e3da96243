"""An internet on one machine: hosts in network namespaces, each behind a link with a rate each way, delay and loss.

    sudo .venv/bin/python -m bench.internet --hosts 4 --mbit 100 --up-mbit 20 --ms 12.5 --loss 0 -- COMMAND

COMMAND finds the hosts' namespaces in $HOSTS and their addresses in $ADDRESSES, both separated by commas, and runs
programs in them with ``ip netns exec``. While it runs, a link can be changed, or cut and mended:

    python -m bench.internet --tell $INTERNET '{"host": 2, "mbit": 10, "up_mbit": 10}'     (or "ms", "loss", "cut")

Needs root and /dev/net/tun, and no queueing discipline of the kernel: the router (bench/router.py) is a program.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from swarm import launcher

REPOSITORY = Path(__file__).resolve().parents[1]
MTU_BYTES = 9000
"""Larger than the internet's: fewer packets, for the two cores' sake; headers are 0.6 % of it."""
TCP = {"congestion_control": "cubic", "rmem": "4096 131072 6291456", "wmem": "4096 16384 4194304"}
"""Linux's own defaults, whatever this machine is set to."""
_TUNSETIFF, _TUNSETOFFLOAD = 0x400454CA, 0x400454D0
_IFF_TUN, _IFF_NO_PI, _IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
_CHECKSUM, _TCP_SEGMENTS = 1, 2
_START_SECONDS = 10.0
_LONGEST = 1 << 16
_NAME = re.compile(r"wg(\d+)-\d+")


class InternetError(Exception):
    """There can be no emulated internet here: one line that says why."""


@dataclass(frozen=True)
class LinkSpec:
    """A host's link: Mbit/s down and up, one-way delay in milliseconds, share of packets lost each way.

    Two hosts are twice the delay apart one way: 12.5 ms each make a round trip of 50 ms.
    """

    mbit: float = 100.0
    up_mbit: float = 100.0
    ms: float = 12.5
    loss: float = 0.0

    def __str__(self) -> str:
        rate = f"{self.mbit:g} Mbit/s"
        if self.up_mbit != self.mbit:
            rate = f"{self.up_mbit:g} Mbit/s up, {self.mbit:g} down"
        return f"{rate}, {4 * self.ms:g} ms" + (f", {100 * self.loss:g} % lost" if self.loss else "")


@dataclass(frozen=True)
class Host:
    """A network namespace and its address."""

    name: str
    address: str

    def command(self, command: Sequence[str]) -> list[str]:
        """``command``, to be run in this host; it dies with whoever starts it."""
        enter = [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), _ip()]
        return [*enter, "netns", "exec", self.name, *command]


def obstacle() -> str:
    """Why there can be no emulated internet here; empty when there can."""
    if os.geteuid() != 0:
        return "network namespaces need root: run it with sudo"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun: load the kernel module tun, or give the container that device"
    return "" if shutil.which("ip") else "there is no ip command: install iproute2"


def _ip() -> str:
    return shutil.which("ip") or "/usr/sbin/ip"


def _run(*arguments: str) -> str:
    done = subprocess.run([_ip(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InternetError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _tun(name: str) -> int:
    """A new TUN device; it lives as long as its descriptor."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI | _IFF_VNET_HDR))
    fcntl.ioctl(device, _TUNSETOFFLOAD, _CHECKSUM | _TCP_SEGMENTS)
    return device


class Internet:
    """Hosts and the router between them; a context that ends all that runs in the hosts when it is left.

    links: one for each host. Raises InternetError on entering.
    """

    def __init__(self, links: Sequence[LinkSpec]):
        self.links = list(links)
        self.hosts: list[Host] = []
        self.control = Path()
        self._folder = ""
        self._router: subprocess.Popen[bytes] | None = None
        self._caller: socket.socket | None = None

    def __enter__(self) -> Internet:
        why = obstacle()
        if why:
            raise InternetError(why)
        _sweep()
        _allow(TCP["congestion_control"])
        self._folder = tempfile.mkdtemp(prefix="waggle-internet-")
        self.control = Path(self._folder) / "control"
        devices: list[int] = []
        try:
            for index in range(len(self.links)):
                devices.append(self._add(index))
            self._start_router(devices)
        except BaseException:
            self.close()
            raise
        finally:
            for device in devices:
                os.close(device)
        return self

    def _add(self, index: int) -> int:
        host = Host(f"wg{os.getpid()}-{index}", f"10.77.0.{index + 1}")
        _run("netns", "add", host.name)
        self.hosts.append(host)
        device = _tun(host.name)
        _run("link", "set", host.name, "netns", host.name)
        inside = ("-n", host.name)
        _run(*inside, "addr", "add", f"{host.address}/24", "dev", host.name)
        _run(*inside, "link", "set", host.name, "mtu", str(MTU_BYTES), "up")
        _run(*inside, "link", "set", "lo", "up")
        for name, value in TCP.items():
            _run("netns", "exec", host.name, "sh", "-c", f"echo {value} > /proc/sys/net/ipv4/tcp_{name}")
        return device

    def _start_router(self, devices: Sequence[int]) -> None:
        links = [(link.up_mbit, link.mbit, link.ms, link.loss) for link in self.links]
        command = [sys.executable, "-m", "bench.router", str(self.control), json.dumps(devices), json.dumps(links)]
        self._router = subprocess.Popen(
            [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), *command],
            pass_fds=devices, cwd=REPOSITORY, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while self._caller is None:
            try:
                self._caller = call(self.control)
            except OSError as error:
                if self._router.poll() is not None or time.monotonic() > deadline:
                    raise InternetError(f"the router did not start: {error}") from error
                time.sleep(0.01)  # it has no other way to say that it is there

    # -- while it runs ---------------------------------------------------------------------------------------

    def change(self, host: int, **changes: float) -> None:
        """``mbit``, ``up_mbit``, ``ms``, ``loss`` or ``cut`` of a host's link, from now on."""
        self._tell({"host": host, **changes})

    def counts(self) -> list[dict[str, int]]:
        """``sent_bytes``, ``received_bytes`` and ``dropped`` packets of each host, so far."""
        return list(self._tell({})["links"])

    @property
    def cpu_seconds(self) -> float:
        """What the router has used, the kernel's work for it included."""
        return float(self._tell({})["cpu_seconds"])

    def _tell(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._caller is not None
        return tell(self._caller, message)

    def start(self, host: int, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a program in a host; ``options`` are those of Popen."""
        return subprocess.Popen(self.hosts[host].command(command), **{"cwd": REPOSITORY, **options})

    def clear(self) -> None:
        """Kills what runs in the hosts."""
        for host in self.hosts:
            _clear(host.name)

    # -- the end ---------------------------------------------------------------------------------------------

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kills what still runs in the hosts, and takes them down."""
        if self._caller is not None:
            self._caller.close()
            self._caller = None
        if self._router is not None:
            self._router.kill()
            self._router.wait()
            self._router = None
        for host in self.hosts:
            _end(host.name)
        self.hosts = []
        shutil.rmtree(self._folder, ignore_errors=True)


def _allow(congestion_control: str) -> None:
    """Namespaces may choose only what the machine allows everybody; cubic is missing where another is its default."""
    setting = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
    allowed = setting.read_text().split()
    if congestion_control not in allowed:
        setting.write_text(" ".join([*allowed, congestion_control]))


def _clear(name: str) -> None:
    for pid in _run("netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def _end(name: str) -> None:
    """Kills what runs in a namespace and removes it."""
    _clear(name)
    _run("netns", "del", name)


def _sweep() -> None:
    """Removes what an internet left whose program was killed."""
    for line in _run("netns", "list").splitlines():
        match = _NAME.match(line)
        if match is not None and not Path(f"/proc/{match[1]}").exists():
            _end(match[0])


def call(control: Path) -> socket.socket:
    """A connection to the router. Raises OSError."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    caller.settimeout(_START_SECONDS)
    try:
        caller.connect(str(control))
    except OSError:
        caller.close()
        raise
    return caller


def tell(caller: socket.socket, message: Mapping[str, Any]) -> dict[str, Any]:
    """One question to the router and its answer. Raises InternetError."""
    try:
        caller.send(json.dumps(message).encode())
        answer: dict[str, Any] = json.loads(caller.recv(_LONGEST))
    except (OSError, ValueError) as error:
        raise InternetError(f"the router does not answer: {error!r}") from error
    if "error" in answer:
        raise InternetError(f"the router does not know {dict(message)}: {answer['error']}")
    return answer


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--hosts", type=int, default=4)
    made.add_argument("--mbit", type=float, default=100.0, help="down, and up unless --up-mbit says otherwise")
    made.add_argument("--up-mbit", type=float)
    made.add_argument("--ms", type=float, default=12.5, help="one-way delay of each host's link")
    made.add_argument("--loss", type=float, default=0.0, help="share of packets lost on each link, each way")
    made.add_argument("--tell", nargs=2, metavar=("INTERNET", "JSON"), help="change a link of one that runs")
    made.add_argument("command", nargs=argparse.REMAINDER)
    return made


def main() -> int:
    """Runs a command in an emulated internet; its exit code."""
    arguments = parser().parse_args()
    try:
        if arguments.tell:
            with call(Path(arguments.tell[0])) as caller:
                print(json.dumps(tell(caller, json.loads(arguments.tell[1]))))
            return 0
        command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
        if not command:
            parser().error("give a command after --")
        link = LinkSpec(arguments.mbit, arguments.up_mbit or arguments.mbit, arguments.ms, arguments.loss)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with Internet([link] * arguments.hosts) as internet:
            code = _run_command(internet, command)
            for host, counts in zip(internet.hosts, internet.counts(), strict=True):
                print(f"{host.name}: {counts}", file=sys.stderr)
            print(f"router: {internet.cpu_seconds:.2f} CPU seconds", file=sys.stderr)
            return code
    except (InternetError, OSError, ValueError) as error:
        print(f"bench.internet: {error}", file=sys.stderr)
        return 1


def _run_command(internet: Internet, command: Sequence[str]) -> int:
    found = {
        "HOSTS": ",".join(host.name for host in internet.hosts),
        "ADDRESSES": ",".join(host.address for host in internet.hosts),
        "INTERNET": str(internet.control),
    }
    with subprocess.Popen(command, env={**os.environ, **found}, start_new_session=True) as child:
        try:
            return child.wait()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
