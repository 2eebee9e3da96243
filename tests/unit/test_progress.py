"""The view of the swarm that follows from its records."""

from __future__ import annotations

from peer.progress import view
from swarm.history import Head
from swarm.identity import PeerId
from swarm.records import PeerRecord

US = "12D3KooWM6JJnSHABCdQV7rZdxKP3wgZqEugK2Zibq8gzj1boi9R"
A, B, C = "12D3KooWNaET4av2jccSuJ3Bx4SaQeJNQwyy2BeVfymyEZk2jg6r", US[:-1] + "S", US[:-1] + "T"
HEAD = Head(5, "5" * 64, 500)


def _record(peer: PeerId, head: Head = HEAD, phase: str = "training", *, client: bool = False) -> PeerRecord:
    return PeerRecord(
        peer_id=peer, maddrs=[] if client else ["/ip4/127.0.0.1/tcp/1"], phase=phase, outer_step=head.outer_step,
        digest=head.digest, work=head.work, client_mode=client,
    )  # fmt: skip


def _records(*records: PeerRecord) -> dict[PeerId, PeerRecord]:
    return {record.peer_id: record for record in records}


def test_alone() -> None:
    seen = view(_records(_record(US)), US, HEAD)
    assert (seen.peers, seen.outer_step, dict(seen.companions), list(seen.ahead)) == (0, 5, {}, [])


def test_companions_are_at_our_head_and_can_be_dialled() -> None:
    other = Head(5, "6" * 64, 500)
    seen = view(_records(_record(A), _record(B, client=True), _record(C, other)), US, HEAD)
    assert set(seen.companions) == {A}
    assert seen.peers == 3
    assert set(seen.reachable) == {A, C}


def test_those_who_leave_do_not_count() -> None:
    seen = view(_records(_record(A, phase="leaving"), _record(B, phase="stopped"), _record(C)), US, HEAD)
    assert dict(seen.phases) == {"training": 1}
    assert seen.peers == 1


def test_heavier_histories_come_first_and_lighter_ones_not_at_all() -> None:
    heavy, heavier, light = Head(6, "6" * 64, 600), Head(7, "7" * 64, 700), Head(9, "9" * 64, 400)
    seen = view(_records(_record(A, heavy), _record(B, heavier), _record(C, light)), US, HEAD)
    assert list(seen.ahead) == [B, A]


def test_at_the_beginning_the_lower_digest_is_ahead() -> None:
    ours, lower, higher = Head(0, "5" * 64, 0), Head(0, "4" * 64, 0), Head(0, "6" * 64, 0)
    assert list(view(_records(_record(A, lower), _record(B, higher)), US, ours).ahead) == [A]


def test_one_that_claims_a_far_step_does_not_move_the_swarm() -> None:
    far = Head(10**9, "9" * 64, 10**12)
    assert view(_records(_record(A), _record(B), _record(C, far)), US, HEAD).outer_step == 5


def test_another_digest_where_we_have_been_is_a_fork() -> None:
    beside, before = Head(4, "b" * 64, 400), Head(4, "4" * 64, 400)
    past = {4: "4" * 64, 5: HEAD.digest}
    assert view(_records(_record(A, beside)), US, HEAD, past).forked
    assert not view(_records(_record(A, before)), US, HEAD, past).forked
