"""What `waggle doctor` looks at in the network: who answers, what time it is there, who can reach us."""

from __future__ import annotations

import ipaddress
import re
import socket
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from swarm.clock import CLOCK_TOLERANCE_SECONDS, Clock
from swarm.errors import ClockError, ExitCode, WaggleError
from swarm.identity import Identity, PeerId
from swarm.joining import InitialPeer
from swarm.network import Network
from swarm.p2pd import P2PDOptions
from waggle.checks import Check, Verdict, failed, warned

if TYPE_CHECKING:
    from peer.config import PeerSettings

DIAL_SECONDS = 10.0


async def initial_peers(maddrs: Sequence[str]) -> list[Check]:
    """Dials each as a stranger that never listens, and compares clocks with those that answer."""
    if not maddrs:
        advice = "name a bootstrap or a peer with --initial-peers, unless you start a swarm of your own"
        return [warned("initial peers", "none given", advice)]
    checks, offsets = [], {}
    for maddr in maddrs:
        try:
            check, offset = await _dial(InitialPeer.parse(maddr))
        except WaggleError as error:  # p2pd itself does not start
            return [failed("initial peers", error)]
        checks.append(check)
        if offset is not None:
            offsets[InitialPeer.parse(maddr).peer_id] = offset
    if not any(check.verdict is Verdict.OK for check in checks):
        return checks
    # A peer starts when one of them answers: the others are only worth a warning.
    bearable = [one if one.verdict is Verdict.OK else warned(one.name, one.detail, one.advice) for one in checks]
    return [*bearable, clock(offsets)]


async def _dial(peer: InitialPeer) -> tuple[Check, float | None]:
    """One address, with a p2pd that has never heard of that peer: it would try the addresses that it knows, too."""
    whole = f"{peer.maddr}/p2p/{peer.peer_id}"
    with tempfile.TemporaryDirectory(prefix="waggle-doctor-") as folder:
        network = await Network.start(*_stranger(Path(folder)))
        try:
            obstacle = await network.obstacle(peer.peer_id, [peer.maddr], DIAL_SECONDS)
            if obstacle:
                why, advice = explain(obstacle)
                return Check("initial peer", Verdict.FAIL, f"{whole}: {why}", advice, ExitCode.NETWORK), None
            offset = await network.ask_time(peer.peer_id)
        finally:
            await network.stop()
    if offset is None:
        advice = "ask for the address of a bootstrap or a peer: what answers there is none"
        return Check("initial peer", Verdict.FAIL, f"{whole}: no DHT there", advice, ExitCode.NETWORK), None
    return Check("initial peer", Verdict.OK, f"{whole} answers"), offset


def _stranger(folder: Path) -> tuple[Identity, P2PDOptions]:
    identity = Identity.load_or_create(folder / "identity.key")
    return identity, P2PDOptions(identity.path)


def explain(obstacle: str) -> tuple[str, str]:
    """What p2pd's words about a dial that failed mean, and what to do."""
    if other := re.search(r"peer id mismatch.*remote key matches (\w+)", obstacle):
        return f"{other[1]} answers there", "ask for the new address: it lost its key, or another one has its place"
    if "connection refused" in obstacle:
        return "connection refused", "see that it runs, and that its port is this one"
    if "no good addresses" in obstacle:
        return "no such host", "see that the name is right, and that this machine can look up names"
    if "no route to host" in obstacle or "network is unreachable" in obstacle:
        return "no way there", "see that this machine is connected, and that the address is right"
    advice = "see that it runs, that the address is right, and that no firewall stands between"
    return obstacle.strip().splitlines()[-1][-200:], advice


def clock(offsets: dict[PeerId, float]) -> Check:
    """Whether our records are taken for fresh, and others' by us. offsets: our clock ahead of each peer's, seconds."""
    ours = Clock(offsets)
    if ours.offset is None:
        return warned("clock", "nobody told the time", "see that NTP is on")
    try:
        ours.check()
    except ClockError as error:
        return failed("clock", error)
    if abs(ours.offset) > CLOCK_TOLERANCE_SECONDS:
        return warned("clock", ours.words, "turn on NTP")
    return Check("clock", Verdict.OK, f"within {max(abs(ours.offset), 0.1):.1f} s of {len(offsets)} initial peers'")


def reachability(settings: PeerSettings, addresses: Iterable[str] | None = None) -> Check:
    """Whether others can dial us, as far as this machine can know. addresses: of its interfaces."""
    name = "reachable"
    if settings.client_mode:
        return Check(name, Verdict.OK, "client mode: nobody has to reach us")
    if settings.announce_maddrs:
        told = ", ".join(settings.announce_maddrs)
        return Check(name, Verdict.OK, f"others are told {told}: that port has to lead here")
    if settings.auto_relay:
        return Check(name, Verdict.OK, "through a relay, where nobody can dial us")
    hosts = [ipaddress.ip_address(maddr.split("/")[2]) for maddr in settings.host_maddrs]
    found = set(hosts)
    if any(host.is_unspecified for host in hosts):
        found |= {ipaddress.ip_address(one) for one in (_own_addresses() if addresses is None else addresses)}
    if any(one.is_global for one in found):
        return Check(name, Verdict.OK, "this machine has a public address; see that no firewall closes the port")
    way_out = "forward a port and tell it with --announce-maddrs, or try --auto-relay, or --client-mode"
    if all(one.is_loopback for one in hosts):
        return warned(name, "only from this machine", f"for others listen on /ip4/0.0.0.0/tcp/PORT; {way_out}")
    if settings.nat_port_map:
        return warned(
            name, "a private address; the router is asked for a port (UPnP, NAT-PMP)", f"if it has none: {way_out}"
        )
    return warned(name, "only from the local network: a private address, and no port is asked for", way_out)


def _own_addresses() -> list[str]:
    return [
        one.address.partition("%")[0]
        for interface in psutil.net_if_addrs().values()
        for one in interface
        if one.family in (socket.AF_INET, socket.AF_INET6)
    ]
