"""TCP connections that send at once, and notice within about ten seconds that the other machine is gone."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

LOST_MS_MAX: Final = 10_000
"""A machine that loses its power says no word: without this a request waits for it until the longest time-out."""
PROBES: Final = ((socket.TCP_KEEPIDLE, 4), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))
"""An engine may think for long before it answers; its machine answers probes meanwhile. Seconds, seconds, probes."""


def watch(sock: socket.socket) -> None:
    """What was sent and not acknowledged, or a peer that answers no probe, ends the connection."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in PROBES:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_MS_MAX)


def send_at_once(transport: asyncio.BaseTransport) -> socket.socket | None:
    """Small writes leave at once: a token is one. Answers the socket, where it is one of TCP."""
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def prepare(transport: asyncio.BaseTransport) -> None:
    """Of a connection that we opened: it sends at once, and is watched."""
    sock = send_at_once(transport)
    if sock is not None:
        watch(sock)
