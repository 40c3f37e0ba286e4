"""Prometheus metrics of the node. The core counts; this turns its counters into families at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from kvcommons_node.api.models import TIER_HEALTH, IndexStatus, PeerStatus, TierStatus
from kvcommons_node.metrics_core import FAMILIES
from kvcommons_node.metrics_peers import peer_families

AGE_SECONDS_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0)
EVENT_KINDS = ("committed", "freed", "moved", "feedback", "session_opened", "session_closed")
REUSE_SOURCES = ("own", "commons", "computed")
OTHER = "other"
EPOCH_REASONS = (
    "registered", "redis_changed", "record_lost", "slot_taken", "fenced_by_others", "stale_copy", "lease_lost",
    "overflow", "data_loss", "events_lost", "cleared", "asked_for", OTHER,
)  # fmt: skip


TIER_USES = {"used": "used_bytes", "capacity": "capacity_bytes"}
TIER_OPERATIONS = (
    "puts", "gets", "misses", "evicted", "reinserted", "corrupt", "failed", "refused_busy", "refused_full", "recovered"
)  # fmt: skip


def tier_families(tiers: Sequence[TierStatus]) -> Iterator[Metric]:
    """What each tier says of itself; nothing of a node with memory alone."""
    if not tiers:
        return
    size = GaugeMetricFamily(
        "kvcommons_node_tier_bytes", "Size of a tier, and what of it is used", labels=["tier", "use"]
    )
    shards = GaugeMetricFamily("kvcommons_node_tier_shards", "Shards of chunks on a tier", labels=["tier"])
    health = GaugeMetricFamily(
        "kvcommons_node_tier_health", "1 for the state that a tier is in", labels=["tier", "state"]
    )
    operations = CounterMetricFamily(
        "kvcommons_node_tier_operations", "Shards that a tier took, gave, lost or refused", labels=["tier", "operation"]
    )
    for tier in tiers:
        for use, source in TIER_USES.items():
            size.add_metric([tier.name, use], float(tier.counters.get(source, 0)))
        shards.add_metric([tier.name], float(tier.counters.get("shards", 0)))
        for state in TIER_HEALTH:
            health.add_metric([tier.name, state], float(state == tier.health))
        for operation in TIER_OPERATIONS:
            operations.add_metric([tier.name, operation], float(tier.counters.get(operation, 0)))
    yield from (size, shards, health, operations)


class CoreCollector(Collector):
    """Reads the core and the index link when it is scraped, so that no timer keeps a stale copy."""

    def __init__(
        self,
        stats: Callable[[], dict[str, int]],
        index: Callable[[], IndexStatus],
        tiers: Callable[[], Sequence[TierStatus]],
        peers: Callable[[], Sequence[PeerStatus]],
    ) -> None:
        self._stats = stats
        self._index = index
        self._tiers = tiers
        self._peers = peers

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        for family in FAMILIES:
            yield family.read(stats)
        yield from tier_families(self._tiers())
        yield from peer_families(stats, self._peers())
        index = self._index()
        connected = GaugeMetricFamily(
            "kvcommons_node_index_connected", "1 while this node is a member of the Redis index, else 0"
        )
        connected.add_metric([], 1.0 if index.state == "connected" else 0.0)
        yield connected
        pending = GaugeMetricFamily("kvcommons_node_index_pending", "Publications that wait for Redis")
        pending.add_metric([], float(index.pending))
        yield pending
        lag = GaugeMetricFamily(
            "kvcommons_node_index_lag_seconds", "For how long the oldest waiting publication has waited"
        )
        lag.add_metric([], index.lag_seconds)
        yield lag
        lost = CounterMetricFamily("kvcommons_node_index_lost", "Publications given up because too many waited")
        lost.add_metric([], float(index.lost))
        yield lost
        epochs = CounterMetricFamily(
            "kvcommons_node_index_epochs", "Epochs begun: each voids what was published before", labels=["reason"]
        )
        begun = dict.fromkeys(EPOCH_REASONS, 0)
        for reason, count in index.epochs.items():
            begun[reason if reason in begun else OTHER] += count
        for reason, count in begun.items():
            epochs.add_metric([reason], float(count))
        yield epochs
        sent = CounterMetricFamily(
            "kvcommons_node_index_publications", "Chunks published to and removed from the index", labels=["change"]
        )
        sent.add_metric(["published"], float(index.published))
        sent.add_metric(["unpublished"], float(index.unpublished))
        yield sent


class NodeMetrics:
    """The node's registry: what the core counts, and what the daemon itself sees pass."""

    def __init__(
        self,
        stats: Callable[[], dict[str, int]],
        index: Callable[[], IndexStatus],
        tiers: Callable[[], Sequence[TierStatus]] = tuple,
        peers: Callable[[], Sequence[PeerStatus]] = tuple,
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self.events = Counter(
            "kvcommons_node_events", "Events taken from the core, by kind", ["kind"], registry=self.registry
        )
        self.event_gaps = Counter(
            "kvcommons_node_event_gaps",
            "Times that events were lost, so that a new epoch had to be begun",
            registry=self.registry,
        )
        self.evicted_age = Histogram(
            "kvcommons_node_freed_age_seconds",
            "Age of chunks when they were freed",
            buckets=AGE_SECONDS_BUCKETS,
            registry=self.registry,
        )
        self.reused_tokens = Counter(
            "kvcommons_node_request_tokens",
            "Prompt tokens of finished requests, by where their KV came from, as engines reported",
            ["source"],
            registry=self.registry,
        )
        for kind in EVENT_KINDS:
            self.events.labels(kind)
        for source in REUSE_SOURCES:
            self.reused_tokens.labels(source)
        self.registry.register(CoreCollector(stats, index, tiers, peers))

    def render(self) -> tuple[bytes, str]:
        """The exposition and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST
