"""The event pump: takes the core's ordered events and hands them on, without ever waiting for anybody."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from kvcommons_node.feed import Feed
from kvcommons_node.metrics import EVENT_KINDS, REUSE_SOURCES, NodeMetrics
from kvcommons_node.model_names import ModelNames
from kvcommons_node.reports import Reports, for_routers
from kvcommons_node.seam import EVENTS_PER_DRAIN_MAX, MEMORY, Core, CoreEvent

logger = logging.getLogger(__name__)


class EventSink(Protocol):
    """Where events go. No method may block or wait: what cannot be kept is dropped there and begins a new epoch."""

    def committed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None: ...
    def freed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None: ...
    def placed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...], tier: str) -> None:
        """The chunk is on this tier now, and not in memory."""
        ...

    def feedback(self, report: str) -> None: ...
    def begin_epoch(self, reason: str) -> None: ...


class EventPump:
    """Drains the core when its event descriptor is readable. Lives on one event loop."""

    def __init__(
        self,
        core: Core,
        sink: EventSink,
        metrics: NodeMetrics,
        reports: Reports,
        feed: Feed,
        models: ModelNames,
        on_wake: Callable[[], None] = lambda: None,
    ) -> None:
        """:param on_wake: called when the core has woken the pump, for whatever else it has to say."""
        self._core = core
        self._sink = sink
        self._metrics = metrics
        self._reports = reports
        self._feed = feed
        self._models = models
        self._on_wake = on_wake
        self._descriptor: int | None = None
        self._cleared = 0
        """Of the chunks that calls have cleared, how many were seen to go."""

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
            self._sink.begin_epoch("events_lost")
            self._feed.tell_all("gap", {})
        events = [CoreEvent(*event) for event in raw]
        self._bury([event for event in events if event.kind in ("freed", "moved") and not event.tier])
        for event in events:
            self._take(event)
        self._on_wake()
        return len(raw)

    def _take(self, event: CoreEvent) -> None:
        if event.kind in EVENT_KINDS:
            self._metrics.events.labels(event.kind).inc()
        match event.kind:
            case "committed":
                self._reports.history.committed(event.fingerprint, event.text_keys)
                self._sink.committed(event.key, event.fingerprint, event.text_keys)
            case "freed":
                self._metrics.evicted_age.observe(event.age_ms / 1_000)
                self._moved(event)
            case "moved":
                self._moved(event)
            case "feedback":
                self._hear(event)
            case "session_opened" | "session_closed":
                logger.info(event.kind.replace("_", " "), extra={"fingerprint": event.fingerprint.hex()[:16]})
        if self._feed.followed and event.kind != "feedback":
            self._feed.tell(event.kind, _shown(event))

    def _bury(self, gone: list[CoreEvent]) -> None:
        """What is on this node no more. The core counts how many were cleared; which ones, where some were evicted meanwhile, is a guess."""
        if not gone:
            return
        cleared = self._core.stats().get("cleared", 0)
        for event in gone:
            by_call = self._cleared < cleared
            self._cleared += by_call
            self._reports.history.gone(event.key, "cleared" if by_call else "evicted", event.age_ms)

    def _moved(self, event: CoreEvent) -> None:
        """It left memory, or a tier took or dropped it: tell where it is by now. In memory again: its commit tells."""
        if not event.tier:
            self._sink.freed(event.key, event.fingerprint, event.text_keys)
        elif event.tier != MEMORY:
            self._sink.placed(event.key, event.fingerprint, event.text_keys, event.tier)

    def _hear(self, event: CoreEvent) -> None:
        """Keep a request's report and add it to the counters; one that is none is passed on unheard."""
        fields = self._reports.hear(event.json, event.fingerprint)
        if fields is None:
            self._sink.feedback(event.json)
            return
        self._sink.feedback(for_routers(event.json))
        self._models.hear(event.fingerprint, str(fields.pop("model", "")))
        for source in REUSE_SOURCES:
            tokens = fields[f"{source}_tokens"]
            if isinstance(tokens, int) and tokens:
                self._metrics.reused_tokens.labels(source).inc(tokens)
        self._feed.tell("request", dict(fields))


def _shown(event: CoreEvent) -> dict[str, object]:
    shown: dict[str, object] = {"fingerprint": event.fingerprint.hex()}
    if event.kind in ("committed", "freed", "moved"):
        shown["key"] = event.key.hex()
    if event.tier:
        shown["tier"] = event.tier
    if event.kind == "freed":
        shown["age_seconds"] = event.age_ms / 1_000
    return shown
