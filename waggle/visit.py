"""A short visit to the DHT by a command: with an identity that is thrown away, without listening."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from peer.enrolment import Tally, find
from swarm import logs
from swarm.errors import NetworkError
from swarm.identity import Identity
from swarm.invitation import Invitation
from swarm.network import Network
from swarm.p2pd import P2PDOptions

T = TypeVar("T")

JOIN_SECONDS = 12.0


async def visit(initial_peers: Sequence[str], do: Callable[[Network], Awaitable[T]], tally: Tally | None = None) -> T:
    """Joins the DHT, does something there, and leaves.

    Raises:
        NetworkError: p2pd did not start, or no initial peer answered within JOIN_SECONDS.
    """
    logs.configure("console", "error", "error")  # a command says in one line what did not work
    with tempfile.TemporaryDirectory(prefix="waggle-visit-") as folder:
        identity = Identity.load_or_create(Path(folder) / "identity.key")
        network = await Network.start(identity, P2PDOptions(identity.path), initial_peers, tally)
        try:
            if not await network.wait_joined(JOIN_SECONDS):
                raise NetworkError(
                    f"none of the initial peers answers within {JOIN_SECONDS:.0f} s ({', '.join(initial_peers)}); "
                    "is a bootstrap running there, and is the address right?"
                )
            return await do(network)
        finally:
            await network.stop()


async def look_up(run_id: str, initial_peers: Sequence[str]) -> Invitation:
    """The invitation to a run, checked.

    Raises:
        NetworkError: as ``visit``.
        RunError: there is no such run, or only forgeries of it.
    """
    tally = Tally()
    return await visit(initial_peers, lambda network: find(network, run_id, tally, JOIN_SECONDS), tally)
