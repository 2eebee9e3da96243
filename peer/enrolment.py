"""From the setting ``run`` to the run: a manifest file, or an invitation that is fetched, checked and kept.

A volunteer types a run id. The manifest comes from whoever has it, and is believed because its digest is in the id and
its author's signature holds (``swarm.invitation``); it is kept in the data directory, so that the next start needs
nobody. Whoever holds an invitation keeps it published while it takes part: a run outlives its author's machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import structlog

from peer.config import PeerSettings
from swarm import logs
from swarm.errors import ExitCode, NetworkError, RunError, StateError, UsageError
from swarm.files import write_bytes
from swarm.identity import Identity
from swarm.invitation import Invitation, InvitationError, authentic, expect, read_signature
from swarm.lifecycle import Shutdown
from swarm.manifest import MAX_MANIFEST_BYTES, Manifest
from swarm.network import Network, NetworkObserver, SilentObserver
from swarm.p2pd import P2PDOptions

log = structlog.get_logger(__name__)

SEARCH_SECONDS = 15.0
"""How long a run is looked for once an initial peer answers: a peer may be about to publish it again."""
REFRESH_SECONDS = 600.0
"""How often a peer publishes its run's invitation again, at most; an invitation lives an hour."""
_PAUSE_SECONDS = (0.5, 4.0)  # first and longest, between two looks
_AGAIN_SECONDS = 30.0  # when nobody took it


@dataclass(frozen=True)
class Run:
    """What a peer takes part in. invitation: None with a manifest file that nobody signed."""

    manifest: Manifest
    invitation: Invitation | None


class Tally(SilentObserver):
    """Counts the records that were refused, by reason, and tells another observer of them."""

    def __init__(self, observer: NetworkObserver | None = None):
        self.refused: Counter[str] = Counter()
        self._observer = observer or SilentObserver()

    def record_dropped(self, reason: str) -> None:
        """See NetworkObserver."""
        self.refused[reason] += 1
        self._observer.record_dropped(reason)


def enrol(
    settings: PeerSettings,
    identity: Identity,
    shutdown: Shutdown,
    observer: NetworkObserver | None = None,
    timeout: float | None = None,
) -> Run:
    """The run that ``settings.run`` names, whether that is a manifest file or a run id.

    observer: told of invitations that are refused. timeout: seconds to wait for the initial peers; None is for ever.

    Raises:
        ManifestError: the file, its signature, or an authentic manifest that this version cannot read.
        UsageError: the run must be fetched, and there is nobody to ask.
        NetworkError: p2pd did not start, or no initial peer answered in time.
        RunError: the initial peers do not know the run, or what they know was refused.
        StateError: the data directory cannot be read or written.
        SystemExit: with exit code 0, when asked to leave meanwhile.
    """
    run_id = settings.run_id
    if run_id is None:
        manifest = Manifest.load(settings.run)
        invitation = read_signature(Path(settings.run), manifest)
        return Run(manifest, invitation)
    invitation = load(settings.data_dir, run_id)
    source = "the data directory"
    if invitation is None:
        if not settings.initial_peers:
            raise UsageError(
                f"initial_peers: run {run_id} must be fetched from somebody, and nobody is named "
                "(flag --initial-peers, variable WAGGLE_INITIAL_PEERS)"
            )
        invitation = asyncio.run(_fetch(settings, identity, shutdown, Tally(observer), timeout))
        if invitation is None:
            raise SystemExit(ExitCode.OK)
        keep(settings.data_dir, invitation)
        source = "the swarm"
    log.info("invitation checked", run_id=run_id, author=invitation.author, source=source)
    return Run(invitation.manifest(), invitation)


async def _fetch(
    settings: PeerSettings, identity: Identity, shutdown: Shutdown, tally: Tally, timeout: float | None
) -> Invitation | None:
    """The invitation from the DHT; None when asked to leave meanwhile."""
    leaving, loop = asyncio.Event(), asyncio.get_running_loop()

    def leave() -> None:
        with contextlib.suppress(RuntimeError):  # asked later, when this loop is long closed
            loop.call_soon_threadsafe(leaving.set)

    shutdown.on_request(leave)
    logs.tame()
    visit = asyncio.ensure_future(_visit(settings, identity, tally, timeout))
    asked = asyncio.ensure_future(leaving.wait())
    await asyncio.wait({visit, asked}, return_when=asyncio.FIRST_COMPLETED)
    if not visit.done():
        visit.cancel()
        await asyncio.wait({visit})
        return None
    asked.cancel()
    return visit.result()


async def _visit(settings: PeerSettings, identity: Identity, tally: Tally, timeout: float | None) -> Invitation:
    """Joins the DHT for as long as the search takes, without listening."""
    network = await Network.start(identity, P2PDOptions(identity.path), settings.initial_peers, tally)
    try:
        search = network.spawn(find(network, str(settings.run_id), tally, timeout))
        died = network.spawn(network.died.wait())
        await asyncio.wait({search, died}, return_when=asyncio.FIRST_COMPLETED)
        if not search.done():
            raise NetworkError("p2pd ended unexpectedly; see the lines above, and start the peer again")
        return search.result()
    finally:
        await network.stop()


async def find(
    network: Network, run_id: str, tally: Tally, timeout: float | None, seconds: float = SEARCH_SECONDS
) -> Invitation:
    """The invitation to a run, looked for during ``seconds`` from when an initial peer answers.

    tally: the network's observer. timeout: seconds until an initial peer must have answered.

    Raises:
        NetworkError: none did.
        RunError: there is no such run, or only forgeries of it.
    """
    if not await network.wait_joined(timeout):
        raise NetworkError(_nobody(timeout))
    deadline = time.monotonic() + seconds
    pause, longest = _PAUSE_SECONDS
    while True:
        found = await network.read_invitation(run_id)
        if found is not None:
            return found
        if time.monotonic() >= deadline:
            # hivemind forgets whoever did not answer the last request: with nobody left, nobody said no
            if network.known_peers or tally.refused:
                raise RunError(_not_found(run_id, tally.refused))
            if timeout is not None:
                raise NetworkError(_nobody(timeout))
            deadline = time.monotonic() + seconds
        log.info("the run is not found yet; looking again", run_id=run_id, refused=dict(tally.refused))
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest)


def _nobody(timeout: float | None) -> str:
    within = "" if timeout is None else f" within {timeout:.0f} s"
    return f"none of the initial peers answers{within}; check --initial-peers, and that this machine has a network"


def _not_found(run_id: str, refused: Counter[str]) -> str:
    if not refused:
        return (
            f"run {run_id}: the initial peers know no such run; check the id letter by letter, "
            "or ask the author to publish it again (waggle run publish)"
        )
    reasons = ", ".join(f"{reason} {count}x" for reason, count in sorted(refused.items()))
    return (
        f"run {run_id}: what is published under this id is not its author's manifest and was refused ({reasons}); "
        "ask the author to publish it again (waggle run publish)"
    )


async def keep_published(network: Network, invitation: Invitation, seconds: float = REFRESH_SECONDS) -> None:
    """Publishes an invitation at once and again and again, for ever, within ``seconds`` of the time before."""
    await network.wait_joined(None)
    while True:
        taken = await network.publish_invitation(invitation)
        # Peers that started together must not publish together for ever.
        pause = seconds * random.uniform(0.5, 1.0)
        await asyncio.sleep(pause if taken else min(pause, _AGAIN_SECONDS))


# -- the copy in the data directory --------------------------------------------------------------------------------


def cache_path(data_dir: Path, run_id: str) -> Path:
    """Where an invitation is kept: two lines, the canonical manifest and the signature in hex."""
    return data_dir / "runs" / run_id / "invitation"


def keep(data_dir: Path, invitation: Invitation) -> None:
    """Writes the copy, in one step. Raises StateError."""
    path = cache_path(data_dir, invitation.run_id)
    try:
        write_bytes(path, b"%s\n%s\n" % (invitation.canonical, invitation.signature.hex().encode()))
    except OSError as error:
        raise StateError(
            f"{path}: cannot be written ({error.strerror}); free some space or change --data-dir"
        ) from error


def load(data_dir: Path, run_id: str) -> Invitation | None:
    """The copy, checked like one from a stranger; None without one. A bad one is set aside, with a line in the log.

    Raises:
        StateError: it cannot be read or moved.
    """
    path = cache_path(data_dir, run_id)
    try:
        with path.open("rb") as file:
            canonical, _, signature = file.read(2 * MAX_MANIFEST_BYTES).partition(b"\n")
        return expect(authentic(canonical, bytes.fromhex(signature.decode("ascii"))), run_id)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror}); mend its permissions") from error
    except (InvitationError, ValueError) as error:
        aside = path.with_name("invitation.corrupt")
        try:
            path.replace(aside)
        except OSError as failure:
            raise StateError(f"{path}: is corrupt and cannot be moved away ({failure.strerror})") from failure
        log.warning("the copy of the invitation is corrupt and set aside", path=str(aside), why=str(error)[:200])
        return None
