"""The composition root of a peer: start, loop, stop.

The main thread trains, the network's loop runs in its own thread (``Online``). One turn of the loop is one attempt at
an outer step: work until done or called, hand in the contribution, and start again from whatever was committed.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from concurrent import futures
from concurrent.futures import Future
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import psutil
import structlog
import torch
from prometheus_client import CollectorRegistry

from peer.config import PeerSettings
from peer.data import Prefetcher, open_stream, open_tokenizer, validation_batches
from peer.enrolment import Run, enrol
from peer.journal import Journal
from peer.layout import Layout, read_parameters
from peer.machine import check_machine
from peer.metrics import PeerMetrics
from peer.online import Online
from peer.optimizers import outer_optimizer
from peer.phase import Event, Phase, next_phase
from peer.resumption import Resumption
from peer.rounds.attempt import Attempt
from peer.rounds.gates import check_values
from peer.state.checkpoints import Checkpoints, run_folder
from peer.state.store import Store
from peer.tasks import TASKS, build_model, check_vocabulary, count_parameters
from peer.training import Trainer, choose_device, cursor_of, limit_threads
from peer.values import LocalResult, RoundResult
from swarm import logs
from swarm.claims import claim_folder, claim_identity
from swarm.errors import DeviceError, ExitCode, NetworkError, StateError, WaggleError
from swarm.history import Ballot
from swarm.identity import Identity
from swarm.lifecycle import Shutdown
from swarm.loop import LoopThread
from swarm.programs import version

log = structlog.get_logger(__name__)

_LOOK_SECONDS = 0.5
# Asked to leave, we are gone within 10 seconds (docker stop, systemd). These add up, and leave time to save the state.
_FINISH_SECONDS = 3.0  # for the round at hand
_BUSY_SECONDS = 3.5  # for the main thread to notice
_DRAIN_SECONDS = 1.5  # for groupmates to hear how the round ended
_GOODBYE_SECONDS = 3.5  # for all of ending the network
_AGAIN_SECONDS = 1.0
_FAREWELL_SECONDS = 10.0


def run(settings: PeerSettings) -> int:
    """Runs a peer until it has done its outer steps or is asked to leave; returns the exit code."""
    shutdown = Shutdown()
    shutdown.install()
    peer = Peer(settings, shutdown)
    try:
        peer.startup()
        peer.main_loop()
    finally:
        peer.shutdown()
        shutdown.finish()
    return 0


class Peer:
    """A volunteer's daemon."""

    def __init__(self, settings: PeerSettings, shutdown: Shutdown):
        self._settings, self._shutdown = settings, shutdown
        self._leaving: Future[None] = Future()
        self._phase = Phase.STARTING
        self._loss = self._validation_loss = math.nan
        self._last_commit = 0.0
        self._online: Online | None = None
        self._failure: WaggleError | None = None
        self._stopping = threading.RLock()
        self._busy = False
        shutdown.on_request(self._asked_to_leave)

    # -- startup ---------------------------------------------------------------------------------------------

    def startup(self) -> None:
        """Builds everything, cheap and likely to fail first."""
        settings = self._settings
        self._claims = [claim_folder(settings.data_dir)]  # kept until the process ends
        self._identity = Identity.load_or_create(settings.identity_path)
        self._claims.append(claim_identity(self._identity.path))
        logs.bind(peer_id=self._identity.peer_id)
        self._metrics = PeerMetrics(CollectorRegistry(), version())
        seconds = settings.join_timeout_seconds or None
        enrolled = enrol(settings, self._identity, self._shutdown, self._metrics, seconds)
        self._manifest = enrolled.manifest
        logs.bind(run_id=self._manifest.run_id)
        device = self._device()
        promised = self._take_up(self._build_model(device), device)
        self._go_online(enrolled, promised)
        assert self._online is not None
        log.info(
            "peer started",
            maddrs=self._online.network.visible_maddrs or "none (client mode)",
            http=self._online.exposition.url if self._online.exposition else "off",
            parameters=self._store.layout.size,
            device=str(device),
        )

    def _device(self) -> torch.device:
        try:
            device = choose_device(self._settings.device)
        except RuntimeError as error:
            raise DeviceError(f"--device {self._settings.device}: {error}; choose another or cpu") from error
        limit_threads(self._settings.threads)
        return device

    def _build_model(self, device: torch.device) -> torch.nn.Module:
        settings, manifest = self._settings, self._manifest
        trusted = settings.trust_remote_code
        parameters = count_parameters(manifest, trusted)
        check_machine(manifest, parameters, settings.data_dir, settings.checkpoints_kept, device)
        self._journal = Journal(settings.data_dir, manifest.run_id)
        model = build_model(manifest, trust_remote_code=trusted)
        check_vocabulary(model, open_tokenizer(manifest).vocabulary_size)
        self._validation = validation_batches(manifest)
        return model

    def _take_up(self, model: torch.nn.Module, device: torch.device) -> Ballot | None:
        """Where this peer was, or the beginning; returns what it had promised."""
        settings, manifest = self._settings, self._manifest
        optimizer = outer_optimizer(manifest.outer)
        self._store = Store(manifest.run_id, Layout.of(model), read_parameters(model), optimizer)
        folder, kept = run_folder(settings.data_dir, manifest.run_id), settings.checkpoints_kept
        checkpoints = Checkpoints(folder, manifest.run_id, self._store.layout, self._store.slot_names, kept)
        checkpoints.open(manifest.canonical())
        reader = settings.data_shard or self._identity.peer_id
        resumption = Resumption(checkpoints, self._store, self._metrics, self._journal, reader)
        work, promised = resumption.take_up()
        stream = open_stream(manifest, self._identity.peer_id, cursor_of(work), data_shard=settings.data_shard)
        self._batches = Prefetcher(stream)
        self._trainer = Trainer(manifest, model, TASKS[manifest.task].loss, self._batches, device)
        # Dropout and the like: another sequence for every peer, the same one for whoever repeats a run.
        torch.manual_seed(int.from_bytes(sha256(f"{manifest.seed}:{reader}".encode()).digest()[:8], "big"))
        self._trainer.load(self._store.committed.parameters)
        if work is not None:
            self._trainer.load_work(work)
        self._resumption = resumption
        return promised

    def _go_online(self, enrolled: Run, promised: Ballot | None) -> None:
        self._loop = LoopThread()
        self._shutdown.on_force(self._kill_children)
        online = Online(
            self._settings, enrolled, self._store, self._metrics, lambda: self._phase, self._status, self._fail
        )
        online.promised = promised
        self._loop.run(online.start(self._identity, version()), timeout=60.0)
        self._online = online
        logs.tame()
        self._event(Event.NETWORKED)
        self._loop.call(lambda: online.network.spawn(self._watch_p2pd(online)))

    async def _watch_p2pd(self, online: Online) -> None:
        await online.network.died.wait()
        self._fail(NetworkError("p2pd ended unexpectedly; see the lines above, and start the peer again"))

    def _fail(self, error: WaggleError) -> None:
        """Ends the peer, in order, with this error; from any thread."""
        if not self._shutdown.requested:  # whoever was asked to leave before leaves in order
            self._failure = error
        self._shutdown.request(str(error).partition(";")[0])

    # -- main loop -------------------------------------------------------------------------------------------

    def main_loop(self) -> None:
        """One outer step after the other."""
        self._join()
        while not self._shutdown.requested and not self._finished:
            if self._up_to_date():
                self._outer_step()
        self._wait_for_the_others()
        if not self._shutdown.requested:
            self._shutdown.request("all outer steps done")
        elif self._failure is not None:
            raise self._failure

    def _wait_for_the_others(self) -> None:
        """Who missed our last commit needs somebody to get it from: all may be about to leave."""
        assert self._online is not None
        deadline = time.monotonic() + _FAREWELL_SECONDS
        while not self._shutdown.requested and time.monotonic() < deadline:
            if not self._loop.run(self._online.watch.look(), timeout=30.0).missing:
                return
            self._shutdown.wait(_LOOK_SECONDS)

    @property
    def _finished(self) -> bool:
        most = self._settings.max_outer_steps
        return most is not None and self._store.head.outer_step >= most

    def _join(self) -> None:
        assert self._online is not None
        network, seconds = self._online.network, self._settings.join_timeout_seconds
        joined = self._loop.submit(network.wait_joined(seconds or None))
        self._wait(joined)
        joined.cancel()
        if not self._shutdown.requested:
            if not network.joined:
                raise NetworkError(
                    f"initial_peers: none answered within {seconds:g} s ({', '.join(self._settings.initial_peers)}); "
                    "see that one of them runs and that no firewall stands between, or ask for a newer address"
                )
            network.clock.check()
            self._loop.run(self._online.watch.look(), timeout=30.0)

    def _up_to_date(self) -> bool:
        """Whether our state is the swarm's; if not, tries to get it."""
        assert self._online is not None
        watch = self._online.watch
        fresh = self._phase in (Phase.JOINING, Phase.DOWNLOADING)
        if not (watch.lagging or (fresh and self._online.behind)):
            if fresh:
                self._event(Event.CURRENT)
                if self._store.head.outer_step == 0:  # whoever joins later has a swarm to keep up with
                    self._validate()
            return True
        if self._phase is not Phase.DOWNLOADING:
            self._event(Event.LAGGING)
        catching = self._loop.submit(self._online.catch_up())
        self._wait(catching)
        if self._shutdown.requested:
            catching.cancel()
        elif catching.result():
            self._trainer.load(self._store.committed.parameters)
            head = self._store.head
            self._metrics.at_step(head.outer_step)
            self._journal.write("download", outer_step=head.outer_step, digest=head.digest, work=head.work)
        elif self._online.behind:
            self._shutdown.wait(_AGAIN_SECONDS)
        return False

    def _outer_step(self) -> None:
        """Local work and one attempt at a commit. What was worked stays for the next attempt unless it counted."""
        online = self._online
        assert online is not None
        attempt = self._loop.run(online.rounds.attempt(), timeout=10.0)
        rounds = self._loop.submit(online.rounds.run(attempt))
        began = time.monotonic()
        self._work(attempt, rounds)
        if not self._shutdown.requested and not rounds.done():
            self._loop.submit(online.hand_in(attempt, self._contribution()))
            self._event(Event.CALLED)
            if self._manifest.round.overlap:
                self._work_ahead(rounds)
        self._await(rounds)
        result = rounds.result() if rounds.done() and not rounds.cancelled() else None
        if result is None:
            rounds.cancel()
            result = RoundResult(False, self._store.head.outer_step, 0, "cancelled")
        self._conclude(attempt, result, time.monotonic() - began)

    def _work(self, attempt: Attempt, rounds: Future[RoundResult]) -> None:
        """Inner steps until there are enough, the swarm calls, or the attempt is over without us."""
        attempt.report(self._trainer.contributed)
        while not (self._trainer.done or attempt.called.is_set() or self._interrupted(rounds)):
            self._inner_step()
            attempt.report(self._trainer.contributed)

    def _work_ahead(self, rounds: Future[RoundResult]) -> None:
        """Inner steps for the next contribution while the round for this one is under way, but no more than it takes.

        When the commit comes in the middle of them they go on, from the new committed state.
        """
        while not (self._trainer.full or self._interrupted(rounds)):
            self._inner_step()

    def _interrupted(self, rounds: Future[RoundResult]) -> bool:
        assert self._online is not None
        return rounds.done() or self._shutdown.requested or self._online.watch.lagging

    def _inner_step(self) -> None:
        waited, before = self._batches.wait_seconds, self._trainer.examples
        self._trainer.inner_step()
        self._metrics.worked(self._trainer.examples - before, self._batches.wait_seconds - waited)

    def _contribution(self) -> LocalResult:
        """Our part of the mean; nothing where it is not finite, as no groupmate would take it."""
        result = self._trainer.hand_in()
        reason = check_values(result.contribution) if result.examples else ""
        if not reason and (result.examples == 0 or math.isfinite(result.loss)):
            return result
        self._metrics.refused(self._identity.peer_id, reason or "non-finite")
        log.warning("local work is not finite and is dropped", examples=result.examples, loss=result.loss)
        self._trainer.forget_inner_state()
        self._trainer.load(self._store.committed.parameters)
        return self._trainer.hand_in()

    def _await(self, rounds: Future[RoundResult]) -> None:
        """Waits for the attempt, shows why it has to wait itself, and gives up when the swarm has gone on."""
        assert self._online is not None
        while not self._wait(rounds, _LOOK_SECONDS):
            waiting = bool(self._metrics.waiting_for)
            if waiting and self._phase is Phase.AVERAGING:
                self._event(Event.WAITING)
            elif not waiting and self._phase is Phase.PAUSED:
                self._event(Event.RESUMED)
                self._event(Event.CALLED)
            if self._online.watch.lagging:
                return
        if self._leaving.done() and not rounds.done():
            futures.wait([rounds], timeout=_FINISH_SECONDS if self._phase is Phase.AVERAGING else 0.0)

    def _wait(self, future: Future[Any], timeout: float | None = None) -> bool:
        """Waits for ``future`` or for being asked to leave; whether either came within ``timeout`` seconds."""
        return bool(futures.wait([future, self._leaving], timeout, futures.FIRST_COMPLETED).done)

    def _conclude(self, attempt: Attempt, result: RoundResult, seconds: float) -> None:
        assert self._online is not None
        self._metrics.waiting("")
        self._last_commit = time.time() if result.committed else self._last_commit
        local = attempt.work.result() if attempt.work.done() and not attempt.work.cancelled() else None
        loss = local.loss if local is not None else math.nan
        self._metrics.round_ended(result, loss, self._last_commit)
        if self._shutdown.requested and not result.committed:
            return
        if self._phase is Phase.PAUSED:
            self._event(Event.RESUMED)
        if result.committed:
            self._committed(result, loss, seconds)
        elif result.reason in ("behind", "digest") or self._online.watch.lagging:
            self._event(Event.LAGGING)
        elif result.reason == "full":
            log.info("the group has no seat left; waiting for one", max_group_size=self._manifest.round.max_group_size)
            self._metrics.waiting("full")
            self._event(Event.WAITING)
            self._shutdown.wait(5 * _AGAIN_SECONDS)
            self._event(Event.RESUMED)
        elif self._phase is Phase.AVERAGING:
            self._event(Event.ABORTED)

    def _committed(self, result: RoundResult, loss: float, seconds: float) -> None:
        assert self._online is not None
        if self._phase is Phase.TRAINING:  # our attempt was still to be called when we were asked to leave
            self._event(Event.CALLED)
        self._event(Event.COMMITTED)
        self._loss = loss if math.isfinite(loss) else self._loss
        self._online.group_size = result.group_size
        link = self._store.history.certificates[-1].link
        self._metrics.at_step(link.outer_step)
        self._loop.call(self._online.watch.hurry)
        self._journal.write(
            "commit", outer_step=link.outer_step, previous=link.previous, digest=link.digest,
            participants=dict(link.participants), work=link.work, isolated=link.isolated, loss=loss,
            group_size=result.group_size, seconds=round(seconds, 3), refused=dict(result.refused),
            stages={stage: round(value, 4) for stage, value in asdict(result.times).items()},
        )  # fmt: skip
        log.info(
            "committed", outer_step=link.outer_step, digest=link.digest[:16], group_size=result.group_size,
            loss=round(loss, 4), seconds=round(seconds, 2),
        )  # fmt: skip
        self._trainer.commit(self._store.committed.parameters, result.residual, counted=result.counted)
        if link.outer_step % self._manifest.validation.every == 0 or self._finished:
            self._validate()
        if link.outer_step % self._settings.checkpoint_every == 0:
            self._resumption.save(self._trainer)

    def _validate(self) -> None:
        if not self._validation or self._shutdown.requested:
            return
        self._validation_loss = self._trainer.validate(self._validation)
        self._metrics.validated(self._validation_loss)
        head = self._store.head
        self._journal.write("validation", outer_step=head.outer_step, digest=head.digest, loss=self._validation_loss)
        log.info("validated", outer_step=head.outer_step, loss=round(self._validation_loss, 4))

    # -- shutdown --------------------------------------------------------------------------------------------

    def _asked_to_leave(self) -> None:
        self._leaving.set_result(None)
        if self._shutdown.signalled:
            timer = threading.Timer(_BUSY_SECONDS, self._leave_behind)
            timer.daemon = True
            timer.start()

    def _leave_behind(self) -> None:
        """Leaves without the main thread, which is in something long: an inner step of a large model, a download."""
        with self._stopping:  # whatever the main thread comes to meanwhile, it ends waiting for us in ``shutdown``
            if self._phase in (Phase.LEAVING, Phase.STOPPED):
                return
            log.warning("leaving in the middle of something", phase=self._phase.value)
            self._busy = True
            self.shutdown()
            sys.stderr.flush()
            os._exit(ExitCode.OK)

    def shutdown(self) -> None:
        """Leaves in order: the network, in a bounded time, and the state. Once, from whichever thread."""
        with self._stopping:
            if self._phase is not Phase.STOPPED:
                self._stop()

    def _stop(self) -> None:
        self._event(Event.LEAVE)
        in_order = True
        if self._online is not None:
            self._write_last_line()
            try:
                self._loop.run(self._online.stop(_DRAIN_SECONDS), timeout=_GOODBYE_SECONDS)
            except futures.TimeoutError:
                log.warning("leaving without a proper goodbye")
                in_order = False
                self._kill_children()
        if hasattr(self, "_loop"):
            self._loop.stop(timeout=1.0)
        if hasattr(self, "_batches"):
            self._batches.close()
        if self._online is not None:
            rounds = self._online.rounds
            remembers = in_order and rounds.accepted is None  # no vote of ours is under way
            self._resumption.leave(self._trainer, busy=self._busy, promised=rounds.promised, remembers=remembers)
        if hasattr(self, "_journal"):
            self._journal.close()
        self._event(Event.STOPPED)

    def _write_last_line(self) -> None:
        assert self._online is not None
        status = self._status(self._online)
        fields = ("peer_id", "outer_step", "digest", "examples", "bytes_sent", "bytes_received", "processes")
        try:
            self._journal.write("stop", reason=self._shutdown.reason, **{name: status[name] for name in fields})
        except StateError as error:  # the others are told goodbye all the same
            log.warning("the journal lacks its last line", why=str(error))

    def _kill_children(self) -> None:
        if self._online is not None:
            self._online.network.kill()

    # -- seeing ----------------------------------------------------------------------------------------------

    def _event(self, event: Event) -> None:
        self._phase = next_phase(self._phase, event)
        if hasattr(self, "_metrics"):
            self._metrics.phase(self._phase)
        if self._online is not None and self._phase not in (Phase.LEAVING, Phase.STOPPED):
            self._loop.call(self._online.watch.hurry)

    def _status(self, online: Online) -> dict[str, Any]:
        head = self._store.head
        return {
            "run_id": self._manifest.run_id,
            "author": self._manifest.author,
            "peer_id": self._identity.peer_id,
            "maddrs": online.network.visible_maddrs,
            "phase": self._phase.value,
            "waiting": self._metrics.waiting_for,
            "outer_step": head.outer_step,
            "swarm_outer_step": max(head.outer_step, online.watch.view.outer_step),
            "digest": head.digest,
            "work": head.work,
            "inner_steps": self._trainer.inner_steps,
            "examples": self._metrics.examples,
            "examples_per_second": round(self._metrics.examples_per_second, 2),
            "loss": self._loss,
            "validation_loss": self._validation_loss,
            "peers": online.watch.view.peers,
            "group_size": online.group_size,
            "last_commit_timestamp": self._last_commit,
            "clock_offset_seconds": online.network.clock.offset,
            "bytes_sent": self._metrics.sent,
            "bytes_received": self._metrics.received,
            "processes": 1 + len(psutil.Process().children(recursive=True)),
            "version": version(),
        }
