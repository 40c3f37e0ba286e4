"""Requests to the API server: its address, its certificate, the token of the ServiceAccount, connections that notice their death."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp.connector import AddrInfoType

from kvcommons_router import sockets
from kvcommons_router.settings_instances import KubernetesSettings

CONNECT_SECONDS_MAX: Final = 5.0
TOKEN_BYTES_MAX: Final = 64 * 1024


class KubeSession:
    """One connection, made again when it failed. Token and authorities are read when they are needed: both rotate."""

    def __init__(self, settings: KubernetesSettings) -> None:
        self._address = settings.api
        self._token_file = settings.token_file
        self._ca_file = settings.ca_file
        self._session: aiohttp.ClientSession | None = None

    def get(
        self, path: str, query: Mapping[str, str], *, seconds_max: float
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """A GET; the answer's body is read by whoever asked."""
        if self._session is None:
            self._session = self._open()
        token = _read(self._token_file)
        return self._session.get(
            self._address + path,
            params=query,
            headers={"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})},
            timeout=aiohttp.ClientTimeout(total=seconds_max, connect=CONNECT_SECONDS_MAX),
            allow_redirects=False,
        )

    async def renew(self) -> None:
        """Begins with a new connection, and authorities as they are then."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        trust: ssl.SSLContext | bool = True
        if self._address.startswith("https:"):
            trust = ssl.create_default_context(cafile=str(self._ca_file) if self._ca_file.is_file() else None)
        connector = aiohttp.TCPConnector(ssl=trust, limit=2, socket_factory=_socket)
        return aiohttp.ClientSession(connector=connector, auto_decompress=True)


def _socket(address: AddrInfoType) -> socket.socket:
    family, kind, protocol, _, _ = address
    made = socket.socket(family=family, type=kind, proto=protocol)
    sockets.watch(made)
    return made


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(TOKEN_BYTES_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""
