"""Who may commit: company, majorities, isolation, and seats."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peer.values import Stage
from tests.harness import TERMS, RoundPeer, Swarm, agreed, swarm

VALUES = torch.ones(1000)


async def _step(made: Swarm, seconds: float = 30.0) -> None:
    results = await made.step({peer.peer_id: VALUES for peer in made.live}, seconds=seconds)
    assert all(result.committed for result in results), results


async def _cancelled(peer: RoundPeer, reason: str) -> None:
    """``peer`` waits for ``reason`` and commits nothing."""
    head = peer.store.head
    trying = asyncio.ensure_future(peer.outer_step(VALUES, 10))
    try:
        await peer.recorder.until(lambda recorder: reason in recorder.waits, 20)
        assert not trying.done()
    finally:
        trying.cancel()
        await asyncio.gather(trying, return_exceptions=True)
    assert peer.store.head == head


async def test_a_swarm_of_one_waits_for_company_and_says_so(tmp_path: Path) -> None:
    async with swarm(tmp_path, 1) as made:
        await _cancelled(made.live[0], "company")


async def test_a_swarm_of_one_works_where_the_manifest_allows_it(tmp_path: Path) -> None:
    async with swarm(tmp_path, 1, terms=replace(TERMS, min_group_size=1)) as made:
        for _ in range(3):
            await _step(made)
        assert made.live[0].store.head.outer_step == 3
        assert not any(one.link.isolated for one in made.live[0].store.history.certificates)


async def test_half_of_the_last_participants_may_not_go_on_until_they_are_isolated(tmp_path: Path) -> None:
    async with swarm(tmp_path, 4, terms=replace(TERMS, isolation_seconds=4.0)) as made:
        await _step(made)
        for peer in made.live[2:]:
            peer.kill()
        made.see()
        began = time.monotonic()
        await _step(made, 60)
        waited = time.monotonic() - began
        assert waited >= 4.0  # a lower bound set by the rule, not a timing of ours
        links = [peer.store.history.certificates[-1].link for peer in made.live]
        assert all(link.isolated and len(link.participants) == 2 for link in links)
        assert any("majority" in peer.recorder.waits for peer in made.live)  # whoever leads says so
        await _step(made)  # and then they are the last participants
        assert not made.live[0].store.history.certificates[-1].link.isolated
        agreed(made.live)


@pytest.mark.parametrize("first", [True, False], ids=["first link", "later link"])
async def test_a_vote_that_only_the_dead_could_confirm_is_given_up(tmp_path: Path, first: bool) -> None:
    async with swarm(tmp_path, 2, terms=replace(TERMS, min_group_size=1, isolation_seconds=4.0)) as made:
        survivor, victim = made.live
        if not first:
            await _step(made)
        step = survivor.store.head.outer_step
        held, voted = (Stage.GATHERED, step), (Stage.VOTED, step)
        victim.recorder.hook = lambda *reached: asyncio.Event().wait() if reached == held else None
        survivor.recorder.hook = lambda *reached: victim.kill() if reached == voted and not victim.dead else None
        trying = asyncio.ensure_future(victim.outer_step(VALUES, 10))
        result = await asyncio.wait_for(survivor.step_until_committed(VALUES, 10), 60)
        assert result.committed
        assert voted in survivor.recorder.stages
        assert "majority" in survivor.recorder.waits
        link = survivor.store.history.certificates[-1].link
        assert link.isolated
        assert set(link.participants) == {survivor.peer_id}
        trying.cancel()
        await asyncio.gather(trying, return_exceptions=True)


async def test_a_table_that_its_owner_clears_for_the_next_attempt_is_asked_again(tmp_path: Path) -> None:
    """After an abort some try again before others have heard of it, and sit down at tables of the attempt before."""
    async with swarm(tmp_path, 3) as made:
        await _step(made)
        late, *early = made.ordered(made.live[0].store.head.outer_step)
        old = await late.rounds.attempt()
        first, second = (asyncio.ensure_future(peer.outer_step(VALUES, 10)) for peer in early)
        for peer in early:
            await peer.recorder.until(lambda recorder: (Stage.READY, 1) in recorder.stages, 20)
        assert not old.work.done()
        results = await asyncio.wait_for(asyncio.gather(late.outer_step(VALUES, 10), first, second), 30)
        assert all(result.committed and result.group_size == 3 for result in results), results
        assert not any(peer.rounds.absences.doubtful(late.peer_id) for peer in early)
        agreed(made.live)


async def test_peers_that_all_forgot_go_on_after_the_isolation_time(tmp_path: Path) -> None:
    async with swarm(tmp_path, 3, terms=replace(TERMS, isolation_seconds=3.0)) as made:
        await _step(made)
        for peer in made.live:
            peer.store._forgetful = True  # as after a restart and a download
        await _step(made)
        assert all(peer.store.history.certificates[-1].link.isolated for peer in made.live)
        await _step(made)
        assert not any(peer.store.history.certificates[-1].link.isolated for peer in made.live)


async def test_the_first_leader_is_dead_and_the_others_commit_at_once(tmp_path: Path) -> None:
    async with swarm(tmp_path, 4) as made:
        await _step(made)
        made.ordered(1)[0].kill()
        made.see()
        began = time.monotonic()
        await _step(made)
        print(f"committed {time.monotonic() - began:.2f} s after the first leader had died")
        agreed(made.live)


async def test_a_peer_that_waited_alone_does_not_put_itself_last(tmp_path: Path) -> None:
    """Else its order is not the others': it asks one that asks it at that moment, and each sends the other away."""
    async with swarm(tmp_path, 2) as made:
        await _step(made)
        first, second = made.ordered(1)
        waiting = asyncio.ensure_future(second.step_until_committed(VALUES, 10))
        seated = (Stage.SEATED, 1)
        await second.recorder.until(lambda recorder: recorder.stages.count(seated) > 1, 20)  # it has looked again
        assert not second.rounds.absences.doubtful(second.peer_id)
        assert (await asyncio.wait_for(first.step_until_committed(VALUES, 10), 20)).committed
        assert (await asyncio.wait_for(waiting, 20)).committed
        agreed(made.live)


async def test_no_seat_left_is_told(tmp_path: Path) -> None:
    async with swarm(tmp_path, 2, terms=replace(TERMS, max_group_size=2)) as made:
        await _step(made)
        third = await made.add()
        await made.meet()
        assert await third.catch_up([made.peers[0].peer_id])
        made.see()
        leader = made.ordered(1, made.peers[:2])[0]
        attempt = await leader.rounds.attempt()
        waiting = asyncio.ensure_future(leader.rounds.run(attempt))
        result = await asyncio.wait_for(third.outer_step(VALUES, 10), 20)
        assert (result.committed, result.reason) == (False, "full")
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_two_sides_of_a_cut_meet_and_the_heavier_history_is_kept(tmp_path: Path) -> None:
    async with swarm(tmp_path, 4, terms=replace(TERMS, isolation_seconds=2.0)) as made:
        await _step(made)
        sides = [made.peers[:2], made.peers[2:]]
        for side, weight in zip(sides, (10, 30), strict=True):
            for peer in side:  # each side knows only itself, and thinks the others dead
                others = [one for one in made.peers if one not in side]
                for other in others:
                    peer.rounds.absences.bench(other.peer_id, 60.0)
                peer.rounds.see({one.peer_id: one.network.maddrs for one in side if one is not peer})
            tries = (peer.step_until_committed(VALUES * weight, weight, tries=20) for peer in side)
            results = await asyncio.wait_for(asyncio.gather(*tries), 60)
            assert all(result.committed for result in results), results
        light, heavy = sides
        assert light[0].store.head != heavy[0].store.head
        assert all(peer.store.history.certificates[-1].link.isolated for peer in made.peers)
        assert not await heavy[0].catch_up([light[0].peer_id])
        for peer in light:
            assert await peer.catch_up([heavy[0].peer_id])
            assert peer.store.head == heavy[0].store.head
