"""Invitations in a real DHT: published, read, kept alive by any peer, and forgeries kept out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgpack
import pytest
from hivemind.dht.node import DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.utils.multiaddr import Multiaddr

from peer.enrolment import Tally, find, keep_published
from swarm.control import connect
from swarm.errors import NetworkError, RunError
from swarm.identity import Identity
from swarm.invitation import INVITATION_SUBKEY, Invitation, invite, manifest_key
from swarm.joining import InitialPeer
from swarm.manifest import Manifest
from swarm.network import Network
from swarm.p2pd import P2PD, P2PDOptions
from tests.chain import PEERS, identity
from tests.integration.test_network_modes import free_port
from tests.processes import LOCAL
from tests.unit.test_invitation import INVITATION, TOML

RUN_ID = INVITATION.run_id
FORGED = bytes(msgpack.packb([INVITATION.canonical.replace(b"0.01", b"0.02"), INVITATION.signature]))
dumps = DHTProtocol.serializer.dumps
OTHER = invite(Manifest.from_toml(TOML.replace("tiny", "other")), identity(0))


@asynccontextmanager
async def member(
    folder: Path, name: str, *initial_peers: str, listen: str = LOCAL, tally: Tally | None = None
) -> AsyncIterator[Network]:
    """One of ours in the DHT; in client mode where ``listen`` is empty. The same name is the same identity."""
    own = Identity.load_or_create(folder / f"{name}.key")
    network = await Network.start(own, P2PDOptions(own.path, (listen,) if listen else ()), initial_peers, tally)
    try:
        assert await network.wait_joined(30.0)
        yield network
    finally:
        await network.stop()


@asynccontextmanager
async def stranger(folder: Path, *initial_peers: str) -> AsyncIterator[tuple[DHTNode, str]]:
    """A DHT node that checks nothing, as other programs are, and its address."""
    own = Identity.load_or_create(folder / "stranger.key")
    daemon = await P2PD.start(P2PDOptions(own.path, (LOCAL,)))
    try:
        for maddr in initial_peers:
            peer = InitialPeer.parse(maddr)
            await connect(daemon.p2p, PeerID.from_base58(peer.peer_id), [Multiaddr(peer.maddr)])
        node = await DHTNode.create(p2p=daemon.p2p, initial_peers=[Multiaddr(maddr) for maddr in initial_peers])
        (maddr, *_) = await daemon.p2p.get_visible_maddrs()
        yield node, str(maddr)
        await node.shutdown()
    finally:
        await daemon.stop()


async def store(node: DHTNode, value: bytes, run_id: str = RUN_ID, exclude_self: bool = False) -> bool:
    """Whether somebody took this value as the invitation to a run."""
    expires = time.time() + 600
    key = manifest_key(run_id)
    return bool(await node.store(key, value, expires, subkey=INVITATION_SUBKEY, exclude_self=exclude_self))


async def test_what_is_published_is_found_by_the_id(tmp_path: Path) -> None:
    tally = Tally()
    async with member(tmp_path, "bootstrap") as bootstrap:
        maddrs = bootstrap.visible_maddrs
        async with member(tmp_path, "author", *maddrs, listen="") as author:
            assert await author.read_invitation(RUN_ID) is None
            assert await author.publish_invitation(INVITATION)
        async with member(tmp_path, "volunteer", *maddrs, listen="", tally=tally) as volunteer:
            assert await find(volunteer, RUN_ID, tally, 10.0) == INVITATION
            with pytest.raises(RunError, match=r"^run tiny@0{16}: the initial peers know no such run"):
                await find(volunteer, "tiny@" + "0" * 16, tally, 10.0, seconds=1.0)
    assert not tally.refused


async def test_the_largest_manifest_goes_through(tmp_path: Path) -> None:
    keys = "\n".join(f'x{number} = "{"y" * 480}"' for number in range(127))
    text = TOML.replace('type = "gpt2"\n', f'type = "gpt2"\n[model.config]\n{keys}\n')
    large = invite(Manifest.from_toml(text), identity(0))
    assert len(large.canonical) > 61_000
    async with member(tmp_path, "bootstrap") as bootstrap:
        async with member(tmp_path, "author", *bootstrap.visible_maddrs, listen="") as author:
            assert await author.publish_invitation(large)
        async with member(tmp_path, "volunteer", *bootstrap.visible_maddrs, listen="") as volunteer:
            assert await volunteer.read_invitation(large.run_id) == large


async def test_a_run_outlives_its_author_and_its_bootstrap(tmp_path: Path) -> None:
    """The one that is left cannot be dialled and stores nothing for others: only publishing again helps."""
    listen = f"/ip4/127.0.0.1/tcp/{free_port()}"
    async with member(tmp_path, "bootstrap", listen=listen) as bootstrap:
        maddrs = bootstrap.visible_maddrs
        async with member(tmp_path, "author", *maddrs, listen="") as author:
            assert await author.publish_invitation(INVITATION)
        async with member(tmp_path, "peer", *maddrs, listen="") as peer:
            found = await peer.read_invitation(RUN_ID)
            assert found == INVITATION
            await bootstrap.stop()
            async with member(tmp_path, "bootstrap", listen=listen):
                async with member(tmp_path, "early", *maddrs, listen="") as early:
                    assert await early.read_invitation(RUN_ID) is None, "the new one has an empty store"
                peer.spawn(keep_published(peer, found, seconds=1.0))
                tally = Tally()
                async with member(tmp_path, "newcomer", *maddrs, listen="", tally=tally) as newcomer:
                    assert await find(newcomer, RUN_ID, tally, 10.0, seconds=60.0) == INVITATION


async def test_our_bootstrap_takes_no_forgery(tmp_path: Path) -> None:
    tally = Tally()
    async with member(tmp_path, "bootstrap", tally=tally) as bootstrap:
        async with stranger(tmp_path, *bootstrap.visible_maddrs) as (node, _):
            assert not await store(node, FORGED, exclude_self=True)
            assert not await store(node, OTHER.envelope(), exclude_self=True)
            assert tally.refused.keys() == {"signature", "run"}
            assert await store(node, INVITATION.envelope(), exclude_self=True), "whoever brings it"
        async with member(tmp_path, "volunteer", *bootstrap.visible_maddrs, listen="") as volunteer:
            assert await volunteer.read_invitation(RUN_ID) == INVITATION


@pytest.mark.parametrize(
    ("value", "reason"),
    [(FORGED, "signature"), (OTHER.envelope(), "run"), (b"\xc1", "malformed"), (bytes(70_000), "size")],
)
async def test_a_forgery_from_a_stranger_is_refused_with_its_reason(tmp_path: Path, value: bytes, reason: str) -> None:
    outer = Tally()
    tally = Tally(outer)
    async with stranger(tmp_path) as (node, maddr):
        assert await store(node, value)
        async with member(tmp_path, "volunteer", maddr, listen="", tally=tally) as volunteer:
            with pytest.raises(RunError) as caught:
                await find(volunteer, RUN_ID, tally, 10.0, seconds=0.0)
    (line,) = str(caught.value).splitlines()
    assert f"is not its author's manifest and was refused ({reason} " in line
    assert set(outer.refused) == {reason}


async def test_an_honest_copy_is_found_beside_a_forgery(tmp_path: Path) -> None:
    tally = Tally()
    async with (
        member(tmp_path, "bootstrap") as bootstrap,
        stranger(tmp_path, *bootstrap.visible_maddrs) as (node, maddr),
    ):
        assert await bootstrap.publish_invitation(INVITATION)
        key = DHTID.generate(source=manifest_key(RUN_ID))
        node.protocol.storage.clear()
        assert node.protocol.storage.store_subkey(key, INVITATION_SUBKEY, dumps(FORGED), time.time() + 3000)
        maddrs = [maddr, *bootstrap.visible_maddrs]
        async with member(tmp_path, "volunteer", *maddrs, listen="", tally=tally) as volunteer:
            assert await find(volunteer, RUN_ID, tally, 10.0) == INVITATION


async def test_initial_peers_that_do_not_answer(tmp_path: Path) -> None:
    own = Identity.load_or_create(tmp_path / "own.key")
    nobody = f"/ip4/127.0.0.1/tcp/{free_port()}/p2p/{PEERS[1]}"
    network = await Network.start(own, P2PDOptions(own.path), [nobody])
    try:
        with pytest.raises(NetworkError, match=r"^none of the initial peers answers within 1 s"):
            await asyncio.wait_for(find(network, RUN_ID, Tally(), 1.0), 20)
    finally:
        await network.stop()


async def test_nobody_says_no_when_the_initial_peers_have_gone(tmp_path: Path) -> None:
    async with (
        member(tmp_path, "bootstrap") as bootstrap,
        member(tmp_path, "volunteer", *bootstrap.visible_maddrs, listen="") as volunteer,
    ):
        await bootstrap.stop()
        with pytest.raises(NetworkError, match=r"^none of the initial peers answers"):
            await find(volunteer, RUN_ID, Tally(), 10.0, seconds=3.0)


def test_a_forgery_is_one() -> None:
    canonical, signature = msgpack.unpackb(FORGED)
    assert canonical != INVITATION.canonical
    assert Invitation(RUN_ID, PEERS[0], canonical, signature) != INVITATION
