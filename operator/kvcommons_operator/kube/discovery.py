"""Which optional APIs the cluster serves, asked at most once a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final

from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import KubeError, NotFoundError
from kvcommons_operator.kube.kinds import Kind

TTL_SECONDS: Final = 300.0
"""An API that was installed after the operator is used within this time."""


class Discovery:
    """Remembers which kinds are served. An API group that does not answer for now keeps its last verdict."""

    def __init__(
        self,
        client: KubeClient,
        kinds: Iterable[Kind],
        *,
        ttl_seconds: float = TTL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._kinds = tuple(kinds)
        self._ttl_seconds = ttl_seconds
        self._clock = clock
        self._served: frozenset[Kind] = frozenset()
        self._asked_at: float | None = None
        self._lock = asyncio.Lock()

    @property
    def served(self) -> frozenset[Kind]:
        """As of the last time that was asked."""
        return self._served

    def forget(self) -> None:
        """Asks anew with the next call: a request said that an API is gone."""
        self._asked_at = None

    async def refresh(self) -> frozenset[Kind]:
        """The kinds that are served. :raises KubeError: if it was never known and the server does not answer."""
        async with self._lock:
            if self._asked_at is not None and self._clock() - self._asked_at < self._ttl_seconds:
                return self._served
            served: set[Kind] = set()
            groups = await self._groups()
            for api_version in sorted({kind.api_version for kind in self._kinds}):
                wanted = {kind for kind in self._kinds if kind.api_version == api_version}
                if api_version in groups:
                    served |= await self._served_of(api_version, wanted)
            self._served, self._asked_at = frozenset(served), self._clock()
            return self._served

    async def _groups(self) -> set[str]:
        """One request lists all groups, so that a cluster without any optional API costs nothing more."""
        answer = await self._client.request("GET", "/apis")
        return {
            version["groupVersion"] for group in answer.get("groups") or [] for version in group.get("versions") or []
        }

    async def _served_of(self, api_version: str, wanted: set[Kind]) -> set[Kind]:
        try:
            answer = await self._client.request("GET", f"/apis/{api_version}")
        except NotFoundError:
            return set()
        except KubeError:
            if self._asked_at is None:
                raise
            return wanted & self._served
        names = {resource.get("name") for resource in answer.get("resources") or []}
        return {kind for kind in wanted if kind.plural in names}
