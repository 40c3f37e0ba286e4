"""A client that keeps its connections, one for each thread: a handshake for every request would be a good part of what is measured."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from typing import Any
from urllib.parse import urlsplit

from kube_client import REQUEST_SECONDS_MAX, ApiError, Client

ATTEMPTS_MAX = 3


class KeptClient(Client):
    """Asks as `of` does."""

    def __init__(self, of: Client) -> None:
        super().__init__(of.url, of.ca, of.token, of.kubeconfig, "")
        self._place = threading.local()
        self._host = urlsplit(of.url).netloc
        self._secure = ssl.create_default_context(cafile=str(of.ca))

    def request(self, method: str, path: str, body: Any = None, content: str = "application/json") -> Any:
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json", "Content-Type": content}
        data = json.dumps(body).encode() if body is not None else None
        status, raw = self._answer(method, path, data, headers)
        if status >= 400:
            raise ApiError(status, raw.decode(errors="replace"))
        return json.loads(raw)

    def _answer(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> tuple[int, bytes]:
        """The server may have closed a connection that was idle."""
        for attempt in range(ATTEMPTS_MAX):
            connection = self._connection()
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (http.client.HTTPException, ConnectionError):
                connection.close()
                if attempt + 1 == ATTEMPTS_MAX:
                    raise
        raise AssertionError("unreachable")

    def _connection(self) -> http.client.HTTPSConnection:
        if not hasattr(self._place, "connection"):
            made = http.client.HTTPSConnection(self._host, timeout=REQUEST_SECONDS_MAX, context=self._secure)
            self._place.connection = made
        connection: http.client.HTTPSConnection = self._place.connection
        return connection
