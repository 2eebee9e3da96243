"""Requests to p2pd over its control socket that leave nothing behind.

hivemind's own ``stream_open`` and ``connect`` leave the connection open when they fail or are cancelled, until the
garbage collector finds it; peers that cannot be reached are the rule here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from hivemind.p2p import P2P, PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import raise_if_failed, read_pbmsg_safe, write_pbmsg
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _request(p2p: P2P, request: p2pd_pb2.Request) -> Streams:
    """Sends ``request`` on a connection of its own; returns that after p2pd has agreed.

    Raises:
        ControlFailure: p2pd refused. OSError, asyncio.IncompleteReadError: p2pd is gone.
    """
    reader, writer = await p2p._client.control.daemon_connector.open_connection()
    try:
        await write_pbmsg(writer, request)
        response = p2pd_pb2.Response()
        await read_pbmsg_safe(reader, response)
        raise_if_failed(response)
    except BaseException:
        writer.close()
        raise
    return reader, writer


async def open_stream(p2p: P2P, peer_id: PeerID, protocol: str) -> Streams:
    """A stream of ``protocol`` to a peer. Raises as ``_request``."""
    opening = p2pd_pb2.StreamOpenRequest(peer=peer_id.to_bytes(), proto=[protocol])
    return await _request(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.STREAM_OPEN, streamOpen=opening))


async def connect(p2p: P2P, peer_id: PeerID, maddrs: Sequence[Multiaddr]) -> None:
    """Connects to a peer at any of ``maddrs``. Raises as ``_request``."""
    connecting = p2pd_pb2.ConnectRequest(peer=peer_id.to_bytes(), addrs=[maddr.to_bytes() for maddr in maddrs])
    _, writer = await _request(p2p, p2pd_pb2.Request(type=p2pd_pb2.Request.CONNECT, connect=connecting))
    writer.close()
