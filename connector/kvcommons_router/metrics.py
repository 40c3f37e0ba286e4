"""The router's metrics: where each number lies in the shared cells."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Final

from kvcommons_router.settings_instances import INSTANCES_MAX

PREFIX: Final = "kvcommons_router_"
MICRO: Final = 1e-6
STATUSES: Final = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 499, 500, 501, 502, 503, 504, 0)
OUTCOMES: Final = ("ok", "connect_failed", "broken", "refused", "timeout", "cancelled")
SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
MODELS_MAX: Final = 256
AXES: Final = {"model": "model", "instance": "replica"}
"""The label of an axis. `instance` is Prometheus' own: the target that was scraped, here the router."""
CHANGES: Final = ("added", "changed", "restarted", "out", "back", "leaving", "gone", "dropped")
EVENTS: Final = ("added", "modified", "deleted", "bookmark", "unreadable")
TROUBLES: Final = ("expired", "throttled", "refused", "server", "connection")
LOOKUP_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.01, 0.05)


@dataclasses.dataclass(frozen=True, slots=True)
class Names:
    """The models and instances that there are now, by the positions of their cells."""

    models: tuple[tuple[int, str], ...]
    instances: tuple[tuple[int, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """One metric: its cells begin at `first`; a block for each model or instance, in it one for each combination of labels."""

    name: str
    kind: str
    help: str
    first: int
    axis: str = ""
    """"model" or "instance": the values of AXES' label come and go; empty for none."""
    axis_size: int = 1
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    scale: float = 1.0
    buckets: tuple[float, ...] = ()

    @property
    def stride(self) -> int:
        """Cells for one combination of label values."""
        return len(self.buckets) + 2 if self.buckets else 1

    @property
    def block(self) -> int:
        """Cells for one value of the axis."""
        return self.stride * math.prod(len(values) for values in self.values)

    @property
    def cells(self) -> int:
        """How many cells it takes."""
        return self.block * self.axis_size

    def blocks(self, names: Names) -> list[tuple[int, tuple[tuple[str, str], ...]]]:
        """Where the block of each value of the axis begins, and the label that it is."""
        if not self.axis:
            return [(self.first, ())]
        present = names.models if self.axis == "model" else names.instances
        return [(self.first + position * self.block, ((AXES[self.axis], name),)) for position, name in present]

    def combinations(self) -> list[tuple[tuple[str, str], ...]]:
        """Every combination of the other labels, in the order of the cells."""
        return [tuple(zip(self.labels, one, strict=True)) for one in itertools.product(*self.values)]


class Layout:
    """Every metric of a router and the column of each; equal in all workers, whatever models and instances there are."""

    def __init__(self, models_max: int = MODELS_MAX, instances_max: int = INSTANCES_MAX) -> None:
        self.families: list[Family] = []
        self.columns = 0
        self.models_max = models_max
        self.instances_max = instances_max
        self.other_model = models_max
        """The position of what is of no model, or of one too many."""
        self.status_column = {status: index for index, status in enumerate(STATUSES)}
        statuses = tuple(str(status) if status else "other" for status in STATUSES)
        self.requests = self._counter(
            "requests_total", "Requests answered, by model and status.", axis="model", status=statuses
        )
        self.request_seconds = self._histogram(
            "request_seconds",
            "Seconds from a request's last byte to its answer's.",
            SECONDS_BUCKETS,
            axis="model",
        )
        self.first_byte_seconds = self._histogram(
            "first_byte_seconds",
            "Seconds from a request's last byte to its answer's first.",
            SECONDS_BUCKETS,
            axis="instance",
        )
        self.attempts = self._counter(
            "attempts_total", "Requests sent to an instance, by how they ended.", axis="instance", outcome=OUTCOMES
        )
        self.retries = self._counter("retries_total", "Requests sent again, before the first byte.")
        self.response_bytes = self._counter("response_bytes_total", "Bytes of engines' answers relayed.")
        self.response_chunks = self._counter("response_chunks_total", "Pieces of engines' answers relayed.")
        self.refusals = self._counter("refusals_total", "Requests refused because a limit was reached.", limit=LIMITS)
        self.prompt_tokens = self._counter("prompt_tokens_total", "Prompt tokens that engines reported.")
        self.lookups = self._counter(
            "index_lookups_total",
            "Requests' lookups in the index, by what answered.",
            source=("mirror", "redis", "timeout", "down", "skipped"),
        )
        waited = "Seconds that requests waited for Redis."
        self.lookup_seconds = self._histogram("index_lookup_seconds", waited, LOOKUP_BUCKETS)
        self.intents = self._counter(
            "index_intents_total",
            "Text keys recorded at dispatch, by what became of them.",
            outcome=("sent", "dropped"),
        )
        self.key_reloads = self._counter(
            "key_reloads_total", "Reads of a changed API key file.", outcome=("ok", "failed")
        )
        self.worker_restarts = self._counter("worker_restarts_total", "Worker processes started again after a crash.")
        self.prefill_work = self._counter(
            "prefill_work_seconds_total", "Seconds of prefill work sent out, as estimated.", MICRO
        )
        self.queue_seconds = self._histogram(
            "queue_seconds",
            "Seconds that requests waited in the router for a replica, of those that did.",
            SECONDS_BUCKETS,
        )
        self._truth_counters()
        self._roster_counters()
        self._gauges()

    def _truth_counters(self) -> None:
        self.predicted_tokens = self._counter(
            "predicted_tokens_total",
            "Prompt tokens expected to be reused, of requests that engines reported on.",
            axis="instance",
            source=("engine", "memory", "disk", "peer"),
        )
        self.actual_tokens = self._counter(
            "actual_tokens_total",
            "Prompt tokens reused, as engines reported.",
            axis="instance",
            source=("own", "commons"),
        )
        self.saved_seconds = self._counter(
            "saved_prefill_seconds_total",
            "Seconds of prefill, and so of waiting for first tokens, that reuse spared, by the rates learnt.",
            MICRO,
            axis="instance",
            source=("own", "commons"),
        )
        self.feedback = self._counter(
            "feedback_total",
            "Reports of what a request reused, by what became of them.",
            outcome=("applied", "corrected", "foreign", "invalid"),
        )

    def _roster_counters(self) -> None:
        self.roster_changes = self._counter(
            "roster_changes_total", "Instances that came, changed or went, by what happened.", what=CHANGES
        )
        self.reloads = self._counter(
            "instance_reloads_total", "Reads of a changed file of instances.", outcome=("ok", "failed")
        )
        self.discovery_lists = self._counter("discovery_lists_total", "Times that all pods were listed.")
        self.discovery_events = self._counter(
            "discovery_events_total", "Events of the watch of pods, by kind.", kind=EVENTS
        )
        self.discovery_errors = self._counter(
            "discovery_errors_total", "What the API server refused or cut off, by reason.", reason=TROUBLES
        )
        self.discovery_pods_refused = self._counter(
            "discovery_pod_problems_total", "Pods that say what is not understood, each time they do."
        )

    def _gauges(self) -> None:
        self.connections = self._gauge("connections", "Client connections that are open.")
        self.requests_now = self._gauge("requests_in_flight", "Requests under way.")
        self.queued = self._gauge("queued_requests", "Requests that wait in the router for a replica.")
        self.body_bytes = self._gauge("body_bytes", "Bytes of request bodies held.")
        self.workers = self._gauge("workers", "Worker processes that serve.")
        self.waiting_tokens = self._gauge(
            "waiting_tokens", "Uncached prompt tokens sent to an instance and not yet prefilled.", axis="instance"
        )
        self.decoding = self._gauge("decoding_requests", "Requests whose first byte has come.", axis="instance")
        self.dispatched = self._gauge(
            "dispatched_requests", "Requests sent to an instance and not ended.", axis="instance"
        )
        self.index_up = self._gauge("index_connections", "Workers that are connected to Redis.")
        self.mirror_entries = self._gauge("index_mirror_entries", "Text keys in the workers' mirrors.")
        self.instances_dropped = self._gauge(
            "instances_dropped", f"Instances that get nothing because there are more than {INSTANCES_MAX}."
        )
        self.discovery_watching = self._gauge("discovery_watching", "Whether the API server is being listened to.")
        self.discovery_heard = self._gauge(
            "discovery_heard_timestamp_seconds", "When the API server was last heard, in Unix time."
        )
        # Not written out as they are: health is, in `instance_up`.
        self.roster_applied = self._gauge("_roster_applied", "")  # the last version that a worker has followed
        self.active = self._gauge("_active_state", "", axis="instance")  # 0 unknown, 1 up, 2 down
        self.ejected_until = self._gauge("_ejected_until_ms", "", axis="instance")

    def _add(self, family: Family) -> int:
        self.families.append(family)
        self.columns += family.cells
        return family.first

    def _family(
        self,
        name: str,
        kind: str,
        text: str,
        *,
        axis: str = "",
        scale: float = 1.0,
        buckets: tuple[float, ...] = (),
        labels: Mapping[str, tuple[str, ...]] | None = None,
    ) -> int:
        labels = labels or {}
        size = {"model": self.models_max + 1, "instance": self.instances_max}.get(axis, 1)
        names, values = tuple(labels), tuple(labels.values())
        return self._add(Family(PREFIX + name, kind, text, self.columns, axis, size, names, values, scale, buckets))

    def _counter(self, name: str, text: str, scale: float = 1.0, *, axis: str = "", **labels: tuple[str, ...]) -> int:
        return self._family(name, "counter", text, axis=axis, scale=scale, labels=labels)

    def _gauge(self, name: str, text: str, *, axis: str = "") -> int:
        return self._family(name, "gauge", text, axis=axis)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *, axis: str = "") -> int:
        return self._family(name, "histogram", text, axis=axis, scale=MICRO, buckets=buckets)

    def clear_instance(self, row: memoryview, index: int) -> None:
        """Sets a process' cells of an instance to 0: what comes to its place begins anew."""
        for family in self.families:
            if family.axis == "instance":
                first = family.first + index * family.block
                row[first : first + family.block] = memoryview(bytes(family.block * row.itemsize)).cast("Q")

    def gauge_columns(self) -> list[int]:
        """The columns that describe a living process, to be cleared when it dies."""
        found: list[int] = []
        for family in self.families:
            if family.kind == "gauge":
                found.extend(range(family.first, family.first + family.cells))
        return found


LIMITS: Final = (
    "connections",
    "requests",
    "tenant_requests",
    "tenant_minute",
    "body_bytes",
    "bodies_bytes",
    "headers",
    "pipelined",
    "slow",
    "queue",
    "queue_seconds",
)


class Recorder:
    """One worker's hand on its row."""

    __slots__ = ("_seconds_stride", "layout", "row")

    def __init__(self, layout: Layout, row: memoryview) -> None:
        self.layout = layout
        self.row = row
        self._seconds_stride = len(SECONDS_BUCKETS) + 2

    def count(self, column: int, by: int = 1) -> None:
        """Adds to a counter."""
        self.row[column] += by

    def observe_seconds(self, first: int, index: int, seconds: float) -> None:
        """Adds to a histogram with SECONDS_BUCKETS, of the `index`-th label value."""
        base = first + index * self._seconds_stride
        row = self.row
        row[base + bisect.bisect_left(SECONDS_BUCKETS, seconds)] += 1
        row[base + self._seconds_stride - 1] += int(seconds * 1e6) if seconds > 0 else 0

    def observe_lookup(self, seconds: float) -> None:
        """Adds to the histogram of waiting for Redis."""
        base = self.layout.lookup_seconds
        self.row[base + bisect.bisect_left(LOOKUP_BUCKETS, seconds)] += 1
        self.row[base + len(LOOKUP_BUCKETS) + 1] += int(seconds * 1e6)

    def refused(self, limit: str) -> None:
        """Counts a limit that was reached."""
        self.row[self.layout.refusals + LIMITS.index(limit)] += 1
