"""Fault x stage of a round: honest peers commit the right mean, or nothing, never two different things; and go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio
import torch

from peer.rounds.messages import Chunk, MeanChunk, Part
from peer.values import Stage
from swarm.identity import PeerId
from swarm.wire import Message
from tests.evil import SlowCodec, no_check
from tests.harness import agreed
from tests.stand import DEADLINES, EXAMPLES, PEERS, Stand, stand, timed

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with stand(tmp_path_factory.mktemp("faults")) as made:
        yield made


# -- death ---------------------------------------------------------------------------------------------------------

STAGES = [stage for stage in Stage if stage is not Stage.COMMITTED]
DEATHS = [
    *(("client", stage) for stage in (Stage.READY, Stage.GROUPED, Stage.SCATTERED, Stage.VOTED)),  # it reduces nothing
    *((role, stage) for role in ("leader", "reducer") for stage in STAGES),
]


@pytest.mark.parametrize(("role", "stage"), DEATHS, ids=[f"{role}-{stage.value}" for role, stage in DEATHS])
async def test_death(shared: Stand, role: str, stage: Stage) -> None:
    async def run() -> None:
        await shared.ready(client=role == "client")
        victim = shared.culprit
        if role != "client":
            await shared.until_leading(victim, role == "leader")
        now = (stage, victim.store.head.outer_step)
        victim.recorder.hook = lambda reached, step: victim.kill() if (reached, step) == now else None
        honest = shared.honest
        async with shared.alongside(shared.given[victim.peer_id]):
            await shared.commit(honest)
            await victim.recorder.until(lambda _: victim.dead)
        link = await shared.commit(honest)
        assert victim.peer_id not in link.participants

    await timed(run())


# -- too slow ------------------------------------------------------------------------------------------------------


async def others_commit(shared: Stand) -> None:
    """The honest ones commit twice while the culprit is held, and hold nothing against each other."""
    async with shared.alongside(shared.given[shared.culprit.peer_id]):
        await shared.commit(shared.honest)
        await shared.commit(shared.honest)
    for one in shared.honest:
        assert not [other for other in shared.honest if one.rounds.absences.benched(other.peer_id)]


@pytest.mark.parametrize("stage", [Stage.READY, Stage.RECEIVED, Stage.GATHERED], ids=lambda stage: stage.value)
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_slow_at_a_stage(shared: Stand, role: str, stage: Stage) -> None:
    async def run() -> None:
        await shared.ready()
        culprit = shared.culprit
        await shared.until_leading(culprit, role == "leader")
        now = (stage, culprit.store.head.outer_step)
        go_on = asyncio.Event()
        culprit.recorder.hook = lambda reached, step: go_on.wait() if (reached, step) == now else None
        await others_commit(shared)
        assert now in culprit.recorder.stages
        go_on.set()

    await timed(run())


@pytest.mark.parametrize("role", ["leader", "member"])
async def test_slow_sender(shared: Stand, role: str) -> None:
    async def run() -> None:
        await shared.ready()
        await shared.until_leading(shared.culprit, role == "leader")
        slow = SlowCodec()
        # It does not give up by itself at the moment when the others give up on it, and has threads left to average in.
        workers = ThreadPoolExecutor(2 * PEERS)
        patient = replace(DEADLINES, exchange=2 * DEADLINES.exchange)
        shared.turn(codec=slow, deadlines=patient, workers=workers)
        try:
            await others_commit(shared)
        finally:
            slow.go.set()  # its threads are waiting
            workers.shutdown(wait=False)
        assert (shared.culprit.peer_id, "deadline") in shared.refusals()

    await timed(run())


# -- bad contributions ---------------------------------------------------------------------------------------------


def spoiled(values: torch.Tensor, where: int, value: float) -> torch.Tensor:
    """With one bad value in every part: the culprit's own part is nobody else's to refuse."""
    part = len(values) // PEERS
    values = values.clone()
    values[where % part :: part] = value
    return values


@dataclass(frozen=True)
class Fault:
    """What is wrong with a contribution.

    reason: under which it is refused. contribution: what the culprit gives instead of its own. examples: its weight.
    encode: what its codec makes of the honest bytes. frame: what it puts on the wire in place of a chunk. longer: by
    how many values it says that its part is longer than it should be.
    """

    name: str
    reason: str
    contribution: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    examples: int = EXAMPLES
    encode: Callable[[bytes], bytes] = bytes
    frame: bytes = b""
    longer: int = 0


FAULTS = [
    Fault("longer", "shape", longer=8),
    Fault("shorter", "shape", longer=-8),
    Fault("nan", "non-finite", lambda one: spoiled(one, 17, torch.nan)),
    Fault("infinity", "non-finite", lambda one: spoiled(one, -1, torch.inf)),
    Fault("huge-norm", "norm", lambda one: one * 1e6),
    Fault("huge-value", "norm", lambda one: spoiled(one, 500, 3e38)),
    Fault("absurd-weight", "weight", examples=10**12),
    Fault("one-too-many", "weight", examples=100_001),
    Fault("garbage-values", "non-finite", encode=lambda honest: b"\xff" * len(honest)),
    Fault("garbage-short", "shape", encode=lambda honest: b"garbage"),
    Fault("garbage-none", "shape", encode=lambda honest: b""),
    Fault("garbage-frame", "malformed", frame=b"\xff" * 64),
    Fault("garbage-header", "malformed", frame=b"\0\0\0\1\0\0\0\0\xc1"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_bad_contribution(shared: Stand, role: str, fault: Fault) -> None:
    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes] | bytes:
        if isinstance(message, Part):
            message = message.model_copy(update={"values": message.values + fault.longer})
        return fault.frame if fault.frame and isinstance(message, Chunk) else (message, payload)

    async def run() -> None:
        await shared.ready()
        culprit, honest = shared.culprit.peer_id, shared.honest
        await shared.until_leading(shared.culprit, role == "leader")
        bad = fault.contribution(shared.given[culprit])
        shared.turn(check=no_check, max_examples=10**15)
        shared.hand.encode, shared.hand.tamper = (lambda values, encoded: fault.encode(encoded)), tamper
        async with shared.alongside(bad, fault.examples):
            for _ in range(2):
                link = await shared.commit(honest)
                assert culprit not in link.participants
        assert (culprit, fault.reason) in shared.refusals()
        assert not [refusal for refusal in shared.refusals() if refusal[0] != culprit]

    await timed(run())


@pytest.mark.parametrize("fault", ["non-finite", "weight", "shape"])
async def test_own_gate_keeps_a_bad_contribution_home(shared: Stand, fault: str) -> None:
    async def run() -> None:
        await shared.ready()
        peer, peers = shared.culprit, shared.swarm.live
        good = shared.given[peer.peer_id]
        wrong = {"non-finite": spoiled(good, 3, torch.nan), "weight": good, "shape": good[:-1]}[fault]
        weights = {one.peer_id: EXAMPLES for one in peers}
        weights[peer.peer_id] = shared.swarm.max_examples + 1 if fault == "weight" else EXAMPLES
        results = await shared.swarm.step({**shared.given, peer.peer_id: wrong}, weights)
        assert all(result.committed for result in results)  # it still votes, with nothing to give
        link = peer.store.history.certificates[-1].link
        assert len(link.participants) == PEERS
        assert link.participants[peer.peer_id] == 0
        assert peer.recorder.refusals == [(peer.peer_id, fault)]
        assert not shared.refusals()
        agreed(peers)

    await timed(run())


# -- reducers that lie ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("garbage", [lambda honest: b"\xff" * len(honest), lambda honest: b"x"], ids=["nan", "short"])
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_garbage_mean(shared: Stand, role: str, garbage: Callable[[bytes], bytes]) -> None:
    async def run() -> None:
        await shared.ready()
        culprit, honest = shared.culprit.peer_id, shared.honest
        await shared.until_leading(shared.culprit, role == "leader")
        own = shared.given[culprit]

        def encode(values: torch.Tensor, encoded: bytes) -> bytes:
            ours = values.untyped_storage().nbytes() == own.untyped_storage().nbytes()  # a piece of the contribution
            return encoded if ours else garbage(encoded)

        shared.hand.encode = encode
        async with shared.alongside(own):
            link = await shared.commit(honest)
        assert culprit not in link.participants
        assert all(peer.rounds.absences.benched(culprit) for peer in honest)
        assert not [one for peer in honest for one in honest if peer.rounds.absences.benched(one.peer_id)]

    await timed(run())


@pytest.mark.parametrize("role", ["leader", "member"])
async def test_a_mean_of_its_own_for_one_peer(shared: Stand, role: str) -> None:
    """A reducer sends one member another mean than the rest: no two digests may be committed."""

    async def run() -> None:
        await shared.ready()
        await shared.until_leading(shared.culprit, role == "leader")
        victim = shared.honest[1]
        deceived = asyncio.Event()

        def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
            if peer == victim.peer_id and isinstance(message, MeanChunk):
                deceived.set()
                payload = payload[:2] + bytes([payload[2] ^ 64]) + payload[3:]  # the first value, by a quarter
            return message, payload

        shared.hand.tamper = tamper
        others = [peer for peer in shared.swarm.live if peer is not victim]
        deceiving = asyncio.ensure_future(victim.outer_step(shared.given[victim.peer_id], EXAMPLES))
        results = await shared.swarm.step(shared.given, EXAMPLES, others)
        assert all(result.committed for result in results)
        result = await deceiving
        assert deceived.is_set()
        assert (result.committed, result.reason) == (False, "behind")
        shared.hand.rest()
        assert await victim.catch_up([others[0].peer_id])
        shared.swarm.see()
        assert len({peer.store.head for peer in shared.swarm.live}) == 1
        agreed(shared.swarm.live)
        await shared.commit(shared.swarm.live)

    await timed(run())
