"""How a peer goes on where it was: its checkpoints, from what the parts hold and back into them."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import structlog

from peer.journal import Journal
from peer.metrics import PeerMetrics
from peer.state.checkpoints import Checkpoints
from peer.state.files import Checkpoint
from peer.state.messages import MAX_LINKS
from peer.state.store import Store
from peer.training import Trainer
from peer.values import LocalWork
from swarm.errors import StateError
from swarm.history import Ballot, HistoryError

log = structlog.get_logger(__name__)


class Resumption:
    """Belongs to the main thread.

    reader: whose stream of examples the peer reads; a cursor into another one means nothing.
    """

    def __init__(self, checkpoints: Checkpoints, store: Store, metrics: PeerMetrics, journal: Journal, reader: str):
        self._checkpoints, self._store = checkpoints, store
        self._metrics, self._journal, self._reader = metrics, journal, reader

    def take_up(self) -> tuple[LocalWork | None, Ballot | None]:
        """Puts the newest checkpoint into the store; returns the local work in it, and what we had promised.

        Raises:
            StateError: the links that were saved do not lead to the state.
        """
        found = self._checkpoints.newest()
        digest = self._store.head.digest if found is None else found.state.digest
        remembers, promised = self._checkpoints.recall(digest)
        if found is None:
            return None, None
        folder = self._checkpoints.folder
        try:
            self._store.resume(found.state, found.chain, remembers=remembers)
        except HistoryError as error:
            raise StateError(f"{folder}: {error}; move the folder away to begin afresh") from error
        head = self._store.head
        self._metrics.at_step(head.outer_step)
        self._journal.write("resume", outer_step=head.outer_step, digest=head.digest, work=head.work)
        log.info("resumed", outer_step=head.outer_step, digest=head.digest[:16], folder=str(folder))
        work = found.local
        if work is not None and work.facts.get("reader") != self._reader:
            log.warning("the checkpoint is of another share of the data, which is read from its beginning")
            work = None
        return work, promised

    def save(self, trainer: Trainer) -> None:
        """Writes a checkpoint in the background. Raises StateError when the last one could not be written."""
        writing = self._checkpoints.begin(self._checkpoint(trainer.save_work()))
        if writing is not None:
            writing.add_done_callback(self._written)

    def leave(self, trainer: Trainer, *, busy: bool, promised: Ballot | None, remembers: bool) -> None:
        """The last checkpoint.

        Args:
            busy: an inner step is under way, so what it changes is left out.
            promised, remembers: the ballot that we promised, and whether we voted for nothing after the head.

        Raises:
            StateError: it cannot be written.
        """
        head = self._store.head
        if not head.outer_step:
            self._checkpoints.finish(None)
            return
        work = trainer.settled_work() if busy else trainer.save_work()
        path = self._checkpoints.finish(self._checkpoint(work))
        log.info("checkpoint written", path=str(path), outer_step=head.outer_step)
        if remembers and not self._store.forgetful:
            self._checkpoints.remember(head.digest, promised)

    def _checkpoint(self, work: LocalWork) -> Checkpoint:
        chain = self._store.history.since(0, MAX_LINKS)
        return Checkpoint(self._store.committed, chain, replace(work, facts={**work.facts, "reader": self._reader}))

    def _written(self, writing: Future[Path]) -> None:
        if writing.exception() is None:  # else the next one tells
            self._metrics.checkpointed(time.time())
