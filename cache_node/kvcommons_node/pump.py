"""The event pump: takes the core's ordered events and hands them on, without ever waiting for anybody."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Protocol

from kvcommons_node.metrics import EVENT_KINDS, REUSE_SOURCES, NodeMetrics
from kvcommons_node.seam import EVENTS_PER_DRAIN_MAX, Core, CoreEvent

logger = logging.getLogger(__name__)

REPORTED_TOKENS_MAX = 1 << 40
"""More is no report: a counter is a float, and one bad report must not cost the events behind it."""


class EventSink(Protocol):
    """Where events go. No method may block or wait: what cannot be kept is dropped there and begins a new epoch."""

    def committed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None: ...
    def freed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None: ...
    def feedback(self, report: str) -> None: ...
    def begin_epoch(self, reason: str) -> None: ...


class EventPump:
    """Drains the core when its event descriptor is readable. Lives on one event loop."""

    def __init__(self, core: Core, sink: EventSink, metrics: NodeMetrics) -> None:
        self._core = core
        self._sink = sink
        self._metrics = metrics
        self._descriptor: int | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._descriptor = self._core.event_fd()
        loop.add_reader(self._descriptor, self.drain)

    def stop(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what is left and stop watching; the core is still running."""
        if self._descriptor is not None:
            loop.remove_reader(self._descriptor)
            self._descriptor = None
            self.drain()

    def drain(self) -> int:
        """Hand on at most one batch; the descriptor stays readable while there is more. Returns how many it took."""
        raw, gap = self._core.drain_events(EVENTS_PER_DRAIN_MAX)
        if gap:
            # What was lost may be removals: everything published so far can no longer be trusted.
            self._metrics.event_gaps.inc()
            logger.warning("events were lost; beginning a new epoch")
            self._sink.begin_epoch("events were lost")
        for event in raw:
            self._take(CoreEvent(*event))
        return len(raw)

    def _take(self, event: CoreEvent) -> None:
        if event.kind in EVENT_KINDS:
            self._metrics.events.labels(event.kind).inc()
        match event.kind:
            case "committed":
                self._sink.committed(event.key, event.fingerprint, event.text_keys)
            case "freed":
                self._metrics.evicted_age.observe(event.age_ms / 1_000)
                self._sink.freed(event.key, event.fingerprint, event.text_keys)
            case "feedback":
                self._count(event.json)
                self._sink.feedback(event.json)
            case "session_opened" | "session_closed":
                logger.info(event.kind.replace("_", " "), extra={"fingerprint": event.fingerprint.hex()[:16]})

    def _count(self, report: str) -> None:
        """Add a request's report to the counters; one that is no such object is passed on uncounted."""
        try:
            fields = json.loads(report)
        except (ValueError, RecursionError):
            return
        if not isinstance(fields, dict):
            return
        for source in REUSE_SOURCES:
            tokens = fields.get(f"{source}_tokens")
            if isinstance(tokens, int) and 0 < tokens < REPORTED_TOKENS_MAX:
                self._metrics.reused_tokens.labels(source).inc(tokens)
