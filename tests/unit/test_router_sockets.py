"""Connections of the router notice a machine that is gone without a word."""

from __future__ import annotations

import asyncio
import socket
from contextlib import closing

from kvcommons_router import sockets


async def test_a_connection_to_an_engine_gives_up_a_silent_machine() -> None:
    """What is sent and never acknowledged ends it after ten seconds, and so does silence that no probe breaks."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
    with closing(transport):
        sockets.prepare(transport)
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == sockets.LOST_MS_MAX
        probing = {option: sock.getsockopt(socket.IPPROTO_TCP, option) for option, _ in sockets.PROBES}
    idle, between, count = (probing[option] for option, _ in sockets.PROBES)
    assert (idle + between * count) * 1000 <= sockets.LOST_MS_MAX
    server.close()
    await server.wait_closed()
