"""Ways to be in the network: IPv6, QUIC, behind a name, in client mode. One group has them all, or nothing commits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarm.identity import Identity
from swarm.network import Network
from swarm.p2pd import P2PDOptions
from swarm.wire import Message, StreamChannel
from tests.processes import LOCAL, House, Peer, manifest, until, write_corpus

IPV6, QUIC = "/ip6/::1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port that was free a moment ago: an announced address needs one that is known in advance."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("modes")) as house:
        write_corpus(house.folder / "corpus.txt")
        yield house


@pytest.fixture(scope="module")
def peers(house: House) -> dict[str, Peer]:
    """Four peers that may commit only together."""
    port = free_port()
    modes = {
        "ipv6": ["--host-maddrs", IPV6 if has_ipv6() else LOCAL],
        "quic": ["--host-maddrs", QUIC],
        "named": [
            "--host-maddrs", f"/ip4/127.0.0.1/tcp/{port}", "--announce-maddrs", f"/dns4/localhost/tcp/{port}",
        ],
        "client": ["--client-mode"],
    }  # fmt: skip
    run = manifest(house.folder / "corpus.txt", min_group_size=len(modes))
    bootstrap = house.bootstrap("bootstrap", host_maddr=QUIC)
    peers = {name: house.hold(name, run, *flags, initial_peers=bootstrap.maddrs) for name, flags in modes.items()}
    for peer in peers.values():
        peer.prepare()
    for peer in peers.values():
        peer.release()
    for peer in peers.values():
        peer.commits_until(3)
    return peers


def test_all_four_are_in_every_commit(peers: dict[str, Peer]) -> None:
    ids = {peer.status["peer_id"] for peer in peers.values()}
    for peer in peers.values():
        for commit in peer.events("commit"):
            assert set(commit["participants"]) == ids
            assert all(weight > 0 for weight in commit["participants"].values())


def test_addresses_are_told_as_they_are(peers: dict[str, Peer]) -> None:
    maddrs = {name: peer.maddrs for name, peer in peers.items()}
    ids = {name: peer.status["peer_id"] for name, peer in peers.items()}
    assert all(maddr.endswith(f"/p2p/{ids[name]}") for name in peers for maddr in maddrs[name])
    assert all("/quic-v1/" in maddr for maddr in maddrs["quic"])
    assert [maddr.partition("/tcp/")[0] for maddr in maddrs["named"]] == ["/dns4/localhost"]
    assert maddrs["client"] == []
    if has_ipv6():
        assert all(maddr.startswith("/ip6/::1/tcp/") for maddr in maddrs["ipv6"])


async def test_records_say_the_same(house: House, peers: dict[str, Peer], tmp_path: Path) -> None:
    identity = Identity.load_or_create(tmp_path / "reader.key")
    options = P2PDOptions(identity.path, host_maddrs=(LOCAL,))
    status = {name: peer.status for name, peer in peers.items()}
    network = await Network.start(identity, options, status["named"]["maddrs"])
    try:
        assert await network.wait_joined(30.0)
        found = await network.read_peers(status["named"]["run_id"])
        records = {peer: opened.record for peer, opened in found.items()}
        for name, one in status.items():
            told = [f"{maddr}/p2p/{one['peer_id']}" for maddr in records[one["peer_id"]].maddrs]
            assert told == one["maddrs"], name
            assert records[one["peer_id"]].client_mode == (name == "client")
    finally:
        await network.stop()


def test_a_bootstrap_over_quic_is_as_good_as_any(house: House, peers: dict[str, Peer]) -> None:
    bootstrap = house.programs[0]
    assert all("/quic-v1/" in maddr for maddr in bootstrap.maddrs)  # type: ignore[attr-defined]
    until(lambda: bootstrap.status["dht_peers"] >= 3, 30, "it knows who listens", [bootstrap])  # type: ignore[attr-defined]


class Word(Message):
    """Says which it is."""

    number: int


@pytest.mark.parametrize("maddr", [LOCAL, QUIC], ids=["tcp", "quic"])
async def test_last_words_arrive_though_the_speaker_is_done(tmp_path: Path, maddr: str) -> None:
    words, payload = 3, bytes(50_000)
    networks = []
    for name in ("speaker", "listener"):
        identity = Identity.load_or_create(tmp_path / name)
        networks.append(await Network.start(identity, P2PDOptions(identity.path, host_maddrs=(maddr,))))
    speaker, listener = networks

    async def speak(channel: StreamChannel) -> None:
        await channel.receive(Word, timeout=30.0)
        for number in range(words):
            await channel.send(Word(number=number), payload)

    async def listen() -> list[int]:
        channel = await listener.open(speaker.peer_id, "/waggle/test", "round", 30.0)
        try:
            await channel.send(Word(number=0))
            return [(await channel.receive(Word, timeout=30.0))[0].number for _ in range(words)]
        finally:
            channel.close()

    try:
        assert await listener.dial(speaker.peer_id, speaker.maddrs, 30.0)
        await speaker.serve("/waggle/test", "round", speak)
        heard = [await asyncio.gather(*(listen() for _ in range(10))) for _ in range(5)]
    finally:
        for network in networks:
            await network.stop()
    assert heard == [[list(range(words))] * 10] * 5
