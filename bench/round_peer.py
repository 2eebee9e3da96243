"""A peer of bench/goodput.py and bench/starts.py: real network, watch, store and rounds around a vector of parameters.

Reads one JSON object per line and answers each with one:

    {"do": "start", "parameters": 10000000, "codec": "fp32", "peers": 4, "address": "10.77.0.1", "initial_peers": []}
        a new key, p2pd and DHT, whatever ran before; without importing anything again
    {"do": "joined"}    when it sees all other peers
    {"do": "round", "work_seconds": 1.0}    sits down, hands in after so long, until it has committed
"""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from bench.tables import Row
from bench.usage import Usage, warnings_only
from peer.layout import Layout
from peer.optimizers import outer_optimizer
from peer.progress import SwarmView
from peer.rounds.assembly import Terms
from peer.rounds.codec import CODECS
from peer.rounds.context import Context, Deadlines
from peer.rounds.rounds import Rounds
from peer.state.store import Store
from peer.twin import Twin
from peer.values import LocalResult, RoundResult, Stage
from peer.watch import Watch
from swarm.identity import Identity, PeerId
from swarm.network import Network, SilentObserver
from swarm.optimizer import Optimizer
from swarm.p2pd import P2PDOptions
from swarm.records import PeerRecord

RUN_ID = "bench@0123456789abcdef"
PATIENCE_SECONDS = 600.0
CHUNK_BYTES = 1500
"""A message of a round this long, after the group formed, is a chunk of a contribution."""
_TRIES = 5


class Meter(SilentObserver):
    """Listens to the network and to the rounds: bytes by purpose, and when each stage of an attempt was reached.

    Times are of the monotonic clock, which all processes of a machine share.
    """

    def __init__(self) -> None:
        self.marks: dict[str, float] = {}
        self.bytes: Counter[str] = Counter()
        self.refusals: list[str] = []

    async def reached(self, stage: Stage, outer_step: int) -> None:
        """See peer.rounds.context.Listener."""
        self.marks[stage.value] = time.monotonic()
        if stage is Stage.GROUPED:  # of another attempt, perhaps
            for name in ("first_sent", "first_received"):
                self.marks.pop(name, None)

    def refused(self, peer: PeerId, reason: str) -> None:
        """See Listener."""
        self.refusals.append(reason)

    def waiting(self, reason: str) -> None:
        """See Listener."""

    def traffic(self, purpose: str, direction: str, count: int) -> None:
        """See swarm.network.NetworkObserver."""
        self.bytes[f"{purpose}_{direction}"] += count
        if purpose == "round" and count >= CHUNK_BYTES and Stage.GROUPED.value in self.marks:
            self.marks.setdefault(f"first_{direction}", time.monotonic())


class RoundPeer:
    """One life of a peer, from a cold start to ``stop``."""

    def __init__(self, order: Row):
        self._order = order
        self.meter = Meter()
        self._view, self._session = SwarmView(), secrets.token_hex(8)
        self._network: Network
        self._store: Store
        self._rounds: Rounds
        self._watch: Watch
        self._contribution: torch.Tensor
        self._memory: int | None = None

    async def start(self, folder: Path) -> Row:
        """Everything, cold: how long that took, and where it can be found."""
        order, began = self._order, time.monotonic()
        identity = Identity.load_or_create(folder / f"{secrets.token_hex(8)}.key")
        options = P2PDOptions(identity.path, host_maddrs=(f"/ip4/{order['address']}/tcp/0",))
        self._network = await Network.start(identity, options, order["initial_peers"], self.meter)
        parameters = int(order["parameters"])
        optimizer = outer_optimizer(Optimizer(optimizer="sgd", learning_rate=1.0))
        self._store = Store(RUN_ID, Layout((("weight", (parameters,)),)), torch.ones(parameters), optimizer)
        seconds, peers = float(order.get("deadline_seconds", PATIENCE_SECONDS)), int(order["peers"])
        terms = Terms(peers, peers, None, patience_seconds=seconds, assemble_seconds=seconds, isolation_seconds=seconds)
        context = Context(
            run_id=RUN_ID, identity=identity, network=self._network, ledger=self._store,
            codec=CODECS[order["codec"]](), terms=terms, deadlines=Deadlines(exchange=seconds, commit=seconds),
            listener=self.meter, max_examples=1000, max_norm_ratio=20.0, parameters=parameters,
            residual=order["codec"] == "sparse",
        )  # fmt: skip
        self._rounds = Rounds(context, self._store.commit)
        twin = Twin(self._session, time.time(), lambda error: None)
        self._watch = Watch(RUN_ID, self._network, self._record, lambda: self._store.head, self._seen, twin)
        await self._rounds.start()
        await self._network.wait_joined(None)
        self._network.spawn(self._watch.run())
        self._contribution = 0.01 * torch.randn(parameters)
        return {
            "peer_id": self._network.peer_id,
            "maddrs": self._network.visible_maddrs,
            "seconds": time.monotonic() - began,
        }

    def _record(self) -> PeerRecord:
        head = self._store.head
        return PeerRecord(
            peer_id=self._network.peer_id, maddrs=list(self._network.maddrs), phase="training",
            outer_step=head.outer_step, digest=head.digest, work=head.work, group_size=0, client_mode=False,
            version="bench", session=self._session, started=0.0,
        )  # fmt: skip

    def _seen(self, view: SwarmView) -> None:
        self._view = view
        self._rounds.see(view.companions)

    async def joined(self) -> Row:
        """Waits until all others are seen at our head."""
        began = time.monotonic()
        while len(self._view.companions) < int(self._order["peers"]) - 1:
            await self._watch.look()
            await asyncio.sleep(0.05)
        return {"seconds": time.monotonic() - began}

    async def round(self, order: Row) -> Row:
        """One outer step: what it took of everything."""
        meter = self.meter
        meter.marks, meter.refusals = {}, []
        contribution = self._contribution.clone()  # local work's, not the round's
        usage, before = Usage((self._network.p2pd_pid,), self._memory), Counter(meter.bytes)
        self._memory = usage.memory  # that of before the first round, with its contribution
        began = time.monotonic()
        results = []
        for attempt in range(_TRIES):
            results.append(await self._attempt(contribution, float(order["work_seconds"]) if not attempt else 0.0))
            if results[-1].committed:
                break
            contribution = self._contribution.clone()  # the round has written over the other
        self._watch.hurry()
        head = self._store.head
        return {
            "began": began,
            "marks": meter.marks,
            "bytes": {name: count - before[name] for name, count in meter.bytes.items()},
            "outer_step": head.outer_step,
            "digest": head.digest,
            "committed": results[-1].committed,
            "aborts": [result.reason for result in results if not result.committed],
            "refusals": meter.refusals,
            "group_size": results[-1].group_size,
            "codec_seconds": results[-1].times.codec,
            **usage.since(),
        }

    async def _attempt(self, contribution: torch.Tensor, work_seconds: float) -> RoundResult:
        attempt = await self._rounds.attempt()
        running = asyncio.ensure_future(self._rounds.run(attempt))
        await asyncio.wait([running], timeout=work_seconds)  # paced local work
        attempt.report(1)
        attempt.finish(LocalResult(contribution, 1, 1, 1.0))
        return await running

    async def stop(self) -> Row:
        """Ends this life."""
        await self._network.stop()
        return {}


async def main() -> None:
    """Does what it is told, until the end of standard input."""
    peer: RoundPeer | None = None
    with tempfile.TemporaryDirectory(prefix="waggle-round-peer-") as folder:
        try:
            while line := await asyncio.to_thread(sys.stdin.readline):
                order = json.loads(line)
                answer: Row
                if order["do"] == "start":
                    if peer is not None:
                        await peer.stop()
                    peer = RoundPeer(order)
                    answer = await peer.start(Path(folder))
                else:
                    assert peer is not None, "start comes first"
                    answer = await (peer.joined() if order["do"] == "joined" else peer.round(order))
                print(json.dumps(answer), flush=True)
        finally:
            if peer is not None:
                await peer.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings_only()
    asyncio.run(main())
