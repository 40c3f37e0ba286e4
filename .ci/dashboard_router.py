"""Dashboards of the router, and of what the connector does inside the engines."""

from __future__ import annotations

from typing import Final

from dashboard_parts import RATE, Board, Panel, Row

OF: Final = 'namespace=~"$namespace",service=~"$service"'
R: Final = "kvcommons_router_"


def rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{more}{OF}}}{RATE}))"


def quantile(share: float, metric: str, by: str = "") -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels)})"


def one(title: str, unit: str, text: str, query: str, legend: str, kind: str = "graph") -> Panel:
    return Panel(title, unit, text, ((query, legend),), kind)


ROUTER: Final = Board(
    "router",
    "kvcommons / Router",
    "Where requests go and why, what waits, and what goes wrong.",
    (
        Row(
            "Decisions",
            (
                one(
                    "Requests by replica",
                    "reqps",
                    "Sent a second.",
                    rate(f"{R}attempts_total", "replica"),
                    "{{replica}}",
                    "stack",
                ),
                one(
                    "Lookups in the index",
                    "ops",
                    "Who answered: the router's mirror, Redis, nobody in time, nobody at all.",
                    rate(f"{R}index_lookups_total", "source"),
                    "{{source}}",
                    "stack",
                ),
                one(
                    "Wait for Redis",
                    "s",
                    "99 % of the lookups that asked it.",
                    quantile(0.99, f"{R}index_lookup_seconds"),
                    "99 %",
                ),
                Panel(
                    "Predicted and actual tokens by replica",
                    "none",
                    "A second: what the index promised of a replica, and what it reused.",
                    (
                        (rate(f"{R}predicted_tokens_total", "replica"), "{{replica}} predicted"),
                        (rate(f"{R}actual_tokens_total", "replica"), "{{replica}} actual"),
                    ),
                ),
                one(
                    "Reports of engines",
                    "ops",
                    "What became of what engines said of their requests; corrected: the index was wrong.",
                    rate(f"{R}feedback_total", "outcome"),
                    "{{outcome}}",
                ),
                one(
                    "Text keys recorded",
                    "ops",
                    "At dispatch; dropped ones found no room on their way to Redis.",
                    rate(f"{R}index_intents_total", "outcome"),
                    "{{outcome}}",
                ),
            ),
        ),
        Row(
            "Queue and load",
            (
                one(
                    "Waiting in the router",
                    "none",
                    "Requests that no replica has room for yet.",
                    f"sum(kvcommons_router_queued_requests{{{OF}}})",
                    "waiting",
                ),
                one(
                    "Time waited in the router",
                    "s",
                    "95 % of the requests that waited at all.",
                    quantile(0.95, f"{R}queue_seconds"),
                    "95 %",
                ),
                one(
                    "Tokens not yet prefilled",
                    "none",
                    "Sent to a replica, uncached, and not begun to be answered.",
                    f"sum by (replica) ({R}waiting_tokens{{{OF}}})",
                    "{{replica}}",
                    "stack",
                ),
                one(
                    "Decoding",
                    "none",
                    "Requests whose first byte has come.",
                    f"sum by (replica) ({R}decoding_requests{{{OF}}})",
                    "{{replica}}",
                    "stack",
                ),
                one(
                    "Prefill work sent out",
                    "none",
                    "Seconds of prefill a second, as estimated: replicas that are busy with it.",
                    f"sum(rate({R}prefill_work_seconds_total{{{OF}}}{RATE}))",
                    "replicas",
                ),
                Panel(
                    "In flight and open",
                    "none",
                    "Requests under way, and client connections.",
                    (
                        (f"sum({R}requests_in_flight{{{OF}}})", "requests"),
                        (f"sum({R}connections{{{OF}}})", "connections"),
                    ),
                ),
            ),
        ),
        Row(
            "What clients feel",
            (
                one(
                    "Time to first byte by replica",
                    "s",
                    "95 %.",
                    quantile(0.95, f"{R}first_byte_seconds", "replica"),
                    "{{replica}}",
                ),
                one(
                    "Time of a request by model",
                    "s",
                    "95 %.",
                    quantile(0.95, f"{R}request_seconds", "model"),
                    "{{model}}",
                ),
                one(
                    "Bytes relayed",
                    "Bps",
                    "Of engines' answers.",
                    f"sum(rate({R}response_bytes_total{{{OF}}}{RATE}))",
                    "bytes",
                ),
            ),
        ),
        Row(
            "Errors",
            (
                one(
                    "Answers by status",
                    "reqps",
                    "499: the client left before the end.",
                    rate(f"{R}requests_total", "status"),
                    "{{status}}",
                    "stack",
                ),
                one(
                    "Attempts that failed",
                    "reqps",
                    "By how, before or after the first byte.",
                    rate(f"{R}attempts_total", "outcome", 'outcome!="ok",'),
                    "{{outcome}}",
                ),
                one(
                    "Refused",
                    "reqps",
                    "By the limit that was reached.",
                    rate(f"{R}refusals_total", "limit"),
                    "{{limit}}",
                ),
                Panel(
                    "Sent again, and crashes",
                    "ops",
                    "Requests sent again before the first byte; worker processes started again.",
                    (
                        (f"sum(rate({R}retries_total{{{OF}}}{RATE}))", "sent again"),
                        (f"sum(rate({R}worker_restarts_total{{{OF}}}{RATE}))", "crashes"),
                    ),
                ),
                one(
                    "Replicas that serve",
                    "none",
                    "1: it gets requests.",
                    f"max by (replica) ({R}instance_up{{{OF}}})",
                    "{{replica}}",
                ),
                Panel(
                    "Discovery",
                    "none",
                    "Instances by state; whether the API server is listened to; how often all pods were listed.",
                    (
                        (f"sum by (state) ({R}instances{{{OF}}})", "{{state}}"),
                        (f"sum({R}discovery_watching{{{OF}}})", "routers that listen"),
                        (f"sum(rate({R}discovery_lists_total{{{OF}}}{RATE}))", "lists a second"),
                    ),
                ),
            ),
        ),
    ),
    {
        "namespace": ("Namespace", "label_values(kvcommons_router_workers, namespace)"),
        "service": ("Router", 'label_values(kvcommons_router_workers{namespace=~"$namespace"}, service)'),
    },
)

C: Final = "kvcommons_connector_"
CONNECTOR: Final = Board(
    "engines",
    "kvcommons / Engines",
    "What the connector does inside the engines: why text is computed, and how fast KV is copied.",
    (
        Row(
            "Reuse",
            (
                Panel(
                    "Prompt tokens by source",
                    "none",
                    "A second, as the engines say.",
                    tuple(
                        (f"sum(rate({C}{name}_tokens_total{{{OF}}}{RATE}))", name)
                        for name in ("own", "commons", "computed")
                    ),
                    "stack",
                ),
                one(
                    "Requests that reused less than they might",
                    "reqps",
                    "By the reason; `kvcommons why` says it of each request.",
                    rate(f"{C}requests_total", "reason", 'reason!="",'),
                    "{{reason}}",
                ),
                one("Questions to the node", "ops", "By status.", rate(f"{C}lookups_total", "status"), "{{status}}"),
                one(
                    "Time of a question",
                    "s",
                    "The mean.",
                    f"sum(rate({C}lookup_seconds_total{{{OF}}}{RATE})) / sum(rate({C}lookups_total{{{OF}}}{RATE}))",
                    "mean",
                ),
                one(
                    "Chunks asked for that were there",
                    "percentunit",
                    "In the node's memory, at the moment of the question.",
                    f"sum(rate({C}lookup_hit_chunks_total{{{OF}}}{RATE})) / sum(rate({C}lookup_chunks_total{{{OF}}}{RATE}))",
                    "hit",
                ),
            ),
        ),
        Row(
            "Copies",
            (
                Panel(
                    "Bytes copied",
                    "Bps",
                    "Into the engines and out of them, by all ranks.",
                    (
                        (f"sum(rate({C}load_bytes_total{{{OF}}}{RATE}))", "in"),
                        (f"sum(rate({C}store_bytes_total{{{OF}}}{RATE}))", "out"),
                    ),
                ),
                Panel(
                    "Bandwidth of a copy",
                    "Bps",
                    "Bytes by the time that their copies took.",
                    (
                        (
                            f"sum(rate({C}load_bytes_total{{{OF}}}{RATE})) / sum(rate({C}load_seconds_total{{{OF}}}{RATE}))",
                            "in",
                        ),
                        (
                            f"sum(rate({C}store_bytes_total{{{OF}}}{RATE})) / sum(rate({C}store_seconds_total{{{OF}}}{RATE}))",
                            "out",
                        ),
                    ),
                ),
                one(
                    "Chunks stored",
                    "ops",
                    "Committed to the node, by all ranks.",
                    f"sum(rate({C}store_chunks_total{{{OF}}}{RATE}))",
                    "chunks",
                ),
            ),
        ),
    ),
    {
        "namespace": ("Namespace", "label_values(kvcommons_connector_prompt_tokens_total, namespace)"),
        "service": (
            "Engines",
            'label_values(kvcommons_connector_prompt_tokens_total{namespace=~"$namespace"}, service)',
        ),
    },
)
