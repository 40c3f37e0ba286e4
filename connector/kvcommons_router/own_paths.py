"""What the router answers by itself: its health, its metrics, and the models that it serves."""

from __future__ import annotations

from typing import Final, NamedTuple

import orjson

from kvcommons_router.context import Context
from kvcommons_router.errors import Refusal, not_served
from kvcommons_router.exposition import render
from kvcommons_router.roster import Presence

OWN: Final = frozenset(
    {b"/health", b"/healthz", b"/readyz", b"/metrics", b"/v1/models", b"/kvcommons/v1/pool", b"/kvcommons/v1/requests"}
)
REQUESTS: Final = b"/kvcommons/v1/requests/"
POOL: Final = b"/kvcommons/v1/pool"
LAST_REQUESTS: Final = b"/kvcommons/v1/requests"
PAGE: Final = {
    b"/ui": ("index.html", b"text/html; charset=utf-8"),
    b"/ui/app.js": ("app.js", b"text/javascript; charset=utf-8"),
    b"/ui/style.css": ("style.css", b"text/css; charset=utf-8"),
}
"""The page and its files; they hold no data, which is behind the two paths above."""
KEPT: Final = (b"/v1/", b"/kvcommons/")
"""Where keys are asked for, these need one."""
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def is_own(path: bytes) -> bool:
    """Whether the router answers by itself what is asked at a path."""
    return path in OWN or path in PAGE or path.startswith((b"/v1/models/", REQUESTS))


class Answer(NamedTuple):
    """A response without its framing."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"


def health_report(context: Context, *, leaving: bool) -> Answer:
    """200 if every model has an instance that serves and we are staying; the details for people."""
    up = context.up()
    models = {
        group.model: {"instances": len(group.members), "up": sum(up[one.index] for one in group.members)}
        for group in context.fleet.groups.values()
    }
    if leaving:
        status = "draining"
    elif not models or not all(model["up"] for model in models.values()):
        status = "degraded" if any(model["up"] for model in models.values()) else "unavailable"
    else:
        status = "ok"
    workers = context.cells.total(context.layout.workers)
    answer = orjson.dumps({"status": status, "models": models, "workers": workers, "index": index_state(context)})
    return Answer(200 if status in ("ok", "degraded") else 503, answer)


def index_state(context: Context) -> str:
    """Whether the workers are connected to Redis: none (there is none), connected, away, or partly."""
    if not context.index_settings.url:
        return "none"
    up = context.cells.total(context.layout.index_up)
    return "connected" if up >= context.cells.total(context.layout.workers) else "partly" if up else "away"


def metrics_page(context: Context) -> Answer:
    """All workers' metrics; the gauges must be up to date."""
    presences = dict.fromkeys((presence.name.lower() for presence in Presence), 0)
    for instance in context.fleet.instances:
        presences[instance.entry.presence.name.lower()] += 1
    return Answer(200, render(context.layout, context.cells, context.names(), context.up(), presences), METRICS_TYPE)


def request_page(context: Context, path: bytes, tenant: str) -> Answer:
    """What was expected of one of the tenant's requests, and what came of it.

    :raises Refusal: if this worker remembers none of that id.
    """
    request_id = path[len(REQUESTS) :].decode("latin-1")
    account = context.index.account(request_id, tenant)
    if account is None:
        workers = context.cells.total(context.layout.workers)
        message = f"No request of that id is remembered by this worker of {workers}: each knows its own, the last few thousand."
        raise Refusal(404, message, code="not_found", param="request_id")
    return Answer(200, orjson.dumps(account))


def models_page(context: Context, path: bytes) -> Answer:
    """The models, or the one that the path names.

    :raises Refusal: if that one is not served.
    """
    groups = context.fleet.groups
    if path == b"/v1/models":
        return Answer(200, orjson.dumps({"object": "list", "data": [_model(name) for name in groups]}))
    name = path[len(b"/v1/models/") :].decode("latin-1")
    if name not in groups:
        raise not_served(name, groups)
    return Answer(200, orjson.dumps(_model(name)))


def _model(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "kvcommons"}
