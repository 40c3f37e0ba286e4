"""The router's metrics: where each number lies in the shared cells, and how they are written out for Prometheus."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Final

from kvcommons_router.cells import Cells

PREFIX: Final = "kvcommons_router_"
MICRO: Final = 1e-6
STATUSES: Final = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 431, 499, 500, 501, 502, 503, 504, 0)
OUTCOMES: Final = ("ok", "connect_failed", "broken", "refused", "timeout", "cancelled")
SECONDS_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
LOOKUP_BUCKETS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.01, 0.05)


@dataclasses.dataclass(frozen=True, slots=True)
class Family:
    """One metric: its cells begin at `first`, one for each combination of its labels' values."""

    name: str
    kind: str
    help: str
    first: int
    labels: tuple[str, ...] = ()
    values: tuple[tuple[str, ...], ...] = ()
    scale: float = 1.0
    buckets: tuple[float, ...] = ()

    @property
    def stride(self) -> int:
        """Cells for one combination of label values."""
        return len(self.buckets) + 2 if self.buckets else 1

    @property
    def combinations(self) -> list[tuple[str, ...]]:
        """Every combination of label values, in the order of the cells."""
        return list(itertools.product(*self.values))

    @property
    def cells(self) -> int:
        """How many cells it takes."""
        return self.stride * len(self.combinations)


class Layout:
    """Every metric of a router with these models and instances, and the column of each; equal in all workers."""

    def __init__(self, models: Sequence[str], instances: Sequence[str]) -> None:
        self.families: list[Family] = []
        self.columns = 0
        self.models = (*models, "")
        self.instances = tuple(instances)
        self.status_column = {status: index for index, status in enumerate(STATUSES)}
        statuses = tuple(str(status) if status else "other" for status in STATUSES)
        one = self.instances
        self.requests = self._counter(
            "requests_total", "Requests answered, by model and status.", model=self.models, status=statuses
        )
        self.request_seconds = self._histogram(
            "request_seconds",
            "Seconds from a request's last byte to its answer's.",
            SECONDS_BUCKETS,
            model=self.models[:-1],
        )
        self.first_byte_seconds = self._histogram(
            "first_byte_seconds",
            "Seconds from a request's last byte to its answer's first.",
            SECONDS_BUCKETS,
            instance=one,
        )
        self.attempts = self._counter(
            "attempts_total", "Requests sent to an instance, by how they ended.", instance=one, outcome=OUTCOMES
        )
        self.retries = self._counter("retries_total", "Requests sent again, before the first byte.")
        self.response_bytes = self._counter("response_bytes_total", "Bytes of engines' answers relayed.")
        self.response_chunks = self._counter("response_chunks_total", "Pieces of engines' answers relayed.")
        self.refusals = self._counter("refusals_total", "Requests refused because a limit was reached.", limit=LIMITS)
        self.prompt_tokens = self._counter("prompt_tokens_total", "Prompt tokens that engines reported.")
        self.predicted_tokens = self._counter(
            "predicted_tokens_total",
            "Prompt tokens expected to be reused, of requests that engines reported on.",
            instance=one,
            source=("engine", "memory", "disk", "peer"),
        )
        self.actual_tokens = self._counter(
            "actual_tokens_total",
            "Prompt tokens reused, as engines reported.",
            instance=one,
            source=("own", "commons"),
        )
        self.feedback = self._counter(
            "feedback_total",
            "Reports of what a request reused, by what became of them.",
            outcome=("applied", "corrected", "foreign", "invalid"),
        )
        self.lookups = self._counter(
            "index_lookups_total",
            "Requests' lookups in the index, by what answered.",
            source=("mirror", "redis", "timeout", "down", "skipped"),
        )
        self.lookup_seconds = self._histogram(
            "index_lookup_seconds", "Seconds that requests waited for Redis.", LOOKUP_BUCKETS
        )
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
        self._gauges(one)

    def _gauges(self, one: tuple[str, ...]) -> None:
        self.connections = self._gauge("connections", "Client connections that are open.")
        self.requests_now = self._gauge("requests_in_flight", "Requests under way.")
        self.body_bytes = self._gauge("body_bytes", "Bytes of request bodies held.")
        self.workers = self._gauge("workers", "Worker processes that serve.")
        self.waiting_tokens = self._gauge(
            "waiting_tokens", "Uncached prompt tokens sent to an instance and not yet prefilled.", instance=one
        )
        self.decoding = self._gauge("decoding_requests", "Requests whose first byte has come.", instance=one)
        self.dispatched = self._gauge(
            "dispatched_requests", "Requests sent to an instance and not ended.", instance=one
        )
        self.index_up = self._gauge("index_connections", "Workers that are connected to Redis.")
        self.mirror_entries = self._gauge("index_mirror_entries", "Text keys in the workers' mirrors.")
        # Not written out as they are: health is, in `instance_up`.
        self.active = self._gauge("_active_state", "", instance=one)  # 0 unknown, 1 up, 2 down
        self.ejected_until = self._gauge("_ejected_until_ms", "", instance=one)

    def _add(self, family: Family) -> int:
        self.families.append(family)
        self.columns += family.cells
        return family.first

    def _counter(self, name: str, text: str, scale: float = 1.0, **labels: tuple[str, ...]) -> int:
        return self._add(
            Family(PREFIX + name, "counter", text, self.columns, tuple(labels), tuple(labels.values()), scale)
        )

    def _gauge(self, name: str, text: str, **labels: tuple[str, ...]) -> int:
        return self._add(Family(PREFIX + name, "gauge", text, self.columns, tuple(labels), tuple(labels.values())))

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> int:
        family = Family(
            PREFIX + name, "histogram", text, self.columns, tuple(labels), tuple(labels.values()), MICRO, buckets
        )
        return self._add(family)

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
    "body_bytes",
    "bodies_bytes",
    "headers",
    "pipelined",
    "slow",
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


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(names: tuple[str, ...], values: tuple[str, ...], extra: str = "") -> str:
    parts = [f'{name}="{_escape(value)}"' for name, value in zip(names, values, strict=True)]
    if extra:
        parts.append(extra)
    return "{" + ",".join(parts) + "}" if parts else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 6))


def render(layout: Layout, cells: Cells, up: Sequence[bool]) -> bytes:
    """All workers' numbers as Prometheus' text format. Label values that never occurred are left out of counters."""
    totals = cells.totals()
    lines: list[str] = []
    for family in layout.families:
        if family.name.startswith(PREFIX + "_"):
            continue
        lines.append(f"# HELP {family.name} {family.help}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        for index, values in enumerate(family.combinations):
            at = family.first + index * family.stride
            if family.buckets:
                _histogram_lines(lines, family, values, totals[at : at + family.stride])
            elif totals[at] or not family.labels or family.kind == "gauge" or "instance" in family.labels:
                lines.append(f"{family.name}{_labels(family.labels, values)} {_number(totals[at] * family.scale)}")
    name = PREFIX + "instance_up"
    lines.append(f"# HELP {name} Whether an instance gets requests: its checks succeed and it is not left out.")
    lines.append(f"# TYPE {name} gauge")
    for instance, is_up in zip(layout.instances, up, strict=True):
        lines.append(f'{name}{{instance="{_escape(instance)}"}} {int(is_up)}')
    return ("\n".join(lines) + "\n").encode("utf-8")


def _histogram_lines(lines: list[str], family: Family, values: tuple[str, ...], cells: list[int]) -> None:
    running = 0
    for bound, count in zip(family.buckets, cells, strict=False):
        running += count
        label = _labels(family.labels, values, f'le="{bound:g}"')
        lines.append(f"{family.name}_bucket{label} {running}")
    running += cells[len(family.buckets)]
    label = _labels(family.labels, values, 'le="+Inf"')
    lines.append(f"{family.name}_bucket{label} {running}")
    lines.append(f"{family.name}_sum{_labels(family.labels, values)} {_number(cells[-1] * family.scale)}")
    lines.append(f"{family.name}_count{_labels(family.labels, values)} {running}")
