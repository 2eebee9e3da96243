"""Messages that nobody honest sends: from leaders, members, strangers, replayed or garbage. Honest peers go on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import pytest_asyncio

from peer.rounds.messages import (
    PART_PROTOCOL,
    ROUND_PROTOCOL,
    Aborted,
    Accepted,
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
from tests.evil import Tamper, shout
from tests.harness import RUN_ID, RoundPeer
from tests.stand import DEADLINES, EXAMPLES, PARAMETERS, PEERS, SECONDS, Stand, stand, timed

pytestmark = pytest.mark.asyncio(loop_scope="module")

PART = PARAMETERS // PEERS
STRANGER = "12D3KooWQBpDDAHvPRSUbaV4B4ePzSGmVmhcyXAVFkbSBbtfC7mm"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stand]:
    async with stand(tmp_path_factory.mktemp("lies")) as made:
        yield made


# -- leaders -------------------------------------------------------------------------------------------------------


def last_ballot(group: Group) -> Group:
    """Nothing could come after it."""
    return group.model_copy(update={"ballot": Ballot(number=(1 << 53) - 1, leader=group.ballot.leader)})


def another_leaders_ballot(group: Group) -> Group:
    """Of a peer that does not lead."""
    return group.model_copy(update={"ballot": Ballot(number=group.ballot.number, leader=STRANGER)})


def reweighted(group: Group) -> Group:
    """Not what the members said they did."""
    members = [one.model_copy(update={"examples": one.examples + 1}) for one in group.members]
    return group.model_copy(update={"members": members})


def absurd_weight(group: Group) -> Group:
    """Its own, past what the manifest allows."""
    members = [
        one.model_copy(update={"examples": 10**12}) if one.peer_id == group.ballot.leader else one
        for one in group.members
    ]
    return group.model_copy(update={"members": members})


def out_of_order(group: Group) -> Group:
    """Parts would be cut differently."""
    return group.model_copy(update={"members": group.members[::-1]})


def nobody_reduces(group: Group) -> Group:
    """Nobody would compute the mean."""
    return group.model_copy(update={"members": [one.model_copy(update={"values": 0}) for one in group.members]})


def parts_too_long(group: Group) -> Group:
    """They do not add up to the vector."""
    members = [one.model_copy(update={"values": one.values + 1}) for one in group.members]
    return group.model_copy(update={"members": members})


def one_long_part(group: Group) -> Group:
    """More than two equal ones for one member, which would have to hold so much of everybody."""
    lengths = [PARAMETERS - len(group.members) + 1] + [1] * (len(group.members) - 1)
    members = [one.model_copy(update={"values": values}) for one, values in zip(group.members, lengths, strict=True)]
    return group.model_copy(update={"members": members})


def one_reducer(group: Group) -> Group:
    """All of it for the leader, as if nobody could dial the others."""
    members = [
        one.model_copy(update={"values": PARAMETERS})
        if one.peer_id == group.ballot.leader
        else one.model_copy(update={"values": 0, "maddrs": []})
        for one in group.members
    ]
    return group.model_copy(update={"members": members})


def finish_nothing(group: Group) -> Group:
    """A link that does not continue the history."""
    link = Link(
        run_id=RUN_ID, outer_step=1, previous="0" * 64, digest="1" * 64, participants={STRANGER: 1}, work=1
    )  # fmt: skip
    return group.model_copy(update={"finish": link, "donors": [group.ballot.leader]})


def include_a_stranger(include: Include) -> Include:
    """Somebody of whom there is no contribution."""
    return include.model_copy(update={"peers": [*include.peers, STRANGER]})


def include_nobody_known(include: Include) -> Include:
    """The same, and nobody else."""
    return include.model_copy(update={"peers": [STRANGER]})


def without_votes(committed: Committed) -> Committed:
    """A certificate that lacks its quorum."""
    certificate = committed.certificate
    return Committed(certificate=certificate.model_copy(update={"votes": certificate.votes[:1]}))


def forged_votes(committed: Committed) -> Committed:
    """Signatures of nobody."""
    certificate = committed.certificate
    votes = [vote.model_copy(update={"signature": bytes(64)}) for vote in certificate.votes]
    return Committed(certificate=certificate.model_copy(update={"votes": votes}))


LIES: list[tuple[type[Message], Callable[..., Message]]] = [
    (Group, last_ballot),
    (Group, another_leaders_ballot),
    (Group, reweighted),
    (Group, absurd_weight),
    (Group, out_of_order),
    (Group, nobody_reduces),
    (Group, parts_too_long),
    (Group, one_long_part),
    (Group, one_reducer),
    (Group, finish_nothing),
    (Include, include_a_stranger),
    (Include, include_nobody_known),
    (Committed, without_votes),
    (Committed, forged_votes),
]


@contextlib.asynccontextmanager
async def misled(shared: Stand, tamper: Tamper, **changes: object) -> AsyncIterator[list[RoundPeer]]:
    """The honest peers, while the culprit leads and ``tamper`` changes what it sends. changes: to its Context."""
    await shared.ready()
    await shared.until_leading(shared.culprit, True)
    honest = shared.honest
    if changes:
        shared.turn(**changes)
    shared.hand.tamper = tamper
    async with shared.alongside(shared.given[shared.culprit.peer_id]):
        yield honest


@pytest.mark.parametrize(("kind", "lie"), LIES, ids=[lie.__name__ for _, lie in LIES])
async def test_lying_leader(shared: Stand, kind: type[Message], lie: Callable[..., Message]) -> None:
    told, believed = asyncio.Event(), list[PeerId]()

    def look(peer: RoundPeer, stage: Stage) -> None:
        """Whoever sees that its leader lies of the group benches it, and is in no group before."""
        if kind is Group and stage is Stage.GROUPED and told.is_set():
            believed.extend([] if peer.rounds.absences.benched(shared.culprit.peer_id) else [peer.peer_id])

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
        if isinstance(message, kind):
            told.set()
            return lie(message), payload
        return message, payload

    async def run() -> None:
        async with misled(shared, tamper) as honest:
            for peer in honest:
                peer.recorder.hook = lambda stage, _, peer=peer: look(peer, stage)
            await shared.commit(honest)
            await shared.commit(honest)
        assert told.is_set()
        assert not believed

    await timed(run())


@pytest.mark.parametrize("kind", [Include, Committed])
async def test_mute_leader(shared: Stand, kind: type[Message]) -> None:
    """It shows signs of life and says nothing more."""

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes] | bytes:
        return b"" if isinstance(message, kind | Aborted) else (message, payload)

    async def run() -> None:
        patient = replace(DEADLINES, exchange=SECONDS, commit=SECONDS, silence=SECONDS)
        async with misled(shared, tamper, deadlines=patient) as honest:
            await shared.commit(honest)
        assert any(peer.rounds.absences.benched(shared.culprit.peer_id) for peer in honest)

    await timed(run())


@pytest.mark.parametrize("kind", [Include, Committed])
async def test_leader_that_sends_its_group_away(shared: Stand, kind: type[Message]) -> None:
    """At another table its members would hand in what is used up: the mean, or the state that they voted for."""

    told = set[PeerId]()

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
        if isinstance(message, kind):
            told.add(peer)
            return Refused(reason="over"), payload
        return message, payload

    async def run() -> None:
        async with misled(shared, tamper) as honest:
            await shared.commit(honest)
        assert told  # perhaps not everybody: whoever came late to the culprit's table is not in its group
        assert told <= {peer.peer_id for peer in honest if peer.rounds.absences.benched(shared.culprit.peer_id)}

    await timed(run())


async def test_leader_that_blames_everybody(shared: Stand) -> None:
    """It aborts every attempt and names all others: they keep each other, and another leads."""

    def tamper(peer: PeerId, message: Message, payload: bytes) -> tuple[Message, bytes]:
        if isinstance(message, Include):
            return Aborted(reason="too-few", culprits=[one.peer_id for one in shared.honest]), payload
        return message, payload

    async def run() -> None:
        async with misled(shared, tamper) as honest:
            await shared.commit(honest)
            await shared.commit(honest)

    await timed(run())


# -- members -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lie", ["promised", "accepted", "weights"])
@pytest.mark.parametrize("role", ["leader", "member"])
async def test_lies_about_earlier_ballots(shared: Stand, role: str, lie: str) -> None:
    async def run() -> None:
        await shared.ready()
        culprit, honest = shared.culprit, shared.honest
        await shared.until_leading(culprit, role == "leader")
        head = culprit.store.head
        promised = Ballot(number=1 << 52 if lie == "promised" else 1, leader=culprit.peer_id)
        culprit.rounds.promised = promised
        if lie != "promised":
            weight = 1 << 50 if lie == "weights" else 1
            link = Link(
                run_id=RUN_ID, outer_step=head.outer_step + 1, previous=head.digest, digest=head.digest,
                participants={culprit.peer_id: weight}, work=head.work + weight + (lie == "accepted"),
            )  # fmt: skip
            culprit.rounds.accepted = (Accepted(ballot=promised, link=link), culprit.store.committed)
        async with shared.alongside(shared.given[culprit.peer_id]):
            await shared.commit(honest)
            await shared.commit(honest)
        if role == "member":
            assert (culprit.peer_id, "weight" if lie == "weights" else "malformed") in shared.refusals()

    await timed(run())


# -- strangers and replays -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stranger(shared: Stand) -> AsyncIterator[Network]:
    """Somebody who can dial everyone and takes part in nothing."""
    identity = Identity.load_or_create(shared.swarm.folder / "stranger.identity")
    network = await Network.start(identity, P2PDOptions(identity.path, host_maddrs=("/ip4/127.0.0.1/tcp/0",)))
    try:
        for peer in shared.swarm.live:
            assert await network.dial(peer.peer_id, peer.network.maddrs)
        yield network
    finally:
        await network.stop()


async def ask(network: Network, peer: PeerId, protocol: str, message: Message) -> Message:
    """The answer to one message on a stream of its own."""
    channel = await network.open(peer, protocol, "test", 5.0)
    try:
        await channel.send(message)
        answer, _ = await channel.receive(Refused, Denied, Seated, MeanEnd, timeout=10.0)
    finally:
        channel.close()
    return answer


async def test_other_runs_and_old_steps_are_refused(shared: Stand) -> None:
    async def run() -> None:
        await shared.ready()
        async with stranger(shared) as network:
            target, groupmate = shared.honest[:2]
            before = target.store.head
            await shared.commit(shared.swarm.live)
            step, ballot = before.outer_step, target.rounds._exchanges[next(reversed(target.rounds._exchanges))].ballot
            join = Join(run_id=RUN_ID, outer_step=step, digest=before.digest, maddrs=[])
            part = Part(run_id=RUN_ID, outer_step=step, ballot=ballot, examples=EXAMPLES, values=PART)
            other, newer = {"run_id": "other@0123456789abcdef"}, {"outer_step": step + 1}
            asked: list[tuple[Network, str, Message, str]] = [
                (network, ROUND_PROTOCOL, join.model_copy(update=other), "run"),
                (network, PART_PROTOCOL, part.model_copy(update=other), "run"),
                (network, ROUND_PROTOCOL, join, "behind"),
                (network, ROUND_PROTOCOL, join.model_copy(update=newer), "digest"),
                (network, PART_PROTOCOL, part, "stranger"),
                (network, PART_PROTOCOL, part.model_copy(update=newer), "replay"),
                (groupmate.network, PART_PROTOCOL, part, "replay"),
            ]
            for sender, protocol, message, reason in asked:
                answer = await ask(sender, target.peer_id, protocol, message)
                assert isinstance(answer, Refused | Denied)
                assert answer.reason == reason
                if reason != "behind":  # no wrong, and so not counted
                    assert target.recorder.refusals[-1] == (sender.peer_id, reason)
            await shared.commit(shared.swarm.live)

    await timed(run())


@pytest.mark.parametrize("again", ["same ballot", "older ballot", "stranger"])
async def test_replayed_contribution(shared: Stand, again: str) -> None:
    async def run() -> None:
        await shared.ready()
        async with stranger(shared) as network:
            await shared.until_leading(shared.culprit, False)
            reducer, step = shared.honest[0], shared.culprit.store.head.outer_step
            sender = network if again == "stranger" else shared.culprit.network
            answers: list[Message] = []

            async def replay(reached: Stage, outer_step: int) -> None:
                """The reducer holds all contributions of this ballot now, and has told nobody yet."""
                ballot = reducer.rounds.promised
                if (reached, outer_step) == (Stage.RECEIVED, step) and ballot is not None:
                    if again == "older ballot":
                        ballot = Ballot(number=ballot.number - 1, leader=ballot.leader)
                    part = Part(run_id=RUN_ID, outer_step=step, ballot=ballot, examples=EXAMPLES, values=PART)
                    answers.append(await ask(sender, reducer.peer_id, PART_PROTOCOL, part))

            reducer.recorder.hook = replay
            link = await shared.commit(shared.swarm.live)
            assert link.participants == dict.fromkeys(link.participants, EXAMPLES)  # counted once, each of them
            assert len(link.participants) == PEERS
            reason = "stranger" if again == "stranger" else "replay"
            assert [answer.reason for answer in answers if isinstance(answer, Denied)] == [reason]
            assert shared.refusals() == {(sender.peer_id, reason)}

    await timed(run())


async def test_replayed_join_takes_no_seat_but_its_own(shared: Stand) -> None:
    async def run() -> None:
        await shared.ready()
        culprit, honest = shared.culprit, shared.honest
        await shared.until_leading(culprit, False)
        head = culprit.store.head
        leader = shared.swarm.ordered(head.outer_step)[0]
        answers: list[Message] = []

        async def join_again(reached: Stage, outer_step: int) -> None:
            if (reached, outer_step) == (Stage.READY, head.outer_step) and not answers:
                join = Join(run_id=RUN_ID, outer_step=head.outer_step, digest=head.digest, maddrs=[])
                answers.append(await ask(culprit.network, leader.peer_id, ROUND_PROTOCOL, join))

        culprit.recorder.hook = join_again
        async with shared.alongside(shared.given[culprit.peer_id]):
            link = await shared.commit(honest)
            await culprit.recorder.until(lambda _: bool(answers))
        assert {peer.peer_id for peer in honest} <= link.participants.keys()

    await timed(run())


GARBAGE = [
    b"\xff" * 64,  # lengths of 4 GiB
    b"\0\0\0\1\0\0\0\0\xc1",  # a byte that msgpack never uses
    b"\0\0\0\4\0\0\0\0\x93\1\2\3",  # a list where a table is due
    b"\0\0\0\6\0\0\0\0\x81\xa4kind",  # cut short
    b"\0\0\0\x0a\0\0\0\0\x81\xa4kind\xa4Join",  # without fields
    b"\0\x10\0\0\0\0\0\0" + b"\x91" * (1 << 20),  # a million lists within lists
    b"",
]


async def test_garbage_on_every_protocol(shared: Stand) -> None:
    async def run() -> None:
        await shared.ready()
        async with stranger(shared) as network:
            shouts = [
                shout(network, peer.peer_id, protocol, garbage)
                for peer in shared.swarm.live
                for protocol in (ROUND_PROTOCOL, PART_PROTOCOL, STATE_PROTOCOL)
                for garbage in GARBAGE
            ]
            shouting = asyncio.gather(*shouts)
            link = await shared.commit(shared.swarm.live)
            assert len(link.participants) == PEERS
            assert set(await shouting) == {b""}  # nobody is worth an answer
            await shared.commit(shared.swarm.live)

    await timed(run())
