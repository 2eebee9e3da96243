"""Peers met lately, kept on disk: a peer that starts again finds the swarm with all its initial peers away."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from swarm.addresses import AddressError, check_announce
from swarm.history import PeerIdField
from swarm.identity import PeerId

log = structlog.get_logger(__name__)

MOST_PEERS = 64
ASKED_PEERS = 16
_MOST_BYTES = 1 << 20
_REFRESH_SECONDS = 300.0  # between two writes that would change nothing but times


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Met(_Strict):
    """A peer. met: Unix time of its last record."""

    peer_id: PeerIdField
    maddrs: Annotated[list[Annotated[str, Field(max_length=256), AfterValidator(check_announce)]], Field(max_length=16)]
    met: float


class _Page(_Strict):
    """The file: the peers of one run."""

    waggle: Literal[1] = 1
    run_id: str
    peers: Annotated[list[_Met], Field(max_length=MOST_PEERS)]


class Acquaintances:
    """``peers.json`` in the data directory. Never a reason to fail: it is a second choice for finding the swarm."""

    def __init__(self, folder: Path, run_id: str, clock: Callable[[], float] = time.time):
        self.path = folder / "peers.json"
        self._run_id, self._clock = run_id, clock
        self._peers = self._read()
        self._written_at = 0.0

    def latest(self) -> Mapping[PeerId, Sequence[str]]:
        """Whom to try, met latest first."""
        latest = sorted(self._peers.values(), key=lambda one: one.met, reverse=True)
        return {one.peer_id: one.maddrs for one in latest[:ASKED_PEERS]}

    def met(self, peers: Mapping[PeerId, Sequence[str]]) -> None:
        """These peers of the run are there now, at these addresses."""
        now = self._clock()
        changed = False
        for peer_id, maddrs in peers.items():
            dialable = [maddr for maddr in maddrs if _dialable(maddr)]
            if not dialable:
                continue
            known = self._peers.get(peer_id)
            changed |= known is None or known.maddrs != dialable
            self._peers[peer_id] = _Met(peer_id=peer_id, maddrs=dialable, met=now)
        for peer_id in sorted(self._peers, key=lambda one: self._peers[one].met, reverse=True)[MOST_PEERS:]:
            del self._peers[peer_id]
        if peers and (changed or now - self._written_at > _REFRESH_SECONDS):
            self._write(now)

    def _write(self, now: float) -> None:
        self._written_at = now
        page = _Page(run_id=self._run_id, peers=list(self._peers.values()))
        temporary = self.path.with_suffix(".writing")
        try:
            temporary.write_text(page.model_dump_json(), encoding="utf-8")
            temporary.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):  # the first failure is the one to tell
                temporary.unlink()
            log.warning("cannot keep the peers met", path=str(self.path), why=error.strerror)

    def _read(self) -> dict[PeerId, _Met]:
        """What an earlier life of this peer met, in this run; a file that is broken is set aside."""
        try:
            with self.path.open("rb") as file:
                page = _Page.model_validate_json(file.read(_MOST_BYTES))
        except FileNotFoundError:
            return {}
        except (OSError, ValidationError) as error:
            aside = self.path.with_suffix(".json.corrupt")
            with contextlib.suppress(OSError):
                self.path.replace(aside)
            why = error.strerror if isinstance(error, OSError) else f"{error.error_count()} mistakes in it"
            log.warning(
                "the peers met before cannot be read; set aside", path=str(self.path), aside=aside.name, why=why
            )
            return {}
        return {one.peer_id: one for one in page.peers} if page.run_id == self._run_id else {}


def _dialable(maddr: str) -> bool:
    try:
        check_announce(maddr)
    except AddressError:
        return False
    return True
