"""Prometheus metrics of the node. The core counts; this turns its counters into families at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from kvcommons_node.api.models import TIER_HEALTH, IndexStatus, PeerStatus, TierStatus
from kvcommons_node.metrics_peers import peer_families

AGE_SECONDS_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 86_400.0)
SLOT_STATES = ("free", "filling", "sealed", "draining", "quarantined")
EVENT_KINDS = ("committed", "freed", "moved", "feedback", "session_opened", "session_closed")
REUSE_SOURCES = ("own", "commons", "computed")


@dataclass(frozen=True)
class Family:
    """One metric that is a counter of the core, or several of them told apart by a label."""

    name: str
    help: str
    sources: dict[str, str]
    """label value -> counter of the core; the label value "" means no label."""
    label: str = ""
    gauge: bool = False
    scale: float = 1.0
    """From the core's unit to the metric's."""

    def read(self, stats: dict[str, int]) -> Metric:
        labels = [self.label] if self.label else None
        family: CounterMetricFamily | GaugeMetricFamily
        if self.gauge:
            family = GaugeMetricFamily(self.name, self.help, labels=labels)
        else:
            family = CounterMetricFamily(self.name, self.help, labels=labels)
        for label, source in self.sources.items():
            if source in stats:
                family.add_metric([label] if self.label else [], float(stats[source]) * self.scale)
        return family


POLICIES = ("lru", "s3fifo", "cost")

FAMILIES: tuple[Family, ...] = (
    Family(
        "kvcommons_node_arena_bytes",
        "Arena by use; used + free = capacity",
        {"used": "used_bytes", "free": "free_bytes"},
        "use",
        gauge=True,
    ),
    Family("kvcommons_node_capacity_bytes", "Size of the arena", {"": "arena_bytes"}, gauge=True),
    Family("kvcommons_node_slabs", "Slabs of the arena", {"": "slabs"}, gauge=True),
    Family("kvcommons_node_slabs_free", "Slabs that belong to no fingerprint", {"": "slabs_free"}, gauge=True),
    Family("kvcommons_node_chunks", "Chunks that can be hit", {"": "chunks"}, gauge=True),
    Family("kvcommons_node_pinned_chunks", "Chunks that eviction leaves alone", {"": "pinned_chunks"}, gauge=True),
    Family("kvcommons_node_fingerprints", "Fingerprints known", {"": "fingerprints"}, gauge=True),
    Family("kvcommons_node_sessions", "Processes of engines that are attached", {"": "sessions"}, gauge=True),
    Family(
        "kvcommons_node_engines",
        "Engines that are attached; each data-parallel rank is one",
        {"": "engines"},
        gauge=True,
    ),
    Family(
        "kvcommons_node_slots",
        "Slots by state",
        {state: f"slots_{state}" for state in SLOT_STATES},
        "state",
        gauge=True,
    ),
    Family(
        "kvcommons_node_leases",
        "Leases by state",
        {"pending": "leases_pending", "copying": "leases_copying"},
        "state",
        gauge=True,
    ),
    Family("kvcommons_node_lookups", "Lookups answered", {"": "lookups"}),
    Family("kvcommons_node_lookup_chunks", "Chunks asked for in lookups", {"": "lookup_chunks"}),
    Family("kvcommons_node_hit_chunks", "Chunks found in lookups, by tier", {"memory": "hit_chunks"}, "tier"),
    Family(
        "kvcommons_node_stores",
        "Slots reserved, committed and given up",
        {"reserved": "reserved", "committed": "committed", "aborted": "aborted"},
        "outcome",
    ),
    Family(
        "kvcommons_node_store_refusals",
        "Slots not granted, by reason",
        {"full": "reserve_full", "busy": "reserve_busy", "exists": "reserve_exists"},
        "reason",
    ),
    Family(
        "kvcommons_node_removed_chunks",
        "Chunks removed, by reason",
        {"evicted": "evicted", "cleared": "cleared"},
        "reason",
    ),
    Family(
        "kvcommons_node_promoted_chunks", "Chunks brought back into memory from a tier", {"": "tier_promoted_chunks"}
    ),
    Family("kvcommons_node_promoted_bytes", "Bytes brought back into memory from a tier", {"": "tier_promoted_bytes"}),
    Family(
        "kvcommons_node_promotions_ended",
        "Chains from a tier that ended early, by reason: what follows is computed",
        {"failed": "tier_read_failed", "no_room": "tier_read_no_room", "too_many": "tier_read_refused"},
        "reason",
    ),
    Family(
        "kvcommons_node_tier_writes",
        "Shards that were to be written to a tier, by outcome",
        {
            "written": "tier_written",
            "dropped": "tier_write_dropped",
            "evicted": "tier_write_missed",
            "refused": "tier_write_refused",
            "there": "tier_write_there",
        },
        "outcome",
    ),
    Family("kvcommons_node_tier_written_bytes", "Bytes written to tiers", {"": "tier_written_bytes"}),
    Family("kvcommons_node_tier_waiting", "Shards that wait to be written", {"": "tier_write_waiting"}, gauge=True),
    Family(
        "kvcommons_node_tier_in_flight_bytes",
        "On their way between memory and tiers",
        {"write": "tier_write_in_flight_bytes", "read": "tier_read_in_flight_bytes"},
        "direction",
        gauge=True,
    ),
    Family(
        "kvcommons_node_codec_shards",
        "Shards through a codec on their way to or from a tier, by outcome",
        {
            "encoded": "codec_encoded",
            "decoded": "codec_decoded",
            "kept_raw": "codec_kept_raw",
            "layout_unknown": "codec_layout_unknown",
            "not_finite": "codec_not_finite",
            "decode_failed": "codec_decode_failed",
            "lossy_refused": "codec_lossy_refused",
        },
        "outcome",
    ),
    Family(
        "kvcommons_node_codec_bytes",
        "Bytes that codecs took and made, and made and took",
        {
            "encode_in": "codec_encoded_raw_bytes",
            "encode_out": "codec_encoded_bytes",
            "decode_in": "codec_decoded_bytes",
            "decode_out": "codec_decoded_raw_bytes",
        },
        "side",
    ),
    Family(
        "kvcommons_node_codec_seconds",
        "Time that codecs worked, over all threads",
        {"encode": "codec_encode_us", "decode": "codec_decode_us"},
        "way",
        scale=1e-6,
    ),
    Family(
        "kvcommons_node_shadow_hit_chunks",
        "Chunks that a cache with this policy would have found, of those that its sample was asked for",
        {policy: f"shadow_hit_chunks_{policy}" for policy in POLICIES},
        "policy",
    ),
    Family("kvcommons_node_shadow_asked_chunks", "Chunks that the sample was asked for", {"": "shadow_asked_chunks"}),
    Family("kvcommons_node_shadow_dropped", "Requests that shadows missed, being late", {"": "shadow_dropped"}),
    Family(
        "kvcommons_node_eviction_policy",
        "The policy in force: 0 lru, 1 s3fifo, 2 cost",
        {"": "eviction_policy"},
        gauge=True,
    ),
    Family("kvcommons_node_eviction_policy_changes", "Changes of the policy by auto", {"": "eviction_policy_changes"}),
    Family("kvcommons_node_hinted_chunks", "Chunks that came with hints or were marked by them", {"": "hinted_chunks"}),
    Family("kvcommons_node_expired_chunks", "Chunks past their time, first to go", {"": "expired_chunks"}),
    Family("kvcommons_node_connections", "Open connections", {"": "connections"}, gauge=True),
    Family("kvcommons_node_connections_refused", "Connections refused", {"": "connections_refused"}),
    Family("kvcommons_node_bad_frames", "Frames that were malformed; each ended its connection", {"": "bad_frames"}),
    Family(
        "kvcommons_node_holder_connected",
        "1 while the arena would survive this daemon",
        {"": "holder_connected"},
        gauge=True,
    ),
    Family("kvcommons_node_leases_revoked", "Leases that nobody began in time", {"": "leases_revoked"}),
    Family("kvcommons_node_checksum_failures", "Chunks whose bytes had changed", {"": "checksum_failures"}),
    Family("kvcommons_node_events_dropped", "Events lost because the daemon was late", {"": "events_dropped"}),
)


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
        for reason, count in index.epochs.items():
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
