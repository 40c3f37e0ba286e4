"""Events (events.k8s.io/v1) that help: one per object, reason and text, repeated as a series at a bounded rate."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from kvcommons_operator.kube.client import Document, KubeClient
from kvcommons_operator.kube.errors import ConflictError, KubeError
from kvcommons_operator.kube.kinds import EVENT

NOTE_CHARACTERS_MAX: Final = 1_024
REPEAT_SECONDS: Final = 600.0
"""The same event is told again this often at most."""
REMEMBERED_MAX: Final = 4_096
CONTROLLER: Final = "kvcommons.io/operator"

logger = logging.getLogger(__name__)


class Recorder:
    """Tells events; never an error to anybody."""

    def __init__(self, client: KubeClient, instance: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._instance = instance[:128]
        self._clock = clock
        self._told: dict[str, tuple[float, int, str]] = {}

    async def tell(
        self, about: Mapping[str, Any], kind: str, reason: str, note: str, action: str = "Reconcile"
    ) -> None:
        """:param about: the object (apiVersion, kind, metadata). :param kind: Normal or Warning."""
        metadata = about["metadata"]
        name = _name(metadata, kind, reason, note)
        told = self._told.get(name)
        now = self._clock()
        if told is not None and now - told[0] < REPEAT_SECONDS:
            return
        while len(self._told) >= REMEMBERED_MAX:
            self._told.pop(next(iter(self._told)))
        count, since = (told[1] + 1, told[2]) if told else (1, _now())
        self._told[name] = (now, count, since)
        try:
            await self._write(self._event(about, name, kind, reason, note, action, count, since))
        except KubeError as error:
            logger.info("an event is not told: %s", error)

    async def _write(self, event: Document) -> None:
        """Most are told once, and made by the cheaper request."""
        if "series" not in event:
            try:
                await self._client.create(EVENT, event["metadata"]["namespace"], event)
                return
            except ConflictError:
                pass  # one that was told before this operator began
        await self._client.apply(event)

    def _event(
        self,
        about: Mapping[str, Any],
        name: str,
        kind: str,
        reason: str,
        note: str,
        action: str,
        count: int,
        since: str,
    ) -> Document:
        metadata = about["metadata"]
        event: Document = {
            "apiVersion": EVENT.api_version,
            "kind": EVENT.name,
            "metadata": {"name": name, "namespace": metadata.get("namespace") or "default"},
            "eventTime": since,
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": action[:128],
            "reason": reason[:128],
            "type": kind,
            "note": note[:NOTE_CHARACTERS_MAX],
            "regarding": {
                "apiVersion": about["apiVersion"],
                "kind": about["kind"],
                "name": metadata["name"],
                "namespace": metadata.get("namespace") or "",
                "uid": metadata.get("uid") or "",
            },
        }
        if count > 1:
            event["series"] = {"count": count, "lastObservedTime": _now()}
        return event


def _name(metadata: Mapping[str, Any], kind: str, reason: str, note: str) -> str:
    digest = hashlib.sha256(f"{metadata.get('uid')}/{kind}/{reason}/{note}".encode()).hexdigest()[:16]
    return f"{str(metadata['name'])[:200]}.{digest}"


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
