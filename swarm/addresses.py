"""Addresses as people type them: checked early, with a message that says what is wrong and what is expected.

Three kinds of libp2p multiaddr (https://github.com/multiformats/multiaddr), and ``HOST:PORT`` for HTTP. A
multiaddr here is a host (ip4, ip6, dns4, dns6, dns), a transport (tcp/PORT or udp/PORT/quic-v1) and, where
somebody is to be dialled, who answers there (p2p/PEER_ID). The `multiaddr` package decides what is valid; the
grammar around it is ours, because p2pd takes a useless address without a word and then reaches nobody.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from multiaddr import Multiaddr
from multiaddr.exceptions import ParseError

from swarm.errors import UsageError

EXAMPLE_PEER = "/ip4/203.0.113.7/tcp/31337/p2p/12D3Koo..."
EXAMPLE_HOST = "/ip4/0.0.0.0/tcp/31337"
EXAMPLE_ANNOUNCE = "/ip4/203.0.113.7/tcp/31337"
EXAMPLE_HTTP = "127.0.0.1:8080"

_DNS = ("dns4", "dns6", "dns")
_HOSTS = ("ip4", "ip6", *_DNS)
_TRANSPORTS = ("tcp", "udp")
# How base58 peer ids begin: Ed25519, secp256k1, RSA (libp2p specs, peer-ids/peer-ids.md).
_PEER_ID = re.compile(r"(12D3Koo|16Uiu2|Qm)[1-9A-HJ-NP-Za-km-z]+")


class AddressError(UsageError, ValueError):
    """An address that cannot work. Also a ValueError, which is what pydantic collects from validators."""


@dataclass(frozen=True)
class _Address:
    """A multiaddr taken apart. peer: the id it ends in, or ""."""

    kind: str
    host: str
    port: int
    peer: str

    @property
    def unspecified(self) -> bool:
        """Whether it means "every interface", which one can listen on and nobody can dial."""
        return self.kind in ("ip4", "ip6") and ipaddress.ip_address(self.host).is_unspecified


def check_initial_peer(text: str) -> str:
    """A peer to dial: must name who answers (/p2p/PEER_ID) at an address that can be dialled.

    Returns the address in its canonical form. Raises AddressError.
    """
    address = _parse(text, EXAMPLE_PEER)
    if not address.peer:
        raise _error(text, "does not end in /p2p/PEER_ID, the id of who answers there", EXAMPLE_PEER)
    _must_be_dialable(text, address, EXAMPLE_PEER)
    return str(Multiaddr(text))


def check_host(text: str) -> str:
    """An address of this machine to listen on; port 0 lets the system choose. Returns the canonical form.

    Raises AddressError.
    """
    address = _parse(text, EXAMPLE_HOST)
    if address.kind in _DNS:
        raise _error(text, "a name cannot be listened on, only an IP address can", EXAMPLE_HOST)
    if address.peer:
        raise _error(text, "an address to listen on has no /p2p/ part", EXAMPLE_HOST)
    return str(Multiaddr(text))


def check_announce(text: str) -> str:
    """An address to tell others, behind a router or in a container. Returns the canonical form.

    Raises AddressError.
    """
    address = _parse(text, EXAMPLE_ANNOUNCE)
    if address.peer:
        raise _error(text, "an announced address has no /p2p/ part: it is added by itself", EXAMPLE_ANNOUNCE)
    _must_be_dialable(text, address, EXAMPLE_ANNOUNCE)
    return str(Multiaddr(text))


def parse_http(text: str) -> tuple[str, int] | None:
    """``HOST:PORT`` as (host, port), IPv6 in brackets; None for "off". Port 0 lets the system choose.

    Raises AddressError.
    """
    if text.strip().lower() == "off":
        return None
    host, colon, port = text.strip().rpartition(":")
    if not colon or not host:
        raise _error(text, "is not HOST:PORT", f"{EXAMPLE_HTTP}, [::1]:8080, or off")
    if not _is_port(port):
        raise _error(text, f"'{port}' is not a port (0 to 65535)", EXAMPLE_HTTP)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ip(host, 6):
            raise _error(text, f"'{host}' is not an IPv6 address", "[::1]:8080")
    elif re.search(r"[\s/]", host):
        raise _error(text, f"'{host}' is not a host", EXAMPLE_HTTP)
    elif ":" in host:
        raise _error(text, "an IPv6 address needs brackets", "[::1]:8080")
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _parse(text: str, example: str) -> _Address:
    if not text.startswith("/"):
        raise _error(text, "a multiaddr starts with a slash", example)
    parts = text[1:].rstrip("/").split("/")
    kind, host = _host(text, parts, example)
    port = _transport(text, parts, example)
    peer = _peer(text, parts, example)
    try:
        Multiaddr(text)
    except (ParseError, ValueError) as error:  # what only the library knows, for instance the rules of names
        raise _error(text, getattr(error, "message", str(error)), example) from error
    return _Address(kind, host, port, peer)


def _host(text: str, parts: list[str], example: str) -> tuple[str, str]:
    kind, host = _take(parts), _take(parts)
    if kind not in _HOSTS:
        raise _error(text, f"starts with '{kind}', not with one of {', '.join(_HOSTS)}", example)
    if kind == "ip4" and not _is_ip(host, 4):
        raise _error(text, f"'{host}' is not an IPv4 address", example)
    if kind == "ip6" and not _is_ip(host, 6):
        raise _error(text, f"'{host}' is not an IPv6 address", example)
    if kind in _DNS and not host:
        raise _error(text, f"/{kind}/ has no name behind it", example)
    return kind, host


def _transport(text: str, parts: list[str], example: str) -> int:
    transport, port = _take(parts), _take(parts)
    if transport not in _TRANSPORTS:
        found = f"'{transport}' is not a transport" if transport else "has no transport"
        raise _error(text, f"{found}: /tcp/PORT or /udp/PORT/quic-v1 follows the host", example)
    if not _is_port(port):
        raise _error(text, f"'{port}' is not a port (0 to 65535)", example)
    if transport == "udp":
        if parts[:1] != ["quic-v1"]:
            example = example.replace("tcp/31337", "udp/31337/quic-v1")
            raise _error(text, f"/quic-v1 follows /udp/{port}", example)
        del parts[0]
    return int(port)


def _peer(text: str, parts: list[str], example: str) -> str:
    """The peer an address ends at, behind at most one relay (/p2p/RELAY/p2p-circuit/p2p/PEER)."""
    if not parts:
        return ""
    peer = _peer_id(text, parts, example)
    if parts[:1] == ["p2p-circuit"]:
        del parts[0]
        peer = _peer_id(text, parts, example)
    if parts:
        raise _error(text, f"'/{'/'.join(parts)}' is too much: nothing follows the peer id", example)
    return peer


def _peer_id(text: str, parts: list[str], example: str) -> str:
    marker, peer = _take(parts), _take(parts)
    if marker != "p2p":
        raise _error(text, f"'/{marker}' is not known here: only /p2p/PEER_ID may follow the port", example)
    valid = _PEER_ID.fullmatch(peer) is not None
    if valid:
        try:
            Multiaddr(f"/p2p/{peer}")
        except (ParseError, ValueError):
            valid = False
    if not valid:
        raise _error(text, f"'{peer}' is not a peer id (12D3Koo... or Qm..., perhaps cut off?)", example)
    return peer


def _must_be_dialable(text: str, address: _Address, example: str) -> None:
    if address.port == 0:
        raise _error(text, "nobody can dial port 0: give the port that is listened on", example)
    if address.unspecified:
        reason = f"nobody can dial {address.host}, which means every interface: give the address others reach"
        raise _error(text, reason, example)


def _take(parts: list[str]) -> str:
    return parts.pop(0) if parts else ""


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version and "%" not in text
    except ValueError:
        return False


def _is_port(text: str) -> bool:
    return re.fullmatch(r"[0-9]{1,5}", text) is not None and int(text) <= 65535


def _error(text: str, reason: str, example: str) -> AddressError:
    return AddressError(f"'{text}': {reason}; expected e.g. {example}")
