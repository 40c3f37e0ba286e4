"""What the router's page shows: replicas, nodes and the last requests, as JSON that is bounded by what the router keeps anyway."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

import orjson
from kvcommons_core.index.schema import Member, MemberKind
from kvcommons_core.misses import explained

from kvcommons_router.context import Context
from kvcommons_router.feedback import PLACES
from kvcommons_router.fleet import Instance
from kvcommons_router.metrics import OUTCOMES
from kvcommons_router.own_paths import PAGE, Answer, index_state

SHOWN_REQUESTS_MAX: Final = 100
SOURCES: Final = ("own", "commons")
MICROSECONDS: Final = 1e-6


@cache
def page_file(path: bytes) -> Answer:
    """One of the page's own files; they hold no data."""
    name, content_type = PAGE[path]
    return Answer(200, resources.files("kvcommons_router").joinpath("ui", name).read_bytes(), content_type)


def pool_page(context: Context, *, draining: bool) -> Answer:
    """Models, replicas and cache nodes as this router sees them now, with all its workers' counters."""
    cells, layout = context.cells, context.layout
    up = context.up()
    members = context.index.members()
    groups = context.fleet.groups.values()
    models = [{"model": group.model, "replicas": [one.name for one in group.members]} for group in groups]
    totals = {
        "prompt_tokens": cells.total(layout.prompt_tokens),
        "queued_requests": cells.total(layout.queued),
        "requests_in_flight": cells.total(layout.requests_now),
    }
    answer = {
        "workers": cells.total(layout.workers),
        "policy": context.policy.value,
        "index": index_state(context),
        "draining": draining,
        "totals": totals,
        "models": models,
        "replicas": [_replica(context, one, up=up[one.index]) for one in context.fleet.instances],
        "nodes": [_node(member) for member in members if member.info.kind is MemberKind.NODE],
    }
    return Answer(200, orjson.dumps(answer))


def _replica(context: Context, instance: Instance, *, up: bool) -> dict[str, object]:
    cells, layout, index, settings = context.cells, context.layout, instance.index, instance.settings
    candidate = instance.candidate
    saved = cells.totals(layout.saved_seconds + index * len(SOURCES), len(SOURCES))
    actual = cells.totals(layout.actual_tokens + index * len(SOURCES), len(SOURCES))
    predicted = cells.totals(layout.predicted_tokens + index * len(PLACES), len(PLACES))
    attempts = cells.totals(layout.attempts + index * len(OUTCOMES), len(OUTCOMES))
    return {
        "name": instance.name,
        "models": list(settings.names),
        "node": settings.node,
        "role": settings.role.value,
        "presence": instance.entry.presence.name.lower(),
        "up": up,
        "waiting_tokens": candidate.waiting_tokens,
        "decoding_requests": candidate.decoding,
        "prefill_tokens_per_second": round(1 / candidate.prefill.token_seconds) if candidate.prefill.known else None,
        "predicted_tokens": dict(zip(PLACES, predicted, strict=True)),
        "actual_tokens": dict(zip(SOURCES, actual, strict=True)),
        "saved_prefill_seconds": round(sum(saved) * MICROSECONDS, 3),
        "attempts": dict(zip(OUTCOMES, attempts, strict=True)),
    }


def _node(member: Member) -> dict[str, object]:
    info = member.info
    return {"name": info.name, "zone": info.zone, "capacity_bytes": info.capacity_bytes, "peer": bool(info.peer)}


def requests_page(context: Context, tenant: str) -> Answer:
    """The tenant's last requests that engines reported on and this worker sent, newest first, with the reason of what was missed in words."""
    accounts = context.index.accounts(tenant, SHOWN_REQUESTS_MAX)
    workers = context.cells.total(context.layout.workers)
    return Answer(200, orjson.dumps({"workers": workers, "requests": [_worded(account) for account in accounts]}))


def _worded(account: dict[str, object]) -> dict[str, object]:
    reported = account["reported"]
    if not isinstance(reported, dict):
        return account
    return account | {"explanation": explained(reported["reason"])}
