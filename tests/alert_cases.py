"""For each alert the series of a day on which its fault is made and ends: half an hour of health, an hour of the fault, health again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from kvcommons_operator.build import alerts

HEALTHY_UNTIL, FAULTY_UNTIL, END = 30, 90, 240
"""Minutes."""
BEFORE, DURING, AFTER = 25, 85, 235

POOL: Final = 'namespace="ns"'
ROUTER: Final = 'namespace="ns",service="chat"'
ENGINES: Final = 'namespace="ns",service="chat-engines"'
OPERATOR: Final = 'namespace="ns",service="operator"'
SCOPES: Final = (
    (alerts.POOL_RULES, POOL),
    (alerts.DEPLOYMENT_RULES, ROUTER),
    (alerts.ENGINE_RULES, ENGINES),
    (alerts.OPERATOR_RULES, OPERATOR),
)


class Case(NamedTuple):
    """What Prometheus sees, and the labels that the alert then has."""

    series: Mapping[str, str]
    labels: Mapping[str, str]


def gauge(healthy: float, faulty: float) -> str:
    """Samples of each minute."""
    return " ".join(
        [f"{healthy:g}"] * HEALTHY_UNTIL
        + [f"{faulty:g}"] * (FAULTY_UNTIL - HEALTHY_UNTIL)
        + [f"{healthy:g}"] * (END - FAULTY_UNTIL)
    )


def counter(healthy: float, faulty: float) -> str:
    """Growth a minute."""
    total, found = 0.0, []
    for minute in range(END):
        found.append(f"{total:g}")
        total += faulty if HEALTHY_UNTIL <= minute < FAULTY_UNTIL else healthy
    return " ".join(found)


def histogram(metric: str, labels: str, healthy: str, faulty: str, bounds: tuple[str, ...]) -> dict[str, str]:
    """60 observations a minute, in the bucket `healthy`, and during the fault in `faulty`."""
    found = {}
    for at, bound in enumerate(bounds):
        counts = [60.0 if bounds.index(where) <= at else 0.0 for where in (healthy, faulty)]
        found[f'{metric}_bucket{{{labels},le="{bound}"}}'] = counter(*counts)
    return found


NS: Final = {"namespace": "ns"}
CHAT: Final = {**NS, "service": "chat"}
RUN: Final = {**NS, "service": "operator"}
N: Final = "kvcommons_node_"
R: Final = "kvcommons_router_"
O: Final = "kvcommons_operator_"

CASES: Final[dict[str, Case]] = {
    "KvcommonsCacheNodeDown": Case(
        {f'up{{container="cache-node",{POOL}}}': gauge(1, 0)}, {**NS, "container": "cache-node"}
    ),
    "KvcommonsIndexUnreachable": Case({f"{N}index_connected{{{POOL}}}": gauge(1, 0)}, NS),
    "KvcommonsIndexLosesPublications": Case({f"{N}index_lost_total{{{POOL}}}": counter(0, 5)}, NS),
    "KvcommonsTierNotServing": Case(
        {
            f'{N}tier_health{{tier="disk",state="serving",{POOL}}}': gauge(1, 0),
            f'{N}tier_health{{tier="disk",state="degraded",{POOL}}}': gauge(0, 1),
        },
        {**NS, "tier": "disk", "state": "degraded"},
    ),
    "KvcommonsCorruptData": Case(
        {
            f"{N}checksum_failures_total{{{POOL}}}": counter(0, 0),
            f'{N}tier_operations_total{{tier="disk",operation="corrupt",{POOL}}}': counter(0, 1),
        },
        {**NS, "tier": "disk", "operation": "corrupt"},
    ),
    "KvcommonsEvictsYoung": Case(
        histogram(f"{N}freed_age_seconds", POOL, "3600", "15", ("1", "15", "60", "3600", "+Inf")), NS
    ),
    "KvcommonsNodeTakesNothing": Case(
        {
            f'{N}store_refusals_total{{reason="full",{POOL}}}': counter(1, 50),
            f'{N}stores_total{{outcome="reserved",{POOL}}}': counter(60, 10),
        },
        {**NS},
    ),
    "KvcommonsArenaNotKept": Case({f"{N}holder_connected{{{POOL}}}": gauge(1, 0)}, NS),
    "KvcommonsPeersFail": Case({f"{N}peers_avoided{{{POOL}}}": gauge(0, 2)}, NS),
    "KvcommonsRouterDown": Case({f"up{{{ROUTER}}}": gauge(1, 0)}, {}),
    "KvcommonsReplicaDown": Case(
        {f'{R}instance_up{{replica="a",pod="r",{ROUTER}}}': gauge(1, 0)}, {**CHAT, "replica": "a"}
    ),
    "KvcommonsRouterErrors": Case(
        {
            f'{R}requests_total{{status="200",{ROUTER}}}': counter(60, 60),
            f'{R}requests_total{{status="503",{ROUTER}}}': counter(1, 6),
        },
        CHAT,
    ),
    "KvcommonsRouterRefuses": Case(
        {f'{R}refusals_total{{limit="queue",{ROUTER}}}': counter(1, 60)}, {**CHAT, "limit": "queue"}
    ),
    "KvcommonsRouterQueue": Case(histogram(f"{R}queue_seconds", ROUTER, "1", "30", ("1", "10", "30", "+Inf")), CHAT),
    "KvcommonsRouterCrashes": Case({f"{R}worker_restarts_total{{{ROUTER}}}": counter(0, 1)}, CHAT),
    "KvcommonsRouterWithoutIndex": Case(
        {
            f'{R}index_lookups_total{{source="redis",{ROUTER}}}': counter(60, 0),
            f'{R}index_lookups_total{{source="down",{ROUTER}}}': counter(0, 60),
        },
        CHAT,
    ),
    "KvcommonsDiscoveryStale": Case(
        {
            f"{R}discovery_heard_timestamp_seconds{{{ROUTER}}}": " ".join(
                str(60 * (HEALTHY_UNTIL if HEALTHY_UNTIL <= minute < FAULTY_UNTIL else minute) + 1)
                for minute in range(END)
            )
        },
        CHAT,
    ),
    "KvcommonsPredictionsWrong": Case(
        {
            f'{R}actual_tokens_total{{source="commons",{ROUTER}}}': counter(60_000, 10_000),
            f'{R}predicted_tokens_total{{source="memory",{ROUTER}}}': counter(60_000, 60_000),
        },
        CHAT,
    ),
    "KvcommonsLoadsFail": Case(
        {f"kvcommons_connector_load_failures_total{{{ENGINES}}}": counter(0, 1)}, {**NS, "service": "chat-engines"}
    ),
    "KvcommonsOperatorNotLeading": Case({f"{O}leader{{{OPERATOR}}}": gauge(1, 0)}, {}),
    "KvcommonsReconcilesFail": Case(
        {
            f'{O}reconciles_total{{kind="KVCachePool",outcome="done",{OPERATOR}}}': counter(60, 60),
            f'{O}reconciles_total{{kind="KVCachePool",outcome="retried",{OPERATOR}}}': counter(1, 30),
        },
        {**NS, "kind": "KVCachePool", "outcome": "retried"},
    ),
    "KvcommonsReconcilesSlow": Case(
        histogram(f"{O}reconcile_seconds", f'kind="KVCachePool",{OPERATOR}', "1", "30", ("1", "5", "30", "+Inf")),
        {**NS, "kind": "KVCachePool"},
    ),
    "KvcommonsOperatorBehind": Case({f"{O}queue_objects{{{OPERATOR}}}": gauge(1, 40)}, RUN),
    "KvcommonsFencesFail": Case(
        {f'{O}fences_total{{outcome="failed",{OPERATOR}}}': counter(0, 1)}, {**RUN, "outcome": "failed"}
    ),
    "KvcommonsApiServerRefuses": Case(
        {
            f'{O}api_requests_total{{verb="get",kind="Pod",status="200",{OPERATOR}}}': counter(60, 60),
            f'{O}api_requests_total{{verb="get",kind="Pod",status="403",{OPERATOR}}}': counter(0, 60),
        },
        {**NS, "verb": "get", "kind": "Pod"},
    ),
    "KvcommonsNotReady": Case(
        {
            f'{O}condition{{kind="KVCachePool",resource_namespace="a",resource="p",condition="Ready",status="{status}",{OPERATOR}}}': gauge(
                *samples
            )
            for status, samples in (("True", (1, 0)), ("False", (0, 1)))
        },
        {
            **RUN,
            "kind": "KVCachePool",
            "resource_namespace": "a",
            "resource": "p",
            "condition": "Ready",
            "status": "False",
        },
    ),
}


def alert_of(name: str) -> alerts.Alert:
    """By its name."""
    return next(alert for alert in alerts.ALERTS if alert.name == name)


def promtool_test(name: str, case: Case) -> dict[str, Any]:
    """As `promtool test rules` reads it: silent before, raised once during the fault, silent after."""
    rule = alert_of(name).rule("")
    raised = {"exp_labels": {**case.labels, **rule["labels"]}, "exp_annotations": rule["annotations"]}
    at = [(BEFORE, []), (DURING, [raised]), (AFTER, [])]
    return {
        "name": name,
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case.series.items()],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": name, "exp_alerts": expected} for minute, expected in at
        ],
    }
