"""What a node with peers counts: by what became of a question, by direction, and by peer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from kvcommons_node.api.models import PeerStatus

COUNTERS: tuple[tuple[str, str, str, dict[str, str]], ...] = (
    (
        "kvcommons_node_peer_questions",
        "Chains that nothing here had, by what became of the question who has them",
        "outcome",
        {
            "asked": "peer_questions",
            "located": "peer_located",
            "nowhere": "peer_nowhere",
            "unanswered": "peer_unanswered",
            "skipped_slow": "peer_skipped_slow",
        },
    ),
    (
        "kvcommons_node_peer_fetches",
        "Shards asked of peers, by outcome: gone means evicted, cleared or of another epoch meanwhile",
        "outcome",
        {"fetched": "peer_fetched", "gone": "peer_gone", "failed": "peer_failed"},
    ),
    (
        "kvcommons_node_peer_bytes",
        "Bytes between this node and its peers, by direction",
        "direction",
        {"fetched": "peer_fetched_bytes", "sent": "peer_server_sent_bytes", "taken": "peer_server_taken_bytes"},
    ),
    (
        "kvcommons_node_peer_sent_bytes",
        "Of the bytes sent: those without a copy, and those by TLS",
        "path",
        {"zero_copy": "peer_server_sent_bytes_zero_copy", "tls": "peer_server_sent_bytes_tls"},
    ),
    (
        "kvcommons_node_peer_refusals",
        "What peers were refused, by reason",
        "reason",
        {
            "denied": "peer_server_denied",
            "bad_frame": "peer_server_bad_frames",
            "too_many": "peer_server_refused",
            "gone": "peer_server_gone",
            "missing": "peer_server_missing",
        },
    ),
)
GAUGES: tuple[tuple[str, str, str], ...] = (
    ("kvcommons_node_peers", "Other nodes that are known", "peer_peers"),
    ("kvcommons_node_peers_avoided", "Peers that failed and are not asked for a while", "peer_open_links"),
    ("kvcommons_node_peer_connections", "Connections of peers that are answered", "peer_server_connections"),
    ("kvcommons_node_prefill_tokens_per_second", "Best rate at which engines here compute", "tokens_per_second"),
)


def peer_families(stats: dict[str, int], peers: Sequence[PeerStatus]) -> Iterator[Metric]:
    """Nothing of a node without peers."""
    if "peer_questions" not in stats:
        return
    for name, text, label, sources in COUNTERS:
        counter = CounterMetricFamily(name, text, labels=[label])
        for value, source in sources.items():
            counter.add_metric([value], float(stats[source]))
        yield counter
    for name, text, source in GAUGES:
        gauge = GaugeMetricFamily(name, text)
        gauge.add_metric([], float(stats[source]))
        yield gauge
    fetched = CounterMetricFamily("kvcommons_node_fetched_bytes", "Bytes fetched from a peer", labels=["peer"])
    shards = CounterMetricFamily("kvcommons_node_fetched_shards", "Shards fetched from a peer", labels=["peer"])
    rate = GaugeMetricFamily(
        "kvcommons_node_peer_bytes_per_second", "At which a peer's bytes came while something was read", labels=["peer"]
    )
    for peer in peers:
        if not peer.counters["connects"] and not peer.counters["failures"]:
            continue  # never used: a large pool has many of these
        fetched.add_metric([peer.name], float(peer.counters["fetched_bytes"]))
        shards.add_metric([peer.name], float(peer.counters["fetched"]))
        rate.add_metric([peer.name], float(peer.counters["bytes_per_second"]))
    yield from (fetched, shards, rate)
