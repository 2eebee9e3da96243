"""A peer that kills its own process at a chosen point: in a phase, at a stage of a round, in the middle of a file.

A signal from outside comes some milliseconds late, and most of what is worth interrupting is over by then. So a peer of
a test runs the real program, of which ``arm`` has wrapped what is called at those points. It lives like any other until
somebody leaves an order in its data directory, and then dies of SIGKILL the next time (or the third) it gets there.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import peer.daemon
import peer.state.files
import peer.state.transfer
import swarm.files
from peer.metrics import PeerMetrics
from peer.phase import Phase
from peer.state.download import Download
from peer.values import Stage
from swarm.files import WRITING, write_bytes
from tests.processes import PEER, Peer

PHASES = ("joining", "downloading", "training", "averaging")
STAGES = tuple(stage.value for stage in Stage)
MOMENTS = ("begun", "half", "synced", "renamed")
FILES = ("checkpoint", "promise")
POINTS = (
    *(f"phase {phase}" for phase in PHASES),
    *(f"stage {stage}" for stage in STAGES),
    *(f"{file} {moment}" for file in FILES for moment in MOMENTS),
)
"""Where a peer can be struck. Of a file: before its first byte, with half of it written, when all of it is on disk
under the name that says it is not finished, and under its own name."""


@dataclass(frozen=True)
class Order:
    """Strike the ``occurrence``-th time that ``point`` is reached; counted from when the order is there."""

    point: str
    occurrence: int = 1


class Striker:
    """Reads orders, and carries them out. An order that was carried out is gone, and a note tells of it."""

    def __init__(self, folder: Path):
        self._order, self._note = folder / "order.json", folder / "struck.json"
        self._lock = threading.Lock()
        self._reached = 0

    def give(self, order: Order) -> None:
        """For whoever wants a peer dead."""
        self._note.unlink(missing_ok=True)
        write_bytes(self._order, json.dumps(asdict(order)).encode())

    def told(self) -> dict[str, Any]:
        """The note: the point, and when, in Unix time. Empty while nothing happened."""
        return dict(json.loads(self._note.read_bytes())) if self._note.exists() else {}

    def reached(self, point: str, last_act: Callable[[], object] = lambda: None) -> None:
        """Dies, if there is an order to, after ``last_act``."""
        with self._lock:
            if not self._order.exists() or (order := Order(**json.loads(self._order.read_bytes()))).point != point:
                return
            self._reached += 1
            if self._reached == order.occurrence:
                last_act()
                self._strike(point)

    def _strike(self, point: str) -> NoReturn:
        self._order.unlink()
        self._note.write_text(json.dumps({"point": point, "time": time.time()}))
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("nobody survives this")


class MortalPeer(Peer):
    """A peer that obeys orders; see ``Striker``."""

    code = f"from tests.strikes import arm; arm(); {PEER}"

    @property
    def striker(self) -> Striker:
        """For orders to it."""
        return Striker(self.folder)


def arm() -> None:
    """Makes this process, which is about to become a peer, obey orders."""
    striker = Striker(Path(sys.argv[sys.argv.index("--data-dir") + 1]))
    _arm_metrics(striker)
    _arm_downloads(striker)
    _arm_files(striker)


def _arm_metrics(striker: Striker) -> None:
    class MortalMetrics(PeerMetrics):
        async def reached(self, stage: Stage, outer_step: int) -> None:
            await super().reached(stage, outer_step)
            striker.reached(f"stage {stage.value}")

        def phase(self, phase: Phase) -> None:
            super().phase(phase)
            if phase in (Phase.JOINING, Phase.AVERAGING):
                striker.reached(f"phase {phase.value}")

        def worked(self, examples: int, data_wait_seconds: float) -> None:
            super().worked(examples, data_wait_seconds)
            striker.reached("phase training")

    peer.daemon.PeerMetrics = MortalMetrics  # type: ignore[attr-defined]


def _arm_downloads(striker: Striker) -> None:
    class MortalDownload(Download):
        async def put(self, index: int, payload: bytes) -> None:
            striker.reached("phase downloading")
            await super().put(index, payload)

    peer.state.transfer.Download = MortalDownload  # type: ignore[attr-defined]


def _arm_files(striker: Striker) -> None:
    whole, take_place = swarm.files.write_whole, Path.replace

    def file_of(path: Path) -> str:
        return "checkpoint" if path.suffix == ".safetensors" else path.stem

    def write_whole(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
        def halved(temporary: Path) -> None:
            striker.reached(f"{file_of(path)} begun")
            write(temporary)
            # What a kill in the middle of the write leaves: what was written so far.
            striker.reached(f"{file_of(path)} half", lambda: os.truncate(temporary, temporary.stat().st_size // 2))

        whole(path, halved, replace=replace)

    def replaced(temporary: Path, path: Path) -> Path:
        file = file_of(path) if temporary.name == path.name + WRITING else ""
        striker.reached(f"{file} synced")
        result = take_place(temporary, path)
        striker.reached(f"{file} renamed")
        return result

    # ``write_bytes`` finds it in its own module, checkpoints have imported it.
    swarm.files.write_whole = peer.state.files.write_whole = write_whole  # type: ignore[attr-defined]
    Path.replace = replaced  # type: ignore[assignment,method-assign]
