"""Fault x stage of a round: honest peers commit the right mean, or nothing, never two different things; and go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.rounds.assembly import Terms
from peer.rounds.codec import Float32Codec
from peer.rounds.context import Deadlines
from peer.rounds.messages import (
    PART_PROTOCOL,
    ROUND_PROTOCOL,
    Accepted,
    Chunk,
    Committed,
    Denied,
    Group,
    Include,
    Join,
    MeanEnd,
    Part,
    Refused,
    Seated,
)
from peer.state.transfer import STATE_PROTOCOL
from peer.values import Stage
from swarm.history import Ballot, Link
from swarm.identity import Identity, PeerId
from swarm.network import Network
from swarm.p2pd import P2PDOptions
from swarm.wire import Message
from tests.evil import EvilCodec, SlowCodec, Tap, no_check, shout
from tests.harness import RoundPeer, Swarm, agreed, bound, swarm

PEERS = 4
EXAMPLES = 10
SECONDS = 60.0
DEADLINES = Deadlines(exchange=2.0, commit=2.5, seat=2.0, alive=0.3, silence=2.0)
TERMS = Terms(
    min_group_size=2,
    max_group_size=PEERS,  # so that the first group does not wait for more
    target_batch=None,
    patience_seconds=2.0,
    assemble_seconds=3.0,
    isolation_seconds=60.0,
)
STAGES = [stage for stage in Stage if stage is not Stage.COMMITTED]
DEATHS = [
    *((role, stage) for role in ("leader", "reducer") for stage in STAGES),
    *(("client", stage) for stage in (Stage.READY, Stage.GROUPED, Stage.SCATTERED, Stage.VOTED)),  # it reduces nothing
]


@contextlib.asynccontextmanager
async def peers(folder: Path, count: int = PEERS, parameters: int = 1000) -> AsyncIterator[Swarm]:
    async with swarm(folder, count, parameters=parameters, terms=TERMS, deadlines=DEADLINES) as made:
        yield made


def contributions(made: Swarm) -> dict[PeerId, torch.Tensor]:
    """One for each peer, all of about the same norm."""
    generator = torch.Generator().manual_seed(3)
    return {peer.peer_id: torch.randn(made.parameters, generator=generator) for peer in made.peers}


async def commit(made: Swarm, peers: list[RoundPeer], given: Mapping[PeerId, torch.Tensor]) -> Link:
    """``peers`` commit one outer step, and what they commit is the mean over the link's participants."""
    before = {peer.peer_id: peer.parameters for peer in peers}
    step = peers[0].store.head.outer_step
    results = await made.step(given, EXAMPLES, peers)
    assert all(result.committed for result in results), [result.reason for result in results]
    links = [peer.store.history.certificates[-1].link for peer in peers]
    assert {link.hash() for link in links} == {links[0].hash()}
    assert links[0].outer_step == step + 1
    total = sum(links[0].participants.values())
    mean = sum(given[peer].double() * weight for peer, weight in links[0].participants.items() if weight) / total
    for peer in peers:
        torch.testing.assert_close(before[peer.peer_id].double() - peer.parameters.double(), mean, rtol=0, atol=1e-5)
    agreed(peers)
    return links[0]


@contextlib.asynccontextmanager
async def alongside(peer: RoundPeer, contribution: torch.Tensor, examples: int = EXAMPLES) -> AsyncIterator[None]:
    """The culprit takes part meanwhile; how it fares does not matter."""

    async def take_part() -> None:
        for _ in range(3):
            with contextlib.suppress(AssertionError):  # it may have committed in between
                await peer.step_until_committed(contribution, examples)

    task = asyncio.ensure_future(take_part())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_leading(made: Swarm, culprit: RoundPeer, place: int, given: Mapping[PeerId, torch.Tensor]) -> int:
    """Commits until ``culprit`` is at ``place`` in the order of leaders; returns the outer step where it is."""
    while made.ordered(culprit.store.head.outer_step)[place] is not culprit or not culprit.store.head.outer_step:
        await commit(made, made.peers, given)
    return culprit.store.head.outer_step


# -- death ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "stage"), DEATHS, ids=[f"{role}-{stage.value}" for role, stage in DEATHS])
async def test_death(tmp_path: Path, role: str, stage: Stage) -> None:
    async def run() -> None:
        async with peers(tmp_path, PEERS - (role == "client"), parameters=300_000) as made:
            if role == "client":
                await made.add(client=True)
                await made.meet()
            given = contributions(made)
            await commit(made, made.peers, given)
            order = made.ordered(1, [peer for peer in made.peers if peer.network.maddrs])
            victim = made.peers[-1] if role == "client" else order[0] if role == "leader" else order[-1]
            victim.recorder.hook = lambda reached, step: victim.kill() if (reached, step) == (stage, 1) else None
            honest = [peer for peer in made.peers if peer is not victim]
            async with alongside(victim, given[victim.peer_id]):
                await commit(made, honest, given)
                await victim.recorder.until(lambda _: victim.dead)
            link = await commit(made, honest, given)
            assert victim.peer_id not in link.participants

    await asyncio.wait_for(run(), SECONDS)


# -- too slow ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", [Stage.READY, Stage.RECEIVED, Stage.GATHERED], ids=lambda stage: stage.value)
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_slow_at_a_stage(tmp_path: Path, role: str, stage: Stage) -> None:
    async def run() -> None:
        async with peers(tmp_path) as made:
            given = contributions(made)
            await commit(made, made.peers, given)
            culprit = made.ordered(1)[0 if role == "leader" else -1]
            go_on = asyncio.Event()
            culprit.recorder.hook = lambda reached, step: go_on.wait() if (reached, step) == (stage, 1) else None
            await hold(made, culprit, given)
            go_on.set()

    await asyncio.wait_for(run(), SECONDS)


@pytest.mark.parametrize("role", ["leader", "member"])
async def test_slow_sender(tmp_path: Path, role: str) -> None:
    async def run() -> None:
        codec = SlowCodec()
        codec.go.set()
        async with peers(tmp_path, PEERS - 1) as made:
            culprit = await made.add(codec=codec)
            await made.meet()
            given = contributions(made)
            await until_leading(made, culprit, 0 if role == "leader" else -1, given)
            codec.go.clear()
            try:
                link = await hold(made, culprit, given)
            finally:
                codec.go.set()  # its threads are waiting
            assert culprit.peer_id not in link.participants

    await asyncio.wait_for(run(), SECONDS)


async def hold(made: Swarm, culprit: RoundPeer, given: Mapping[PeerId, torch.Tensor]) -> Link:
    """The others commit while the culprit is held, and again."""
    honest = [peer for peer in made.peers if peer is not culprit]
    async with alongside(culprit, given[culprit.peer_id]):
        link = await commit(made, honest, given)
        await commit(made, honest, given)
    for peer in honest:
        assert not [one for one in honest if peer.rounds.absences.benched(one.peer_id)]
    return link


# -- bad contributions ---------------------------------------------------------------------------------------------


@dataclass
class Switch:
    """Evil begins when a test says so: until then the peer is one of the honest."""

    on: bool = False


def spoiled(values: torch.Tensor, where: int, value: float) -> torch.Tensor:
    values = values.clone()
    values[where] = value
    return values


@dataclass(frozen=True)
class Fault:
    """What is wrong with a contribution.

    reason: under which it is refused. contribution: what the culprit gives instead. examples: its weight. encode:
    what its codec makes of values and honest bytes. send: what it puts on the wire for a chunk. changes: of its
    Context, so that it gets past its own gates.
    """

    name: str
    reason: str
    contribution: Callable[[torch.Tensor], torch.Tensor] = torch.clone
    examples: int = EXAMPLES
    encode: Callable[[bytes], bytes] = bytes
    send: bytes = b""
    changes: tuple[tuple[str, Any], ...] = (("check", no_check),)


FAULTS = [
    Fault("shape-longer", "shape", lambda one: torch.cat([one, one[:8]]), changes=(("parameters", 1008),)),
    Fault("shape-shorter", "shape", lambda one: one[:-8], changes=(("parameters", 992),)),
    Fault("nan", "non-finite", lambda one: spoiled(one, 17, torch.nan)),
    Fault("infinity", "non-finite", lambda one: spoiled(one, -1, torch.inf)),
    Fault("huge-norm", "norm", lambda one: one * 1e6),
    Fault("huge-value", "norm", lambda one: spoiled(one, 500, 3e38)),
    Fault("absurd-weight", "weight", examples=10**12, changes=(("max_examples", 10**15),)),
    Fault("weight-of-others", "weight", examples=100_001, changes=(("max_examples", 10**15),)),
    Fault("garbage-values", "non-finite", encode=lambda honest: b"\xff" * len(honest)),
    Fault("garbage-short", "shape", encode=lambda honest: b"garbage"),
    Fault("garbage-none", "shape", encode=lambda honest: b""),
    Fault("garbage-frame", "malformed", send=b"\xff" * 64),
    Fault("garbage-header", "malformed", send=b"\0\0\0\1\0\0\0\0\xc1"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_bad_contribution(tmp_path: Path, role: str, fault: Fault) -> None:
    switch = Switch()

    def encode(values: torch.Tensor, honest: bytes) -> bytes:
        return fault.encode(honest) if switch.on else honest

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes] | bytes:
        return fault.send if switch.on and fault.send and isinstance(message, Chunk) else (message, payload)

    async def run() -> None:
        async with peers(tmp_path, PEERS - 1) as made:
            culprit = await made.add(codec=EvilCodec(encode), wrap=partial(Tap, tamper=tamper))  # type: ignore[arg-type]
            await made.meet()
            given = contributions(made)
            await until_leading(made, culprit, 0 if role == "leader" else -1, given)
            turn_evil(culprit, fault)
            switch.on = True
            honest = [peer for peer in made.peers if peer is not culprit]
            async with alongside(culprit, fault.contribution(given[culprit.peer_id]), fault.examples):
                link = await commit(made, honest, given)
                assert culprit.peer_id not in link.participants
                link = await commit(made, honest, given)
                assert culprit.peer_id not in link.participants
            assert {(culprit.peer_id, fault.reason)} <= {one for peer in honest for one in peer.recorder.refusals}
            innocent = {peer.peer_id for peer in honest}
            assert not [one for peer in honest for one in peer.recorder.refusals if one[0] in innocent]

    await asyncio.wait_for(run(), SECONDS)


def turn_evil(culprit: RoundPeer, fault: Fault) -> None:
    """From its next attempt on."""
    for name, value in fault.changes:
        object.__setattr__(culprit.rounds.context, name, value)


@pytest.mark.parametrize("fault", ["nan", "weight", "shape"])
async def test_own_gate_keeps_a_bad_contribution_home(tmp_path: Path, fault: str) -> None:
    async def run() -> None:
        async with peers(tmp_path) as made:
            given, bad = contributions(made), made.peers[1]
            good = given[bad.peer_id]
            wrong = {"nan": spoiled(good, 3, torch.nan), "weight": good, "shape": good[:-1]}[fault]
            weights = {peer.peer_id: EXAMPLES for peer in made.peers}
            weights[bad.peer_id] = made.max_examples + 1 if fault == "weight" else EXAMPLES
            results = await made.step({**given, bad.peer_id: wrong}, weights)
            assert all(result.committed for result in results)  # it still votes, with nothing to give
            link = bad.store.history.certificates[-1].link
            assert link.participants[bad.peer_id] == 0
            assert bad.recorder.refusals == [(bad.peer_id, "non-finite" if fault == "nan" else fault)]
            assert not [one for peer in made.peers if peer is not bad for one in peer.recorder.refusals]
            agreed(made.peers)

    await asyncio.wait_for(run(), SECONDS)


# -- reducers that lie ---------------------------------------------------------------------------------------------


def garbage_mean(honest: bytes) -> bytes:
    return b"\xff" * len(honest)


@pytest.mark.parametrize("garbage", [lambda honest: b"\xff" * len(honest), lambda honest: b"x"], ids=["nan", "short"])
async def test_garbage_mean(tmp_path: Path, garbage: Callable[[bytes], bytes]) -> None:
    switch, own = Switch(), torch.zeros(0)

    def encode(values: torch.Tensor, honest: bytes) -> bytes:
        ours = values.untyped_storage().data_ptr() == own.untyped_storage().data_ptr()
        return garbage(honest) if switch.on and not ours else honest

    async def run() -> None:
        nonlocal own
        async with peers(tmp_path, PEERS - 1) as made:
            culprit = await made.add(codec=EvilCodec(encode))
            await made.meet()
            given = contributions(made)
            own = given[culprit.peer_id]
            await until_leading(made, culprit, -1, given)
            switch.on = True
            honest = [peer for peer in made.peers if peer is not culprit]
            async with alongside(culprit, own):
                link = await commit(made, honest, given)
            assert culprit.peer_id not in link.participants
            assert all(peer.rounds.absences.benched(culprit.peer_id) for peer in honest)

    await asyncio.wait_for(run(), SECONDS)


@pytest.mark.parametrize("role", ["leader", "member"])
async def test_a_mean_of_its_own_for_one_peer(tmp_path: Path, role: str) -> None:
    """A reducer sends one member another mean than the rest: no two digests may be committed."""
    victim, switch = "", Switch()

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
        if switch.on and peer == victim and isinstance(message, Chunk):
            payload = bytes([payload[0] ^ 1]) + payload[1:]
        return message, payload

    async def run() -> None:
        nonlocal victim
        async with peers(tmp_path, PEERS - 1) as made:
            culprit = await made.add(wrap=partial(Tap, tamper=tamper))  # type: ignore[arg-type]
            await made.meet()
            given = contributions(made)
            await until_leading(made, culprit, 0 if role == "leader" else -1, given)
            honest = [peer for peer in made.peers if peer is not culprit]
            # Only the stream on which the mean comes back is tampered with: the victim serves the other one.
            victim = honest[1].peer_id
            switch.on = True
            await made.step(given, EXAMPLES)
            switch.on = False
            assert any(peer.store.head.outer_step > honest[1].store.head.outer_step for peer in honest) or (
                len({peer.store.head for peer in honest}) == 1
            )
            agreed(made.peers)
            donors = [peer.peer_id for peer in honest if peer is not honest[1]]
            if honest[1].store.head != honest[0].store.head:
                assert await honest[1].catch_up(donors)
            made.see()
            await commit(made, made.peers, given)

    await asyncio.wait_for(run(), SECONDS)


# -- leaders that lie ----------------------------------------------------------------------------------------------


def reballoted(message: Message) -> Message:
    return (
        message.model_copy(update={"ballot": Ballot(number=(1 << 53) - 1, leader=message.ballot.leader)})
        if isinstance(message, Group)
        else message
    )  # type: ignore[attr-defined]


def reweighted(message: Message) -> Message:
    if not isinstance(message, Group):
        return message
    members = [one.model_copy(update={"examples": one.examples + 1}) for one in message.members]
    return message.model_copy(update={"members": members})


def without_order(message: Message) -> Message:
    return message.model_copy(update={"members": message.members[::-1]}) if isinstance(message, Group) else message


def finishing_nothing(message: Message) -> Message:
    if not isinstance(message, Group):
        return message
    link = Link(
        run_id="test@0123456789abcdef", outer_step=1, previous="0" * 64, digest="1" * 64,
        participants={message.ballot.leader: 1}, work=1,
    )  # fmt: skip
    return message.model_copy(update={"finish": link, "donors": [message.ballot.leader]})


def including_strangers(message: Message) -> Message:
    stranger = "12D3KooWQBpDDAHvPRSUbaV4B4ePzSGmVmhcyXAVFkbSBbtfC7mm"
    return message.model_copy(update={"peers": [*message.peers, stranger]}) if isinstance(message, Include) else message


def without_votes(message: Message) -> Message:
    if not isinstance(message, Committed):
        return message
    certificate = message.certificate.model_copy(update={"votes": message.certificate.votes[:1]})
    return message.model_copy(update={"certificate": certificate})


@pytest.mark.parametrize(
    "lie", [reballoted, reweighted, without_order, finishing_nothing, including_strangers, without_votes]
)
async def test_lying_leader(tmp_path: Path, lie: Callable[[Message], Message]) -> None:
    switch = Switch()

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
        return (lie(message) if switch.on else message), payload

    async def run() -> None:
        async with peers(tmp_path, PEERS - 1) as made:
            culprit = await made.add(wrap=partial(Tap, tamper=tamper))  # type: ignore[arg-type]
            await made.meet()
            given = contributions(made)
            await until_leading(made, culprit, 0, given)
            switch.on = True
            honest = [peer for peer in made.peers if peer is not culprit]
            async with alongside(culprit, given[culprit.peer_id]):
                await commit(made, honest, given)
                await commit(made, honest, given)

    await asyncio.wait_for(run(), SECONDS)


# -- members that lie ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["promised", "accepted", "weights"])
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_lying_about_earlier_ballots(tmp_path: Path, role: str, lie: str) -> None:
    async def run() -> None:
        async with peers(tmp_path) as made:
            given, culprit = contributions(made), made.peers[2]
            await until_leading(made, culprit, 0 if role == "leader" else -1, given)
            rounds, head = culprit.rounds, culprit.store.head
            rounds.promised = Ballot(number=1 << 52 if lie == "promised" else 1, leader=culprit.peer_id)
            if lie != "promised":
                weight = 1 << 50 if lie == "weights" else 1
                link = Link(
                    run_id=rounds.context.run_id, outer_step=head.outer_step + 1, previous=head.digest,
                    digest=culprit.store.committed.digest, participants={culprit.peer_id: weight},
                    work=head.work + weight + (lie == "accepted"),
                )  # fmt: skip
                rounds.accepted = (Accepted(ballot=rounds.promised, link=link), culprit.store.committed)
            honest = [peer for peer in made.peers if peer is not culprit]
            async with alongside(culprit, given[culprit.peer_id]):
                await commit(made, honest, given)
                await commit(made, honest, given)
            if role == "member":
                reason = "weight" if lie == "weights" else "malformed"
                assert (culprit.peer_id, reason) in [one for peer in honest for one in peer.recorder.refusals]

    await asyncio.wait_for(run(), SECONDS)


# -- strangers and replays -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stranger(made: Swarm) -> AsyncIterator[Network]:
    """Somebody who can dial everyone and takes part in nothing."""
    identity = Identity.load_or_create(made.folder / "stranger.key")
    network = await Network.start(identity, P2PDOptions(identity.path, host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    try:
        for peer in made.peers:
            assert await network.dial(peer.peer_id, peer.network.maddrs)
        yield network
    finally:
        await network.stop()


async def ask(network: Network, peer: PeerId, protocol: str, message: Message) -> Message:
    """The answer to one message on a stream of its own."""
    channel = await network.open(peer, protocol, "test", 5.0)
    await channel.send(message)
    answer, _ = await channel.receive(Refused, Denied, Seated, MeanEnd, timeout=10.0)
    channel.close()
    return answer


async def test_another_run_and_old_steps_are_refused(tmp_path: Path) -> None:
    async def run() -> None:
        async with peers(tmp_path) as made, stranger(made) as network:
            given, target = contributions(made), made.peers[0]
            genesis = target.store.head.digest
            await commit(made, made.peers, given)
            old = next(iter(target.rounds._exchanges.values())).ballot
            groupmate = made.peers[1].network
            join = Join(run_id="other@0123456789abcdef", outer_step=1, digest=target.store.head.digest, maddrs=[])
            part = Part(run_id="other@0123456789abcdef", outer_step=1, ballot=old, examples=1, values=250)
            ours = {"run_id": made.peers[0].rounds.context.run_id}
            asked = [
                (ROUND_PROTOCOL, join, Refused, "run"),
                (PART_PROTOCOL, part, Denied, "run"),
                (
                    ROUND_PROTOCOL,
                    join.model_copy(update={**ours, "outer_step": 0, "digest": genesis}),
                    Refused,
                    "behind",
                ),
                (ROUND_PROTOCOL, join.model_copy(update={**ours, "digest": "f" * 64}), Refused, "digest"),
                (PART_PROTOCOL, part.model_copy(update=ours), Denied, "replay"),
                (PART_PROTOCOL, part.model_copy(update={**ours, "outer_step": 0}), Denied, "stranger"),
            ]
            for protocol, message, kind, reason in asked:
                answer = await ask(network, target.peer_id, protocol, message)
                assert isinstance(answer, kind)
                assert answer.reason == reason
            counted = [reason for peer, reason in target.recorder.refusals if peer == network.peer_id]
            assert counted == ["run", "run", "digest", "replay", "stranger"]
            answer = await ask(
                groupmate, target.peer_id, PART_PROTOCOL, part.model_copy(update={**ours, "outer_step": 0})
            )
            assert isinstance(answer, Denied)
            assert answer.reason == "replay"
            assert target.recorder.refusals[-1] == (groupmate.peer_id, "replay")
            await commit(made, made.peers, given)

    await asyncio.wait_for(run(), SECONDS)


@pytest.mark.parametrize("again", ["same ballot", "older ballot", "stranger", "join"])
async def test_replay_within_a_round(tmp_path: Path, again: str) -> None:
    async def run() -> None:
        async with peers(tmp_path) as made, stranger(made) as network:
            given = contributions(made)
            await commit(made, made.peers, given)
            leader, reducer, culprit = (made.ordered(1)[place] for place in (0, 1, 3))
            honest = [peer for peer in made.peers if peer is not culprit]
            answers: list[Message] = []
            sender = network if again == "stranger" else culprit.network

            async def replay(stage: Stage, step: int) -> None:
                """The reducer holds all contributions of this ballot now, and has told nobody yet."""
                if (stage, step) != (Stage.RECEIVED, 1) or answers:
                    return
                ballot = reducer.rounds.promised
                assert ballot is not None
                if again == "older ballot":
                    ballot = Ballot(number=ballot.number - 1, leader=ballot.leader)
                header = Part(
                    run_id=leader.rounds.context.run_id, outer_step=1, ballot=ballot, examples=EXAMPLES, values=250
                )  # fmt: skip
                answers.append(await ask(sender, reducer.peer_id, PART_PROTOCOL, header))

            async def join_again(stage: Stage, step: int) -> None:
                if (stage, step) == (Stage.READY, 1) and not answers:
                    head = culprit.store.head
                    join = Join(
                        run_id=leader.rounds.context.run_id, outer_step=head.outer_step, digest=head.digest, maddrs=[]
                    )  # fmt: skip
                    answers.append(await ask(culprit.network, leader.peer_id, ROUND_PROTOCOL, join))

            if again == "join":
                culprit.recorder.hook = join_again
            else:
                reducer.recorder.hook = replay
            async with alongside(culprit, given[culprit.peer_id]):
                link = await commit(made, honest, given)
            await reducer.recorder.until(lambda _: bool(answers))
            if again == "join":
                assert isinstance(answers[0], Seated)  # its own old seat is all that it can take
            else:
                reason = "stranger" if again == "stranger" else "replay"
                assert isinstance(answers[0], Denied)
                assert answers[0].reason == reason
                assert reducer.recorder.refusals == [(sender.peer_id, reason)]
                assert link.participants == {peer.peer_id: EXAMPLES for peer in made.peers}  # counted once
            made.see()
            await commit(made, honest, given)

    await asyncio.wait_for(run(), SECONDS)


GARBAGE = [
    b"\xff" * 64,  # lengths of 4 GiB
    b"\0\0\0\1\0\0\0\0\xc1",  # a byte that msgpack never uses
    b"\0\0\0\4\0\0\0\0\x93\1\2\3",  # a list where a table is due
    b"\0\0\0\x06\0\0\0\0\x81\xa4kind",  # cut short
    b"\0\0\0\x0a\0\0\0\0\x81\xa4kind\xa4Join",  # without fields
    b"\0\x10\0\0\0\0\0\0" + b"\x91" * (1 << 20),  # a million lists within lists
    b"",
]


async def test_garbage_on_every_protocol(tmp_path: Path) -> None:
    async def run() -> None:
        async with peers(tmp_path) as made, stranger(made) as network:
            given = contributions(made)
            await commit(made, made.peers, given)
            shouts = [
                shout(network, peer.peer_id, protocol, garbage)
                for peer in made.peers
                for protocol in (ROUND_PROTOCOL, PART_PROTOCOL, STATE_PROTOCOL)
                for garbage in GARBAGE
            ]
            shouting = asyncio.gather(*shouts)
            link = await commit(made, made.peers, given)
            assert len(link.participants) == PEERS
            assert set(await shouting) == {b""}  # nobody is worth an answer
            await commit(made, made.peers, given)

    await asyncio.wait_for(run(), SECONDS)


def test_the_bound_is_honest() -> None:
    assert bound(TERMS, DEADLINES) < 20.0
    assert isinstance(EvilCodec(lambda values, honest: honest), Float32Codec)
