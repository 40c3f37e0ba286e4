"""The counters of the core as metrics: which counter each is, and by which label several of them are told apart."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

SLOT_STATES = ("free", "filling", "sealed", "draining", "quarantined")


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
