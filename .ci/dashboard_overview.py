"""Dashboards for whoever pays for the engines, and for whoever runs the operator."""

from __future__ import annotations

from typing import Final

from dashboard_parts import RATE, Board, Panel, Row

NS: Final = 'namespace=~"$namespace"'
TOKENS: Final = f"kvcommons_node_request_tokens_total{{{NS}}}{RATE}"
REUSED: Final = f'kvcommons_node_request_tokens_total{{source!="computed",{NS}}}{RATE}'
FIRST_BYTE: Final = f"sum by (le) (rate(kvcommons_router_first_byte_seconds_bucket{{{NS}}}{RATE}))"
SAVED: Final = f"kvcommons_router_saved_prefill_seconds_total{{{NS}}}"
NAMESPACES: Final = {"namespace": ("Namespace", "label_values(kvcommons_node_chunks, namespace)")}

OVERVIEW: Final = Board(
    "overview",
    "kvcommons / Overview",
    "What the commons of KV caches saves, and whether what the index promises is true.",
    (
        Row(
            "What is saved",
            (
                Panel(
                    "Prompt tokens reused",
                    "percentunit",
                    "Of all prompt tokens, those whose KV came from a cache: an engine's own, or the commons.",
                    ((f"sum(rate({REUSED})) / sum(rate({TOKENS}))", "reused"),),
                    "stat",
                ),
                Panel(
                    "Time to first token saved",
                    "s",
                    "Seconds of prefill that reuse spared, for each request that was answered; by the rates learnt.",
                    (
                        (
                            (
                                f"sum(rate({SAVED}{RATE}))"
                                f" / sum(rate(kvcommons_router_first_byte_seconds_count{{{NS}}}{RATE}))"
                            ),
                            "a request",
                        ),
                    ),
                    "stat",
                ),
                Panel(
                    "GPU seconds saved",
                    "s",
                    "Seconds of prefill that reuse spared in this time range, times the GPUs of a replica.",
                    ((f"$gpus * sum(increase({SAVED}[$__range]))", "saved"),),
                    "stat",
                ),
                Panel(
                    "Predicted hits that came true",
                    "percentunit",
                    "Tokens that engines reused, of those that the index promised for the same requests.",
                    (
                        (
                            (
                                f"sum(rate(kvcommons_router_actual_tokens_total{{{NS}}}{RATE}))"
                                f" / sum(rate(kvcommons_router_predicted_tokens_total{{{NS}}}{RATE}))"
                            ),
                            "true",
                        ),
                    ),
                    "stat",
                ),
                Panel(
                    "Cache nodes in the index",
                    "none",
                    "Nodes that Redis knows. Those that are not serve their own engines only.",
                    ((f"sum(kvcommons_node_index_connected{{{NS}}})", "nodes"),),
                    "stat",
                ),
                Panel(
                    "Replicas that serve",
                    "none",
                    "Engines that get requests.",
                    ((f"sum(max by (replica) (kvcommons_router_instance_up{{{NS}}}))", "replicas"),),
                    "stat",
                ),
            ),
        ),
        Row(
            "Where the KV of prompts came from",
            (
                Panel(
                    "Prompt tokens by source",
                    "none",
                    "A second: from the engine's own cache, from the commons, computed.",
                    ((f"sum by (source) (rate({TOKENS}))", "{{source}}"),),
                    "stack",
                ),
                Panel(
                    "Hit rate by tier",
                    "percentunit",
                    "Of the chunks that memory was asked for, and of the shards that each tier behind it was asked for.",
                    (
                        (
                            (
                                f'sum(rate(kvcommons_node_hit_chunks_total{{tier="memory",{NS}}}{RATE}))'
                                f" / sum(rate(kvcommons_node_lookup_chunks_total{{{NS}}}{RATE}))"
                            ),
                            "memory",
                        ),
                        (
                            (
                                "sum by (tier) (rate(kvcommons_node_tier_operations_total"
                                f'{{operation="gets",{NS}}}{RATE})) / sum by (tier) (rate('
                                f'kvcommons_node_tier_operations_total{{operation=~"gets|misses",{NS}}}{RATE}))'
                            ),
                            "{{tier}}",
                        ),
                    ),
                ),
                Panel(
                    "Predicted against actual hits",
                    "none",
                    "Tokens a second that the index promised, by where, and that engines then reused.",
                    (
                        (
                            f"sum by (source) (rate(kvcommons_router_predicted_tokens_total{{{NS}}}{RATE}))",
                            "predicted: {{source}}",
                        ),
                        (
                            f"sum by (source) (rate(kvcommons_router_actual_tokens_total{{{NS}}}{RATE}))",
                            "actual: {{source}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "What clients feel",
            (
                Panel(
                    "Time to first byte",
                    "s",
                    "From a request's last byte to its answer's first.",
                    tuple(
                        (f"histogram_quantile({share}, {FIRST_BYTE})", name)
                        for share, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
                    ),
                ),
                Panel(
                    "Requests by status",
                    "reqps",
                    "Answered a second.",
                    ((f"sum by (status) (rate(kvcommons_router_requests_total{{{NS}}}{RATE}))", "{{status}}"),),
                    "stack",
                ),
                Panel(
                    "Prefill saved",
                    "none",
                    "Seconds of prefill spared a second: as many replicas as would prefill all the time without the commons.",
                    ((f"sum by (source) (rate({SAVED}{RATE}))", "{{source}}"),),
                    "stack",
                ),
            ),
        ),
    ),
    {**NAMESPACES, "gpus": ("GPUs a replica", "1")},
)

RECONCILE: Final = f"sum by (kind, le) (rate(kvcommons_operator_reconcile_seconds_bucket{{{NS}}}{RATE}))"
OPERATOR: Final = Board(
    "operator",
    "kvcommons / Operator",
    "What the operator does, what it is refused, and the conditions of pools and deployments.",
    (
        Row(
            "Conditions",
            (
                Panel(
                    "Conditions that do not hold",
                    "none",
                    "Of pools and deployments, as their status says. Progressing is False where nothing is under way.",
                    (
                        (
                            (
                                "sum by (kind, resource_namespace, resource, condition, status) (kvcommons_operator_condition"
                                f'{{status!="True",condition!="Progressing",{NS}}})'
                            ),
                            "",
                        ),
                    ),
                    "table",
                ),
                Panel(
                    "Conditions by status",
                    "none",
                    "How many hold, do not hold, or are not known.",
                    (
                        (
                            f"sum by (condition, status) (kvcommons_operator_condition{{{NS}}})",
                            "{{condition}} {{status}}",
                        ),
                    ),
                ),
                Panel(
                    "Objects that are watched",
                    "none",
                    "In the operator's caches, by kind.",
                    ((f"sum by (kind) (kvcommons_operator_objects{{{NS}}})", "{{kind}}"),),
                ),
                Panel(
                    "Leading",
                    "none",
                    "1 for the process that leads.",
                    ((f"kvcommons_operator_leader{{{NS}}}", "{{pod}} {{instance}}"),),
                ),
            ),
        ),
        Row(
            "Reconciles",
            (
                Panel(
                    "Time of a reconcile",
                    "s",
                    "Median and 99 % by kind.",
                    (
                        (f"histogram_quantile(0.5, {RECONCILE})", "{{kind}} median"),
                        (f"histogram_quantile(0.99, {RECONCILE})", "{{kind}} 99 %"),
                    ),
                ),
                Panel(
                    "Reconciles",
                    "ops",
                    "A second, by kind and outcome.",
                    (
                        (
                            f"sum by (kind, outcome) (rate(kvcommons_operator_reconciles_total{{{NS}}}{RATE}))",
                            "{{kind}} {{outcome}}",
                        ),
                    ),
                ),
                Panel(
                    "Due",
                    "none",
                    "Objects that wait to be reconciled.",
                    ((f"kvcommons_operator_queue_objects{{{NS}}}", "{{pod}} {{instance}}"),),
                ),
                Panel(
                    "Manifests",
                    "ops",
                    "A second: written, put back after somebody changed them, left as they were.",
                    ((f"sum by (outcome) (rate(kvcommons_operator_manifests_total{{{NS}}}{RATE}))", "{{outcome}}"),),
                ),
                Panel(
                    "Requests to the API server",
                    "reqps",
                    "By verb and status; 0 is no answer.",
                    (
                        (
                            f"sum by (verb, status) (rate(kvcommons_operator_api_requests_total{{{NS}}}{RATE}))",
                            "{{verb}} {{status}}",
                        ),
                    ),
                ),
                Panel(
                    "Time of a request to the API server",
                    "s",
                    "99 % by verb.",
                    (
                        (
                            (
                                "histogram_quantile(0.99, sum by (verb, le) (rate("
                                f"kvcommons_operator_api_request_seconds_bucket{{{NS}}}{RATE})))"
                            ),
                            "{{verb}}",
                        ),
                    ),
                ),
            ),
        ),
        Row(
            "Fences",
            (
                Panel(
                    "From a pod's end to its fence",
                    "s",
                    "99 %: until then the index may name what is gone.",
                    (
                        (
                            (
                                "histogram_quantile(0.99, sum by (le) (rate("
                                f"kvcommons_operator_fence_seconds_bucket{{{NS}}}{RATE})))"
                            ),
                            "99 %",
                        ),
                    ),
                ),
                Panel(
                    "Fences",
                    "ops",
                    "Members voided in the index, by outcome.",
                    ((f"sum by (outcome) (rate(kvcommons_operator_fences_total{{{NS}}}{RATE}))", "{{outcome}}"),),
                ),
            ),
        ),
    ),
    {"namespace": ("Namespace of the operator", "label_values(kvcommons_operator_leader, namespace)")},
)
