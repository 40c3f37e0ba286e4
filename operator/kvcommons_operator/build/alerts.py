"""What Prometheus computes ahead and when it raises an alarm. In expressions %s stands for the labels of what they are about.

Each alert has a section in docs/runbooks.md. Names of recorded series: LEVEL:WHAT:OPERATION, as Prometheus' conventions have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

RUNBOOKS: Final = "docs/runbooks.md"
WARNING: Final = "warning"
CRITICAL: Final = "critical"


@dataclass(frozen=True)
class Recording:
    """A series that is computed ahead."""

    name: str
    expression: str

    def rule(self, labels: str) -> dict[str, Any]:
        """As a PrometheusRule holds it, for these labels."""
        return {"record": self.name, "expr": self.expression.replace("%s", labels)}


@dataclass(frozen=True)
class Alert:
    """When it is raised, after how long, and what it means for whoever reads it."""

    name: str
    expression: str
    after: str
    severity: str
    summary: str

    @property
    def runbook(self) -> str:
        """Where it says what to do."""
        return f"{RUNBOOKS}#{self.name.lower()}"

    def rule(self, labels: str) -> dict[str, Any]:
        """As a PrometheusRule holds it, for these labels."""
        return {
            "alert": self.name,
            "expr": self.expression.replace("%s", labels),
            "for": self.after,
            "labels": {"severity": self.severity},
            "annotations": {"summary": self.summary, "runbook": self.runbook},
        }


Rules = tuple[Recording | Alert, ...]

POOL_RULES: Final[Rules] = (
    Recording(
        "namespace_source:kvcommons_node_request_tokens:rate5m",
        "sum by (namespace, source) (rate(kvcommons_node_request_tokens_total{%s}[5m]))",
    ),
    Recording(
        "namespace:kvcommons_node_reused:ratio_rate5m",
        'sum by (namespace) (rate(kvcommons_node_request_tokens_total{source!="computed",%s}[5m]))'
        " / (sum by (namespace) (rate(kvcommons_node_request_tokens_total{%s}[5m])) > 0)",
    ),
    Recording(
        "namespace_reason:kvcommons_node_removed_chunks:rate5m",
        "sum by (namespace, reason) (rate(kvcommons_node_removed_chunks_total{%s}[5m]))",
    ),
    Alert(
        "KvcommonsCacheNodeDown",
        'up{container="cache-node",%s} == 0',
        "5m",
        WARNING,
        "A cache node can't be read: engines on its node compute everything themselves.",
    ),
    Alert(
        "KvcommonsIndexUnreachable",
        "kvcommons_node_index_connected{%s} == 0",
        "2m",
        WARNING,
        "A cache node is not in the index: no other node and no router finds what it holds.",
    ),
    Alert(
        "KvcommonsIndexLosesPublications",
        "increase(kvcommons_node_index_lost_total{%s}[15m]) > 0",
        "0m",
        WARNING,
        "Publications were given up because too many waited for Redis: all that the node holds is told once more.",
    ),
    Alert(
        "KvcommonsTierNotServing",
        'kvcommons_node_tier_health{state!="serving",%s} == 1',
        "5m",
        WARNING,
        "A tier behind a node's memory is slow, takes nothing or is gone: what it holds is computed again.",
    ),
    Alert(
        "KvcommonsCorruptData",
        "increase(kvcommons_node_checksum_failures_total{%s}[1h]) > 0"
        ' or increase(kvcommons_node_tier_operations_total{operation="corrupt",%s}[1h]) > 0',
        "0m",
        CRITICAL,
        "Bytes of a chunk have changed in memory or on a tier. They were not served; the medium is to be doubted.",
    ),
    Alert(
        "KvcommonsEvictsYoung",
        "histogram_quantile(0.5, sum by (namespace, le) (rate(kvcommons_node_freed_age_seconds_bucket{%s}[15m]))) < 60",
        "15m",
        WARNING,
        "Half of what is freed is younger than a minute: the pool is smaller than what its engines share.",
    ),
    Alert(
        "KvcommonsNodeTakesNothing",
        'rate(kvcommons_node_store_refusals_total{reason="full",%s}[10m])'
        ' > ignoring(reason, outcome) rate(kvcommons_node_stores_total{outcome="reserved",%s}[10m])',
        "10m",
        WARNING,
        "A node refuses more chunks than it takes: nearly all of its memory is pinned, leased or of living engines.",
    ),
    Alert(
        "KvcommonsArenaNotKept",
        "kvcommons_node_holder_connected{%s} == 0",
        "10m",
        WARNING,
        "The holder of a node's memory is away: a restart of the node would lose what it holds.",
    ),
    Alert(
        "KvcommonsPeersFail",
        "kvcommons_node_peers_avoided{%s} > 0",
        "10m",
        WARNING,
        "A node can't fetch from some of its peers: what only those hold is computed again.",
    ),
)

DEPLOYMENT_RULES: Final[Rules] = (
    Recording(
        "service:kvcommons_router_requests:rate5m",
        "sum by (namespace, service) (rate(kvcommons_router_requests_total{%s}[5m]))",
    ),
    Recording(
        "service:kvcommons_router_errors:ratio_rate5m",
        'sum by (namespace, service) (rate(kvcommons_router_requests_total{status=~"5..",%s}[5m]))'
        " / (sum by (namespace, service) (rate(kvcommons_router_requests_total{%s}[5m])) > 0)",
    ),
    Recording(
        "service:kvcommons_router_saved_prefill_seconds:rate5m",
        "sum by (namespace, service) (rate(kvcommons_router_saved_prefill_seconds_total{%s}[5m]))",
    ),
    Recording(
        "service:kvcommons_router_predicted_tokens:ratio_rate5m",
        "sum by (namespace, service) (rate(kvcommons_router_actual_tokens_total{%s}[5m]))"
        " / (sum by (namespace, service) (rate(kvcommons_router_predicted_tokens_total{%s}[5m])) > 0)",
    ),
    Alert(
        "KvcommonsRouterDown",
        "absent(up{%s} == 1)",
        "2m",
        CRITICAL,
        "No router answers: clients are not served.",
    ),
    Alert(
        "KvcommonsReplicaDown",
        "max by (namespace, service, replica) (kvcommons_router_instance_up{%s}) == 0",
        "5m",
        WARNING,
        "A replica gets no requests: its checks fail, or it failed requests and is left out.",
    ),
    Alert(
        "KvcommonsRouterErrors",
        'sum by (namespace, service) (rate(kvcommons_router_requests_total{status=~"5..",%s}[5m]))'
        " > 0.02 * sum by (namespace, service) (rate(kvcommons_router_requests_total{%s}[5m]))",
        "5m",
        CRITICAL,
        "More than 2 % of the requests end with an error of ours or of the engines.",
    ),
    Alert(
        "KvcommonsRouterRefuses",
        "sum by (namespace, service, limit) (rate(kvcommons_router_refusals_total{%s}[5m])) > 0.1",
        "10m",
        WARNING,
        "The router refuses requests because a limit is reached.",
    ),
    Alert(
        "KvcommonsRouterQueue",
        "histogram_quantile(0.95, sum by (namespace, service, le) (rate(kvcommons_router_queue_seconds_bucket{%s}[5m])))"
        " > 10",
        "10m",
        WARNING,
        "Requests wait more than 10 s in the router: there are fewer replicas than the load needs.",
    ),
    Alert(
        "KvcommonsRouterCrashes",
        "increase(kvcommons_router_worker_restarts_total{%s}[15m]) > 1",
        "0m",
        WARNING,
        "Worker processes of a router crash; each takes the requests that it had with it.",
    ),
    Alert(
        "KvcommonsRouterWithoutIndex",
        'sum by (namespace, service) (rate(kvcommons_router_index_lookups_total{source="down",%s}[2m])) > 0',
        "2m",
        WARNING,
        "A router has lost Redis: it places requests by a hash of their beginning, and hit rates fall.",
    ),
    Alert(
        "KvcommonsDiscoveryStale",
        "time() - kvcommons_router_discovery_heard_timestamp_seconds{%s} > 300"
        " and kvcommons_router_discovery_heard_timestamp_seconds{%s} > 0",
        "2m",
        WARNING,
        "A router has heard nothing of the API server for 5 minutes: it sees no replica come or go.",
    ),
    Alert(
        "KvcommonsPredictionsWrong",
        "sum by (namespace, service) (rate(kvcommons_router_actual_tokens_total{%s}[30m]))"
        " < 0.5 * (sum by (namespace, service) (rate(kvcommons_router_predicted_tokens_total{%s}[30m])) > 10)",
        "30m",
        WARNING,
        "Engines reuse less than half of what the index promised: requests go where their text no longer is.",
    ),
)

ENGINE_RULES: Final[Rules] = (
    Alert(
        "KvcommonsLoadsFail",
        "increase(kvcommons_connector_load_failures_total{%s}[15m]) > 0",
        "0m",
        WARNING,
        "Engines could not load chunks that they had been promised, and computed them instead.",
    ),
)

OPERATOR_RULES: Final[Rules] = (
    Recording(
        "namespace_kind:kvcommons_operator_reconcile_seconds:p99_rate5m",
        "histogram_quantile(0.99, sum by (namespace, kind, le) (rate(kvcommons_operator_reconcile_seconds_bucket{%s}[5m])))",
    ),
    Alert(
        "KvcommonsOperatorNotLeading",
        "absent(kvcommons_operator_leader{%s} == 1)",
        "5m",
        CRITICAL,
        "No operator leads: changes of pools and deployments reach nothing, and no epoch is fenced when a pod ends.",
    ),
    Alert(
        "KvcommonsReconcilesFail",
        'sum by (namespace, kind, outcome) (rate(kvcommons_operator_reconciles_total{outcome!="done",%s}[10m]))'
        " > 0.05",
        "15m",
        WARNING,
        "Reconciles of a kind go on failing.",
    ),
    Alert(
        "KvcommonsReconcilesSlow",
        "histogram_quantile(0.99, sum by (namespace, kind, le)"
        " (rate(kvcommons_operator_reconcile_seconds_bucket{%s}[10m]))) > 5",
        "15m",
        WARNING,
        "Reconciles of a kind take more than 5 s: the API server is slow, or a node does not answer.",
    ),
    Alert(
        "KvcommonsOperatorBehind",
        "kvcommons_operator_queue_objects{%s} > 20",
        "15m",
        WARNING,
        "Objects wait to be reconciled: the operator can't keep up.",
    ),
    Alert(
        "KvcommonsFencesFail",
        'increase(kvcommons_operator_fences_total{outcome="failed",%s}[15m]) > 0',
        "0m",
        WARNING,
        "What an ended pod had published was not voided by the operator; the member's lease ends it within seconds.",
    ),
    Alert(
        "KvcommonsApiServerRefuses",
        'sum by (namespace, kind, verb) (rate(kvcommons_operator_api_requests_total{status=~"0|403|5..",%s}[10m])) > 0.1',
        "15m",
        WARNING,
        "The API server does not answer the operator, or refuses it.",
    ),
    Alert(
        "KvcommonsNotReady",
        'kvcommons_operator_condition{condition="Ready",status!="True",%s} == 1',
        "30m",
        WARNING,
        "A pool or a deployment has not been ready for half an hour.",
    ),
)


def alerts(rules: Rules) -> tuple[Alert, ...]:
    """Of these rules."""
    return tuple(rule for rule in rules if isinstance(rule, Alert))


ALERTS: Final = tuple(
    alert for rules in (POOL_RULES, DEPLOYMENT_RULES, ENGINE_RULES, OPERATOR_RULES) for alert in alerts(rules)
)
