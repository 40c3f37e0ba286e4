"""The connections to one engine, kept between requests."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque

from kvcommons_router.upstream import Upstream


class Pool:
    """The connections to one instance; the last one used is the first one used again."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        idle_max: int,
        idle_seconds: float,
        connect_seconds: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.host = host
        self.port = port
        self._idle: deque[Upstream] = deque()
        self._idle_max = idle_max
        self._idle_seconds = idle_seconds
        self._connect_seconds = connect_seconds
        self._tls = tls
        self._retired = False
        self.open = 0

    def take_idle(self, now: float) -> Upstream | None:
        """A connection that is open and not too old to be trusted, if there is one."""
        idle = self._idle
        while idle:
            upstream = idle.pop()
            if upstream.closed:
                continue
            if now - upstream.idle_since > self._idle_seconds:
                self.close_idle()  # it was the youngest
                upstream.transport.abort()
                return None
            upstream.reused = True
            return upstream
        return None

    async def connect(self) -> Upstream:
        """A new connection.

        :raises OSError: if there is none to be had; TimeoutError, which is one, if it takes too long.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._connect_seconds):
            _, upstream = await loop.create_connection(lambda: Upstream(self), self.host, self.port, ssl=self._tls)
        self.open += 1
        return upstream

    def give_back(self, upstream: Upstream) -> None:
        """Keeps a connection for the next request, or closes it when enough are kept."""
        if upstream.closed or upstream.transport.is_closing():
            return
        if self._retired or len(self._idle) >= self._idle_max:
            upstream.transport.close()
            return
        upstream.idle_since = upstream.last_at
        self._idle.append(upstream)

    def lost(self, upstream: Upstream) -> None:
        """Forgets a connection that ended."""
        self.open -= 1

    def expire(self, now: float) -> None:
        """Closes those that have been idle too long; called about once a second."""
        idle = self._idle
        while idle and (idle[0].closed or now - idle[0].idle_since > self._idle_seconds):
            upstream = idle.popleft()
            if not upstream.closed:
                upstream.transport.close()

    def retire(self) -> None:
        """Keeps no connection any more; those that are busy end with their requests."""
        self._retired = True
        self.close_idle()

    def close_idle(self) -> None:
        """Closes all that wait; after a failure none of them is to be trusted."""
        while self._idle:
            upstream = self._idle.popleft()
            if not upstream.closed:
                upstream.transport.close()
