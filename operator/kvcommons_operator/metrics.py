"""The operator's metrics: what it asks, what it does, what waits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector


class ConditionNow(NamedTuple):
    """A condition of one resource, as its status says now."""

    kind: str
    namespace: str
    name: str
    condition: str
    status: str
    """True, False or Unknown."""


class ConditionCollector(Collector):
    """Reads the resources when it is scraped: what is gone leaves nothing behind."""

    def __init__(self, conditions: Callable[[], Iterable[ConditionNow]]) -> None:
        self._conditions = conditions

    def collect(self) -> Iterator[Metric]:
        """One sample for each condition. Not `namespace`: that is Prometheus' label for where the operator is."""
        family = GaugeMetricFamily(
            "kvcommons_operator_condition",
            "1 for the status that a resource's condition has.",
            labels=["kind", "resource_namespace", "resource", "condition", "status"],
        )
        for one in self._conditions():
            family.add_metric(list(one), 1.0)
        yield family


class OperatorMetrics:
    """One set a process. Also the client's meter."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "kvcommons_operator_api_requests_total",
            "Requests to the API server, by verb, kind and status (0: no answer).",
            ["verb", "kind", "status"],
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "kvcommons_operator_api_request_seconds",
            "How long they took.",
            ["verb"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 30),
            registry=self.registry,
        )
        self.reconciles = Counter(
            "kvcommons_operator_reconciles_total",
            "Reconciles, by kind and outcome (done, retried, refused).",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "kvcommons_operator_reconcile_seconds",
            "How long a reconcile took.",
            ["kind"],
            buckets=(0.002, 0.01, 0.05, 0.2, 1, 5, 30),
            registry=self.registry,
        )
        self.applied = Counter(
            "kvcommons_operator_manifests_total",
            "Manifests, by what became of them: applied (new or changed wish), repaired (drift put back), skipped.",
            ["outcome"],
            registry=self.registry,
        )
        self.fences = Counter(
            "kvcommons_operator_fences_total",
            "Members fenced in the index, by outcome (done, no-node, failed).",
            ["outcome"],
            registry=self.registry,
        )
        self.fence_seconds = Histogram(
            "kvcommons_operator_fence_seconds",
            "From the event of a pod's end to the answer of the node that fenced its members.",
            buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 15),
            registry=self.registry,
        )
        self.leader = Gauge("kvcommons_operator_leader", "1 while this process leads, else 0.", registry=self.registry)
        self._queue = Gauge("kvcommons_operator_queue_objects", "Objects that are due.", registry=self.registry)
        self._objects = Gauge(
            "kvcommons_operator_objects", "Objects that are watched, by kind.", ["kind"], registry=self.registry
        )

    def watch_conditions(self, conditions: Callable[[], Iterable[ConditionNow]]) -> None:
        """Where the resources' conditions are read when metrics are asked for."""
        self.registry.register(ConditionCollector(conditions))

    def request(self, verb: str, kind: str, status: int, seconds: float) -> None:
        """One request to the API server has ended."""
        self._requests.labels(verb, kind, str(status)).inc()
        self._request_seconds.labels(verb).observe(seconds)

    def watch_queue(self, depth: Callable[[], float]) -> None:
        """Where the length of the work queue is read when metrics are asked for."""
        self._queue.set_function(depth)

    def objects(self, kind: str, count: int) -> None:
        """How many objects of a kind are kept."""
        self._objects.labels(kind).set(count)

    def render(self) -> tuple[bytes, str]:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
