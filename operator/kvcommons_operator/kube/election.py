"""Who leads: a Lease, renewed by its holder and taken over by a candidate when it was not renewed for its whole length.

Nobody's clock is compared with another's: a candidate measures by its own monotonic clock how long the record has not changed. A leader that
could not renew for `renew_seconds_max` (shorter than the lease) must stop at once: `lead` returns, and the process exits, so that nothing of a
former leader goes on in threads, queues or sockets.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from kvcommons_operator.kube.client import Document, KubeClient
from kvcommons_operator.kube.errors import ConflictError, KubeError, NotFoundError
from kvcommons_operator.kube.kinds import LEASE

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Term:
    """How long things take. The relations keep two leaders apart: a leader stops before anyone may take over."""

    lease_seconds: int = 15
    renew_seconds_max: float = 10.0
    retry_seconds: float = 2.0
    renew_every_seconds: float = 4.0

    def __post_init__(self) -> None:
        if not self.renew_every_seconds + self.retry_seconds < self.renew_seconds_max < self.lease_seconds:
            raise ValueError(
                "renew_every_seconds + retry_seconds < renew_seconds_max < lease_seconds must hold: "
                f"{self.renew_every_seconds} + {self.retry_seconds}, {self.renew_seconds_max}, {self.lease_seconds}"
            )


class Election:
    """One candidate. `acquire` until it leads, then `lead` until it does not any more; `release` when it stops by itself."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        name: str,
        identity: str,
        term: Term | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.holder = ""
        """Who leads, as far as this candidate knows."""
        self.leading = False
        self._client = client
        self._namespace = namespace
        self._name = name
        self._term = term or Term()
        self._clock = clock
        self._seen: tuple[object, ...] | None = None
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._lease: Document | None = None

    async def acquire(self) -> None:
        """Returns once this candidate leads. The server being away is no error: it is tried again."""
        while True:
            try:
                if await self._try():
                    self.leading = True
                    logger.info("leading as %s", self.identity)
                    return
            except KubeError as error:
                logger.warning("the lease %s/%s cannot be had: %s", self._namespace, self._name, error)
            await asyncio.sleep(self._term.retry_seconds * (0.8 + 0.4 * random.random()))

    async def lead(self) -> None:
        """Renews. Returns when the lease is lost: the caller ends the process."""
        pause = self._term.renew_every_seconds
        while True:
            left = self._renewed_at + self._term.renew_seconds_max - self._clock()
            await asyncio.sleep(max(0.0, min(pause, left)))
            left = self._renewed_at + self._term.renew_seconds_max - self._clock()
            if left <= 0:
                self.leading = False
                logger.error("the lease was not renewed for %s s", self._term.renew_seconds_max)
                return
            try:
                if not await asyncio.wait_for(self._try(), left):
                    self.leading = False
                    logger.error("the lease is held by %s", self.holder)
                    return
                pause = self._term.renew_every_seconds
            except (KubeError, TimeoutError) as error:
                logger.warning("the lease is not renewed: %s", error or "no answer in time")
                pause = self._term.retry_seconds

    async def release(self) -> None:
        """Lets the next candidate lead at once. Best effort: the lease runs out by itself."""
        if not self.leading:
            return
        self.leading = False
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
            if (lease.get("spec") or {}).get("holderIdentity") == self.identity:
                lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.replace(LEASE, self._namespace, self._name, lease)
        except KubeError as error:
            logger.info("the lease is left to run out: %s", error)

    async def _try(self) -> bool:
        """Takes or renews the lease if that is allowed. :raises KubeError: if it is not known whether it was."""
        asked_at = self._clock()
        if self._lease is not None and self.leading:
            # What we wrote last is what stands there, or the write is refused: one request a renewal.
            lease, self._lease = self._lease, None
            try:
                return await self._write(lease, asked_at)
            except (ConflictError, NotFoundError):
                pass  # another has written, or it is gone: look
        try:
            lease = await self._client.get(LEASE, self._namespace, self._name)
        except NotFoundError:
            return await self._create(asked_at)
        spec = lease.get("spec") or {}
        self.holder = str(spec.get("holderIdentity") or "")
        if self.holder and self.holder != self.identity and not self._expired(spec):
            return False
        try:
            return await self._write(lease, asked_at)
        except ConflictError:
            if self.holder == self.identity:
                raise
            return False

    async def _write(self, lease: Document, asked_at: float) -> bool:
        lease["spec"] = self._spec(lease.get("spec") or {})
        written = await self._client.replace(LEASE, self._namespace, self._name, lease)
        return self._won(written, asked_at)

    async def _create(self, asked_at: float) -> bool:
        body: Document = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.name,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._spec({}),
        }
        try:
            written = await self._client.create(LEASE, self._namespace, body)
        except ConflictError:
            return False
        return self._won(written, asked_at)

    def _won(self, lease: Document, asked_at: float) -> bool:
        """The lease counts from when it was asked for: the answer may have taken its time."""
        self.holder, self._renewed_at, self._lease = self.identity, asked_at, lease
        self._observe(lease.get("spec") or {})
        return True

    def _expired(self, spec: Document) -> bool:
        self._observe(spec)
        return self._clock() - self._seen_at > float(spec.get("leaseDurationSeconds") or self._term.lease_seconds)

    def _observe(self, spec: Document) -> None:
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, self._clock()

    def _spec(self, old: Document) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        same = old.get("holderIdentity") == self.identity
        return {
            **old,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": self._term.lease_seconds,
            "acquireTime": old.get("acquireTime") if same and old.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": int(old.get("leaseTransitions") or 0) + (0 if same else 1),
        }
