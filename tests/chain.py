"""Identities, links and certificates for tests: real keys, the same in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import base58
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from swarm.history import Ballot, Certificate, Link, Vote
from swarm.identity import Identity, PeerId

RUN_ID = "test@0123456789abcdef"


@cache
def identity(number: int) -> Identity:
    """The identity that follows from ``number``; it has no file."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"test key {number}".encode()).digest())
    # multihash "identity" of 36 bytes, protobuf: Ed25519, 32 bytes (libp2p specs, peer-ids/peer-ids.md)
    public = b"\x00\x24\x08\x01\x12\x20" + key.public_key().public_bytes_raw()
    return Identity(key, base58.b58encode(public).decode(), Path(f"{number}.key"))


PEERS: list[PeerId] = [identity(number).peer_id for number in range(12)]
"""The peer ids of ``identity(0)`` to ``identity(11)``."""


def digest(name: object) -> str:
    """A digest that follows from ``name``."""
    return hashlib.sha256(repr(name).encode()).hexdigest()


def certified(link: Link, voters: Iterable[int], ballot: Ballot | None = None) -> Certificate:
    """``link`` with the votes of these identities."""
    ballot = ballot or Ballot(number=1, leader=PEERS[0])
    return Certificate(link=link, ballot=ballot, votes=[Vote.sign(identity(voter), ballot, link) for voter in voters])


GENESIS = digest("genesis")


def a_chain(*participants: dict[int, int], run_id: str = RUN_ID) -> list[Certificate]:
    """A link per argument, each signed by its participants (identity -> examples) and those of the link before."""
    chain: list[Certificate] = []
    previous, work, before = GENESIS, 0, set[int]()
    for step, group in enumerate(participants, start=1):
        work += sum(group.values())
        made = digest((step, sorted(group.items())))
        link = Link(
            run_id=run_id, outer_step=step, previous=previous, digest=made,
            participants={PEERS[number]: examples for number, examples in group.items()}, work=work,
        )  # fmt: skip
        chain.append(certified(link, before | group.keys()))
        previous, before = made, set(group)
    return chain
