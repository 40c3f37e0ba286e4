"""The dashboard of the cache nodes."""

from __future__ import annotations

from typing import Final

from dashboard_parts import RATE, Board, Panel, Row

OF: Final = 'namespace=~"$namespace",instance=~"$instance"'
N: Final = "kvcommons_node_"
USED: Final = 'use="used",'
AGE: Final = f"sum by (le) (rate({N}freed_age_seconds_bucket{{{OF}}}{RATE}))"


def rate(metric: str, by: str = "", more: str = "") -> str:
    total = f"sum by ({by})" if by else "sum"
    return f"{total} (rate({N}{metric}{{{more}{OF}}}{RATE}))"


def now(metric: str, by: str = "", more: str = "") -> str:
    total = f"sum by ({by})" if by else "sum"
    return f"{total} ({N}{metric}{{{more}{OF}}})"


def one(title: str, unit: str, text: str, query: str, legend: str, kind: str = "graph") -> Panel:
    return Panel(title, unit, text, ((query, legend),), kind)


CAPACITY: Final = Row(
    "Capacity",
    (
        one("Memory", "bytes", "Of the arenas.", now("arena_bytes", "use"), "{{use}}", "stack"),
        one(
            "Memory used by node",
            "percentunit",
            "Full is the normal state of a cache.",
            now("arena_bytes", "instance", USED) + " / " + now("capacity_bytes", "instance"),
            "{{instance}}",
        ),
        Panel(
            "Tiers behind memory",
            "bytes",
            "What they hold, and what they may.",
            (
                (now("tier_bytes", "tier", USED), "{{tier}} used"),
                (now("tier_bytes", "tier", 'use="capacity",'), "{{tier}} capacity"),
            ),
        ),
        Panel(
            "Chunks",
            "none",
            "In memory; and those of them that are pinned.",
            ((now("chunks"), "chunks"), (now("pinned_chunks"), "pinned")),
        ),
        one(
            "Slots by state",
            "none",
            "Quarantined: nobody may use them yet.",
            now("slots", "state"),
            "{{state}}",
            "stack",
        ),
        Panel(
            "Slabs and models",
            "none",
            "Slabs that belong to no model; models whose KV is here.",
            ((now("slabs"), "slabs"), (now("slabs_free"), "free slabs"), (now("fingerprints"), "models")),
        ),
    ),
)
TRAFFIC: Final = Row(
    "What engines ask and store",
    (
        Panel(
            "Chunks asked for and found",
            "ops",
            "In memory, a second.",
            ((rate("lookup_chunks_total"), "asked for"), (rate("hit_chunks_total"), "found")),
        ),
        one(
            "Slots",
            "ops",
            "Reserved for what engines store, committed, given up.",
            rate("stores_total", "outcome"),
            "{{outcome}}",
        ),
        one(
            "Not taken",
            "ops",
            "full: no room; exists: it is here already.",
            rate("store_refusals_total", "reason"),
            "{{reason}}",
        ),
        Panel(
            "Leases",
            "none",
            "Held by engines while they read.",
            ((now("leases", "state"), "{{state}}"), (rate("leases_revoked_total"), "revoked a second")),
        ),
        Panel(
            "Engines",
            "none",
            "Engines that are attached, their processes, and connections.",
            ((now("engines"), "engines"), (now("sessions"), "processes"), (now("connections"), "connections")),
        ),
        Panel(
            "Faults",
            "ops",
            "Malformed frames, refused connections, lost events, chunks whose bytes had changed.",
            (
                (rate("bad_frames_total"), "bad frames"),
                (rate("connections_refused_total"), "refused connections"),
                (rate("events_dropped_total"), "lost events"),
                (rate("checksum_failures_total"), "changed bytes"),
            ),
        ),
    ),
)
SHADOW_HITS: Final = rate("shadow_hit_chunks_total", "policy")
SHADOW_ASKED: Final = rate("shadow_asked_chunks_total")
EVICTION: Final = Row(
    "Evictions",
    (
        one("Removed from memory", "ops", "By reason.", rate("removed_chunks_total", "reason"), "{{reason}}", "stack"),
        Panel(
            "Age of what is freed",
            "s",
            "Since it was stored. Young: the pool is smaller than what its engines share.",
            ((f"histogram_quantile(0.5, {AGE})", "median"), (f"histogram_quantile(0.1, {AGE})", "youngest 10 %")),
        ),
        Panel(
            "What each policy would find",
            "percentunit",
            "Of a sample of the chunks asked for, with this node's size; of nodes with shadow_chunks_max or `auto`.",
            ((f"{SHADOW_HITS} / ignoring(policy) group_left() {SHADOW_ASKED}", "{{policy}}"),),
        ),
    ),
)
TIERS: Final = Row(
    "Bandwidth of tiers and peers",
    (
        Panel(
            "Written to tiers, and brought back",
            "Bps",
            "Beside the engines' requests.",
            ((rate("tier_written_bytes_total"), "written"), (rate("promoted_bytes_total"), "brought back")),
        ),
        one(
            "Between nodes",
            "Bps",
            "Fetched: by these nodes. Sent and taken: by others from these.",
            rate("peer_bytes_total", "direction"),
            "{{direction}}",
        ),
        one(
            "Rate of a peer",
            "Bps",
            "While something was read from it.",
            f"max by (peer) ({N}peer_bytes_per_second{{{OF}}})",
            "{{peer}}",
        ),
        one(
            "Tier operations",
            "ops",
            "Shards that a tier took, gave, lost or refused.",
            rate("tier_operations_total", "tier, operation"),
            "{{tier}} {{operation}}",
        ),
        one(
            "Written behind",
            "ops",
            "Shards that were to be written, by what became of them.",
            rate("tier_writes_total", "outcome"),
            "{{outcome}}",
        ),
        Panel(
            "On their way",
            "bytes",
            "Between memory and tiers; shards that wait to be written are counted apart.",
            ((now("tier_in_flight_bytes", "direction"), "{{direction}}"), (now("tier_waiting"), "shards that wait")),
        ),
        one(
            "Tiers that serve",
            "none",
            "1 for the state that a tier is in.",
            now("tier_health", "tier, state"),
            "{{tier}} {{state}}",
        ),
        one(
            "Who has it?",
            "ops",
            "Questions to peers by what became of them; skipped_slow: to compute is quicker.",
            rate("peer_questions_total", "outcome"),
            "{{outcome}}",
        ),
        Panel(
            "Fetches from peers",
            "ops",
            "Shards by outcome; peers that are not asked for a while.",
            ((rate("peer_fetches_total", "outcome"), "{{outcome}}"), (now("peers_avoided"), "peers avoided")),
        ),
    ),
)
CODECS: Final = Row(
    "Codecs",
    (
        one("Through codecs", "Bps", "Bytes that went in and came out.", rate("codec_bytes_total", "side"), "{{side}}"),
        one(
            "Time of codecs",
            "percentunit",
            "Of a core, over all threads.",
            rate("codec_seconds_total", "way"),
            "{{way}}",
        ),
        one("Shards through codecs", "ops", "By outcome.", rate("codec_shards_total", "outcome"), "{{outcome}}"),
    ),
)
INDEX: Final = Row(
    "Index",
    (
        one("Connected", "none", "1 while the node is a member.", now("index_connected", "instance"), "{{instance}}"),
        Panel(
            "Waiting for Redis",
            "none",
            "Publications that wait; seconds that the oldest has waited.",
            ((now("index_pending"), "waiting"), (f"max ({N}index_lag_seconds{{{OF}}})", "oldest, seconds")),
        ),
        Panel(
            "Publications",
            "ops",
            "Chunks told and taken back; given up.",
            ((rate("index_publications_total", "change"), "{{change}}"), (rate("index_lost_total"), "given up")),
        ),
        one(
            "New epochs",
            "ops",
            "Each voids what was published before.",
            rate("index_epochs_total", "reason"),
            "{{reason}}",
        ),
        one("Events of the core", "ops", "By kind.", rate("events_total", "kind"), "{{kind}}"),
        one(
            "Holders",
            "none",
            "1 while a restart of the node would lose nothing.",
            now("holder_connected", "instance"),
            "{{instance}}",
        ),
    ),
)

NODE: Final = Board(
    "node",
    "kvcommons / Cache nodes",
    "What the nodes hold, what they let go of and how old it was, and how fast bytes move.",
    (CAPACITY, TRAFFIC, EVICTION, TIERS, CODECS, INDEX),
    {
        "namespace": ("Namespace", "label_values(kvcommons_node_chunks, namespace)"),
        "instance": ("Node", 'label_values(kvcommons_node_chunks{namespace=~"$namespace"}, instance)'),
    },
)
