"""Whether an address of this machine can be listened on, asked before somebody listens who would not say so."""

from __future__ import annotations

import errno
import socket

from swarm.errors import NetworkError

_REASONS = {
    errno.EADDRINUSE: "is occupied",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "is not ours to listen on without special rights",
}


def check_free(host: str, port: int, text: str, flag: str, *, udp: bool = False) -> None:
    """Listens for a moment. text: the address as it was given, by ``flag``; for the message.

    Raises NetworkError.
    """
    kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=kind)[0]
        with socket.socket(family, kind) as probe:
            if not udp:  # as servers do: connections that have just ended do not count
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            if not udp:
                probe.listen()
    except OSError as error:  # gaierror, for a name nobody knows, is one too
        reason = _REASONS.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
        raise NetworkError(f"{text} {reason}; stop the other program, or choose another {flag}") from None
