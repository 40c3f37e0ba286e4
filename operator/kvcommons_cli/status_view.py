"""The state of a cluster, or of one node, as tables for people and as JSON for machines. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from kvcommons_cli.cluster_world import World
from kvcommons_cli.resources import Pod, Resource, total
from kvcommons_cli.tables import age, percent, size, span, table

POOL_HEADINGS = (
    "POOL",
    "PLACEMENT",
    "READY",
    "NODES",
    "MEMORY",
    "USED",
    "BEHIND",
    "HITS",
    "INDEX",
    "CONSISTENT",
    "USED BY",
    "AGE",
)
NODE_HEADINGS = ("CACHE NODE", "POOL", "ON", "READY", "USED", "CHUNKS", "HITS", "ENGINES", "INDEX", "RESTARTS")
DEPLOYMENT_HEADINGS = ("DEPLOYMENT", "MODEL", "POOL", "READY", "SERVING", "SHARING", "ROUTERS", "URL", "AGE")
REPLICA_HEADINGS = ("REPLICA", "DEPLOYMENT", "ON", "READY", "RESTARTS", "STATE", "AGE")
LOCAL_HEADINGS = ("CACHE NODE", "READY", "ARENA", "USED", "CHUNKS", "HITS", "ENGINES", "INDEX", "UP FOR")
FINGERPRINT_HEADINGS = ("FINGERPRINT", "MODEL", "CHUNKS", "USED", "PROCESSES")
FINGERPRINT_DIGITS = 12
TIER_HEADINGS = ("BEHIND MEMORY", "HEALTH", "SIZE", "USED", "SHARDS", "WHY")
ROWS_MAX = 50
"""Of one table, for a person; machines get all."""
WELL = ("yes", "True")


def _named(namespace: str, name: str) -> str:
    return f"{namespace}/{name}" if name else ""


def _of(known: object, wanted: object) -> str:
    return f"{known or 0}/{wanted or 0}"


def pool_row(pool: Resource, world: World, now: datetime) -> dict[str, str]:
    """One pool; what nodes say of themselves where they could be asked, else what the operator wrote down."""
    status, nodes = pool.status, pool.status.get("nodes") or {}
    reports = [world.report(one) for one in world.nodes_of(pool)]
    capacity, used = total(one.capacity_bytes for one in reports), total(one.used_bytes for one in reports)
    lately = status.get("hitPercent")
    hits = percent(total(one.hit_chunks for one in reports), total(one.lookup_chunks for one in reports))
    consistent = pool.condition("IndexConsistent")
    in_use = status.get("memoryUsedPercent")
    return {
        "pool": _named(pool.namespace, pool.name),
        "placement": str(pool.spec.get("placement", "sidecar")),
        "ready": pool.ready + (", being deleted" if pool.deleting else ""),
        "nodes": _of(nodes.get("ready"), nodes.get("desired")),
        "memory": size(capacity) if capacity is not None else str(status.get("memory", "")),
        "used": percent(used, capacity) or (f"{in_use} %" if in_use is not None else ""),
        "behind": ", ".join(_tier(one) for one in status.get("tiers") or ()),
        "hits": f"{lately} %" if lately is not None else hits,
        "index": _index(pool),
        "consistent": _condition(consistent.status, consistent.reason) if consistent is not None else "",
        "used by": str(status.get("references", 0)),
        "age": age(pool.created, now),
    }


def _index(pool: Resource) -> str:
    """Pods of a managed index; of an external one whether the nodes reach it, since it has none that are ours."""
    known, told = pool.condition("IndexConsistent"), pool.status.get("index") or {}
    if (pool.spec.get("index") or {}).get("external"):
        return "external, not reached" if known is not None and known.reason == "NodesNotInIndex" else "external"
    return _of(told.get("readyReplicas"), told.get("replicas")) if told else ""


def _tier(told: dict[str, Any]) -> str:
    """A tier behind the memory: what it is, its size, what of it is used, and on how many nodes it is not well."""
    share, ill = told.get("usedPercent"), told.get("degraded")
    used = f" {share} % of" if share is not None else ""
    return f"{told.get('type', '')}{used} {told.get('capacity', '')}" + (f" ({ill} not well)" if ill else "")


def _condition(status: str, reason: str) -> str:
    return status if status == "True" else f"{status}: {reason}"


def node_row(one: Pod, world: World) -> dict[str, str]:
    """One cache node."""
    report = world.report(one)
    state = ("held" if report.held else report.index_state) or (f"({report.error[:40]})" if report.error else "")
    return {
        "cache node": _named(one.namespace, one.name),
        "pool": _named(*one.pool),
        "on": one.node,
        "ready": ("yes" if report.ready else report.reason or "no") if not report.error else _pod_ready(one),
        "used": percent(report.used_bytes, report.capacity_bytes),
        "chunks": "" if report.chunks is None else f"{report.chunks:.0f}",
        "hits": percent(report.hit_chunks, report.lookup_chunks),
        "engines": "" if report.engines is None else f"{report.engines:.0f}",
        "index": state,
        "restarts": str(one.restarts),
    }


def _pod_ready(one: Pod) -> str:
    return "yes" if one.ready else "no"


def deployment_row(deployment: Resource, now: datetime) -> dict[str, str]:
    """One deployment."""
    status, spec = deployment.status, deployment.spec
    router, pool = status.get("router") or {}, spec.get("poolRef") or {}
    return {
        "deployment": _named(deployment.namespace, deployment.name),
        "model": str((spec.get("model") or {}).get("name", "")),
        "pool": _named(pool.get("namespace") or deployment.namespace, pool.get("name", "")),
        "ready": deployment.ready + (", being deleted" if deployment.deleting else ""),
        "serving": _of(status.get("readyReplicas"), status.get("replicas")),
        "sharing": _of(status.get("connectedReplicas"), status.get("replicas")) if pool else "",
        "routers": _of(router.get("readyReplicas"), router.get("replicas")),
        "url": str(status.get("url", "")),
        "age": age(deployment.created, now),
    }


def replica_row(one: Pod, now: datetime) -> dict[str, str]:
    """One engine pod."""
    waiting = next((c.waiting for c in one.containers if c.waiting), "")
    return {
        "replica": _named(one.namespace, one.name),
        "deployment": _named(*one.deployment),
        "on": one.node,
        "ready": _pod_ready(one),
        "restarts": str(one.restarts),
        "state": "Terminating" if one.deleting else waiting or ("Unschedulable" if one.unschedulable else one.phase),
        "age": age(one.created, now),
    }


def document(world: World, now: datetime) -> dict[str, Any]:
    """All of it, for `-o json`: what the tables show, and the numbers behind it."""
    return {
        "pools": [pool_row(one, world, now) for one in world.pools],
        "nodes": [{**node_row(one, world), "report": asdict(world.report(one))} for one in world.cache_nodes],
        "deployments": [deployment_row(one, now) for one in world.deployments],
        "replicas": [replica_row(one, now) for one in world.engines],
        "problems": world.problems,
    }


def _section(headings: Sequence[str], rows: Sequence[dict[str, str]], nothing: str) -> str:
    """What is not well comes first, so that it is not among what is left out."""
    if not rows:
        return nothing
    ordered = sorted(rows, key=lambda row: row["ready"] in WELL)
    shown = table(headings, [[row[heading.lower()] for heading in headings] for row in ordered[:ROWS_MAX]])
    left = ordered[ROWS_MAX:]
    if not left:
        return shown
    bad = sum(1 for row in left if row["ready"] not in WELL)
    return f"{shown}\n({len(left)} more, {bad or 'none'} of them not ready; -o json lists all)"


def tables(world: World, now: datetime) -> str:
    """All of it, for a terminal."""
    parts = [
        _section(POOL_HEADINGS, [pool_row(one, world, now) for one in world.pools], "no KVCachePool"),
        _section(NODE_HEADINGS, [node_row(one, world) for one in world.cache_nodes], ""),
        _section(
            DEPLOYMENT_HEADINGS, [deployment_row(one, now) for one in world.deployments], "no InferenceDeployment"
        ),
        _section(REPLICA_HEADINGS, [replica_row(one, now) for one in world.engines], ""),
        *(f"note: {problem}" for problem in world.problems),
    ]
    if not all(one.ready == "True" for one in (*world.pools, *world.deployments)):
        parts.append("Something is not ready: `kvcommons doctor` says why and what to do.")
    return "\n\n".join(part for part in parts if part)


def _tier_row(told: dict[str, Any]) -> list[str]:
    """What one node says of a tier behind its memory."""
    counters = told.get("counters") or {}
    capacity = counters.get("capacity_bytes")
    return [
        str(told.get("name", "")),
        str(told.get("health", "")),
        size(capacity),
        percent(counters.get("used_bytes"), capacity),
        str(counters.get("shards", "")),
        str(told.get("detail") or ""),
    ]


def local_tables(stats: dict[str, Any], ready: dict[str, Any]) -> str:
    """One node of this machine."""
    core, index = stats.get("core") or {}, stats.get("index") or {}
    row = [
        str(stats.get("node_id", "")),
        "yes" if ready.get("ready") else str(ready.get("reason") or "no"),
        size(core.get("arena_bytes")),
        percent(core.get("used_bytes"), core.get("arena_bytes")),
        str(core.get("chunks", "")),
        percent(core.get("hit_chunks"), core.get("lookup_chunks")),
        str(core.get("engines", "")),
        str(index.get("state", "")),
        span(float(stats.get("uptime_seconds") or 0)),
    ]
    known = [
        [
            str(one["fingerprint"])[:FINGERPRINT_DIGITS],
            ", ".join(one.get("models") or ()),
            str(one["chunks"]),
            size(one["used_bytes"]),
            ", ".join(f"{engine['name'] or 'pid'} {engine['pid']}" for engine in one["engines"]),
        ]
        for one in stats.get("fingerprints") or ()
    ]
    behind = [_tier_row(one) for one in stats.get("tiers") or ()]
    parts = [
        table(LOCAL_HEADINGS, [row]) + (f"\n\n{table(TIER_HEADINGS, behind)}" if behind else ""),
        table(FINGERPRINT_HEADINGS, known) if known else "no engine has stored anything or is attached",
        f"engines attach at {stats.get('socket_path', '')}",
        f"index: {index.get('detail', '')}",
    ]
    return "\n\n".join(parts[:2]) + "\n\n" + "\n".join(parts[2:])
