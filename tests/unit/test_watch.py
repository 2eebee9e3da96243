"""What a peer makes of the records of its swarm, look by look."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

from peer.twin import Twin
from peer.watch import Watch
from swarm.history import Head
from swarm.network import RECORD_LIFETIME_SECONDS
from swarm.records import Opened, PeerRecord
from tests.chain import PEERS, RUN_ID, digest

OURS, THEIRS = "a" * 16, "b" * 16


class Records:
    """A network whose DHT is a table: whoever published last under a name is found there."""

    peer_id = PEERS[0]

    def __init__(self) -> None:
        self.found: dict[str, Opened] = {}

    async def publish(self, run_id: str, record: PeerRecord) -> bool:
        self.found[record.peer_id] = Opened(run_id, record, time.time() + RECORD_LIFETIME_SECONDS)
        return True

    async def read_peers(self, run_id: str) -> dict[str, Opened]:
        return dict(self.found)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        coroutine.close()


def a_record(session: str, started: float, outer_step: int = 0) -> PeerRecord:
    return PeerRecord(
        peer_id=PEERS[0], maddrs=[], phase="training", outer_step=outer_step, digest=digest("x"), work=0,
        session=session, started=started,
    )  # fmt: skip


class Witness(Twin):
    """Remembers whose records it was shown."""

    def __init__(self, started: float) -> None:
        super().__init__(OURS, started, lambda error: None)
        self.shown: list[str] = []

    def see(self, found: Opened | None) -> bool:
        self.shown.append("" if found is None else found.record.session)
        return super().see(found)


async def test_a_record_in_our_name_is_read_before_ours_takes_its_place() -> None:
    """Else whoever has news in every look, as all do whose outer steps are short, would never see it."""
    network, started, step = Records(), time.time(), 0
    twin = Witness(started)
    watch = Watch(
        RUN_ID, network, lambda: a_record(OURS, started, step), lambda: Head(step, digest("x"), step),
        lambda view: None, twin,
    )  # fmt: skip
    await watch.look()
    await network.publish(RUN_ID, a_record(THEIRS, started + 60))
    step = 1
    await watch.look()
    assert twin.shown == ["", THEIRS]
    assert network.found[PEERS[0]].record == a_record(OURS, started, 1)


async def test_a_record_is_published_again_where_another_took_its_place() -> None:
    network, started = Records(), time.time()
    head = Head(0, digest("x"), 0)
    watch = Watch(RUN_ID, network, lambda: a_record(OURS, started), lambda: head, lambda view: None, Witness(started))
    await watch.look()
    await network.publish(RUN_ID, a_record(THEIRS, started - 60))
    await watch.look()
    assert network.found[PEERS[0]].record.session == OURS, "there is no other news"
