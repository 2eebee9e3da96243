"""The router of the emulated internet (bench/internet.py): one process that moves packets between TUN devices.

    python -m bench.router SOCKET FILE_DESCRIPTORS LINKS

A packet waits for its sender's uplink, is on its way for both hosts' delays, and waits for its receiver's downlink.
Rates are kept in virtual time, so that a router that wakes up late delivers late but not slower. Needs nothing but the
standard library: it shares the cores with the peers that are measured, and starts at once.
"""

from __future__ import annotations

import errno
import heapq
import json
import os
import random
import resource
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

MBIT = 125_000
"""Bytes per second."""
QUEUE_SECONDS = 0.2
"""What a modem holds before it drops: tail drop, in seconds of its rate."""
NETWORK = bytes((10, 77, 0))
_BATCH = 64  # packets of one host before the next one's turn
_LONGEST = 1 << 16
_SOON_SECONDS = 0.0005
_IDLE_SECONDS = 1.0
# virtio_net_hdr before each packet: with it, the kernel hands over up to 64 KiB of a TCP stream at once.
_OFFLOAD = struct.Struct("=BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
_SOURCE, _DESTINATION = _OFFLOAD.size + 12, _OFFLOAD.size + 16


@dataclass
class Wire:
    """One direction of a link: a queue in front of a line with a rate in bytes per second."""

    rate: float
    free_at: float = 0.0

    def enter(self, now: float, size_bytes: int) -> tuple[float, float] | None:
        """When the first byte enters the line and when the last one has left it; None when the queue is full."""
        begin = max(now, self.free_at)
        if begin - now > QUEUE_SECONDS:
            return None
        self.free_at = begin + size_bytes / self.rate
        return begin, self.free_at


@dataclass
class Link:
    """A host's link. delay_seconds: one way; loss: share of packets, each way. Counts are of IP bytes."""

    up: Wire
    down: Wire
    delay_seconds: float
    loss: float = 0.0
    cut: bool = False
    sent_bytes: int = 0
    received_bytes: int = 0
    dropped: int = 0

    @classmethod
    def of(cls, up_mbit: float, mbit: float, ms: float, loss: float) -> Link:
        """From the units in which people speak of links."""
        return cls(Wire(up_mbit * MBIT), Wire(mbit * MBIT), ms / 1000, loss)

    def change(self, field_name: str, value: float) -> None:
        """``up_mbit``, ``mbit`` (down), ``ms``, ``loss`` or ``cut``. Raises KeyError for anything else."""
        if field_name in ("up_mbit", "mbit"):
            (self.up if field_name == "up_mbit" else self.down).rate = value * MBIT
        elif field_name == "ms":
            self.delay_seconds = value / 1000
        elif field_name == "loss":
            self.loss = value
        elif field_name == "cut":
            self.cut = bool(value)
        else:
            raise KeyError(field_name)

    def counts(self) -> dict[str, int]:
        """What went over it so far."""
        return {"sent_bytes": self.sent_bytes, "received_bytes": self.received_bytes, "dropped": self.dropped}


def wire_bytes(packet: bytes) -> int:
    """IP bytes of a packet as a real line would carry it: cut into segments, each with its header."""
    kind, _, segment_bytes = (int(value) for value in _OFFLOAD.unpack_from(packet)[1:4])
    size = len(packet) - _OFFLOAD.size
    if kind == 0 or not segment_bytes:
        return size
    tcp = _OFFLOAD.size + 4 * (packet[_OFFLOAD.size] & 15)
    header_bytes = tcp - _OFFLOAD.size + 4 * (packet[tcp + 12] >> 4)  # hdr_len may count payload, too
    segments = -(-(size - header_bytes) // segment_bytes)
    return size + (max(1, segments) - 1) * header_bytes


@dataclass
class Paths:
    """All links and the packets between them. No I/O: time is passed in, packets go out through ``deliver``."""

    links: Sequence[Link]
    deliver: Callable[[int, bytes], bool]
    chance: random.Random = field(default_factory=random.Random)
    _flying: list[tuple[float, int, int, bytes, bool]] = field(default_factory=list)
    _count: int = 0

    def send(self, source: int, packet: bytes, now: float) -> None:
        """A packet that host ``source`` sends at ``now``."""
        if len(packet) <= _DESTINATION + 3 or packet[_DESTINATION : _DESTINATION + 3] != NETWORK:
            return  # no IPv4, or to nobody here
        destination = packet[_DESTINATION + 3] - 1
        if not 0 <= destination < len(self.links):
            return
        ours, theirs = self.links[source], self.links[destination]
        loss = ours.loss + theirs.loss
        if ours.cut or theirs.cut or (loss and self.chance.random() < loss):
            ours.dropped += 1
            return
        size = wire_bytes(packet)
        times = ours.up.enter(now, size)
        if times is None:
            ours.dropped += 1
            return
        ours.sent_bytes += size
        self._push(times[1] + ours.delay_seconds + theirs.delay_seconds, destination, packet, queued=False)

    def _push(self, when: float, destination: int, packet: bytes, *, queued: bool) -> None:
        self._count += 1  # keeps packets of the same moment in order
        heapq.heappush(self._flying, (when, self._count, destination, packet, queued))

    def advance(self, now: float) -> float | None:
        """Delivers all that is due; seconds until the next packet is, None when there is none."""
        while self._flying and self._flying[0][0] <= now:
            when, _, destination, packet, queued = heapq.heappop(self._flying)
            link = self.links[destination]
            if not queued:
                times = link.down.enter(when, wire_bytes(packet))
                if times is None:
                    link.dropped += 1
                    continue
                if times[0] > when + _SOON_SECONDS:
                    self._push(times[0], destination, packet, queued=True)
                    continue
            if self.deliver(destination, packet):
                link.received_bytes += wire_bytes(packet)
            else:
                link.dropped += 1
        return self._flying[0][0] - now if self._flying else None


class Router:
    """Reads and writes the TUN devices, and answers what it is asked over ``control``."""

    def __init__(self, devices: Sequence[int], links: Sequence[Link], control: socket.socket):
        self._devices = devices
        self._paths = Paths(links, self._write)
        self._control = control
        self._callers: dict[int, socket.socket] = {}
        self._hosts = {device: host for host, device in enumerate(devices)}

    def run(self) -> None:
        """Until it is killed."""
        wait: float | None = None
        while True:
            sources = [*self._devices, self._control.fileno(), *self._callers]
            wait = _IDLE_SECONDS if wait is None else max(0.0, wait)
            for ready in select.select(sources, (), (), wait)[0]:  # epoll would round up to whole milliseconds
                if ready in self._hosts:
                    self._read(ready)
                elif ready in self._callers:
                    self._answer(self._callers[ready])
                else:
                    caller, _ = self._control.accept()
                    self._callers[caller.fileno()] = caller
            wait = self._paths.advance(time.monotonic())

    def _read(self, device: int) -> None:
        host = self._hosts[device]
        now = time.monotonic()
        for _ in range(_BATCH):
            try:
                packet = os.read(device, _LONGEST + _OFFLOAD.size)
            except BlockingIOError:
                return
            self._paths.send(host, packet, now)

    def _write(self, host: int, packet: bytes) -> bool:
        try:
            os.write(self._devices[host], packet)
        except BlockingIOError:  # its queue is full
            return False
        except OSError as error:
            if error.errno in (errno.EIO, errno.EBADFD):  # the host is being taken down
                return False
            print(
                f"the kernel refuses a packet: {error}: {packet[:64].hex()} {len(packet)}", file=sys.stderr, flush=True
            )
            return False
        return True

    def _answer(self, caller: socket.socket) -> None:
        question = caller.recv(_LONGEST)
        if not question:
            del self._callers[caller.fileno()]
            caller.close()
            return
        caller.send(json.dumps(self._change(json.loads(question))).encode())

    def _change(self, question: dict[str, Any]) -> dict[str, Any]:
        """``{"host": 1, "mbit": 10}`` changes a link; every answer has the counts of all of them."""
        links = self._paths.links
        host = question.pop("host", None)
        try:
            for name, value in question.items():
                links[int(host)].change(name, float(value))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return {"error": repr(error)}
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {"links": [link.counts() for link in links], "cpu_seconds": used.ru_utime + used.ru_stime}


def main() -> None:
    """Routes between the TUN devices whose descriptors it was started with."""
    path, devices, links = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control.bind(path)
    control.listen()
    os.nice(-10)  # a router that waits for a core is no link of that rate
    Router(devices, [Link.of(*link) for link in links], control).run()


if __name__ == "__main__":
    main()
