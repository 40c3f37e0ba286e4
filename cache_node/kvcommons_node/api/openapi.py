"""The OpenAPI 3.1 document, generated from the models and the table of operations that the server itself routes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from kvcommons_node.api import models
from kvcommons_node.api.models_cluster import ClusterAnswer, ClusterRequest
from kvcommons_node.api.models_jobs import CancelRequest, JobAnswer, JobEntry, JobsAnswer, JobsQuery, PrewarmRequest
from kvcommons_node.api.models_move import FetchRequest, MoveRequest
from kvcommons_node.api.models_pins import PinAnswer, PinRequest, PinsAnswer, PinsQuery, UnpinAnswer, UnpinRequest
from kvcommons_node.api.models_recode import CompressRequest, DecompressRequest
from kvcommons_node.api.models_requests import EventData, EventsQuery, RequestsAnswer, RequestsQuery
from kvcommons_node.api.models_select import ClearAnswer, ClearRequest, LookupAnswer, LookupRequest
from kvcommons_node.api.models_size import ResizeAnswer, ResizeRequest

REF_TEMPLATE = "#/components/schemas/{model}"


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    name: str
    summary: str
    answer: type[BaseModel]
    body: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    guarded: bool = False
    """Needs the bearer token where one is configured."""
    changes: bool = False
    """Is written into the audit log."""
    streams: bool = False
    """Answers with server-sent events, each with `answer` as its data."""


OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/healthz", "health", "The process answers", models.HealthAnswer),
    Operation("GET", "/readyz", "ready", "Engines may attach; 503 until then", models.ReadyAnswer),
    Operation("GET", "/v1/stats", "stats", "Counters and state", models.StatsAnswer, guarded=True),
    Operation(
        "POST",
        "/v1/lookup",
        "lookup",
        "Where the chunks of a chain are: memory, tiers, and which nodes",
        LookupAnswer,
        LookupRequest,
        guarded=True,
    ),
    Operation(
        "POST",
        "/v1/clear",
        "clear",
        "Forget chunks: all, or by fingerprint, model, tenant, key, age, tier",
        ClearAnswer,
        ClearRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/pin",
        "pin",
        "Keep the leading chunks of a chain from eviction, for a while",
        PinAnswer,
        PinRequest,
        guarded=True,
        changes=True,
    ),
    Operation("POST", "/v1/unpin", "unpin", "End a pin, or all", UnpinAnswer, UnpinRequest, guarded=True, changes=True),
    Operation("GET", "/v1/pins", "pins", "The pins, by name", PinsAnswer, query=PinsQuery, guarded=True),
    Operation(
        "POST",
        "/v1/prewarm",
        "prewarm",
        "Send documents through the engines once, as a job",
        JobAnswer,
        PrewarmRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "GET", "/v1/jobs", "jobs", "Long work: what runs, and how it ended", JobsAnswer, query=JobsQuery, guarded=True
    ),
    Operation(
        "POST",
        "/v1/move",
        "move",
        "Chunks from memory to a tier or back, or to another node, as a job",
        JobAnswer,
        MoveRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/fetch",
        "fetch",
        "Chunks of another node into this one's memory, as a job: what a move between nodes asks of its target",
        JobAnswer,
        FetchRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/compress",
        "compress",
        "What a tier holds into a smaller form, as a job",
        JobAnswer,
        CompressRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/decompress",
        "decompress",
        "What a tier holds back into the engine's own bytes, as a job",
        JobAnswer,
        DecompressRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/jobs/cancel",
        "cancel",
        "End a job; what it did stays done",
        JobEntry,
        CancelRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "GET",
        "/v1/requests",
        "requests",
        "What the last requests reused, and why not more",
        RequestsAnswer,
        query=RequestsQuery,
        guarded=True,
    ),
    Operation(
        "GET",
        "/v1/events",
        "events",
        "What happens, as server-sent events",
        EventData,
        query=EventsQuery,
        guarded=True,
        streams=True,
    ),
    Operation(
        "POST",
        "/v1/cluster",
        "cluster",
        "One operation on every node of the pool; what came of it, node by node",
        ClusterAnswer,
        ClusterRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/fence",
        "fence",
        "Void what members published",
        models.FenceAnswer,
        models.FenceRequest,
        guarded=True,
        changes=True,
    ),
    Operation(
        "POST",
        "/v1/resize",
        "resize",
        "Give the arena another size, and keep what fits",
        ResizeAnswer,
        ResizeRequest,
        guarded=True,
        changes=True,
    ),
)


def document(version: str) -> dict[str, Any]:
    """The whole document, ready for json.dumps."""
    used: list[type[BaseModel]] = [models.ErrorAnswer]
    for operation in OPERATIONS:
        used.append(operation.answer)
        if operation.body is not None:
            used.append(operation.body)
    refs, definitions = models_json_schema([(model, "validation") for model in used], ref_template=REF_TEMPLATE)
    schema_of = {model: refs[(model, "validation")] for model in used}
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe(operation, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvcommons cache node",
            "version": version,
            "description": "Control API of one cache node. Errors carry the field, its value and the remedy.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _describe(operation: Operation, schema_of: dict[type[BaseModel], dict[str, Any]]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "responses": {
            "200": _content("Done", schema_of[operation.answer]),
            "default": _content("Refused", schema_of[models.ErrorAnswer]),
        },
    }
    if operation.body is not None:
        described["requestBody"] = {"required": True, **_content("", schema_of[operation.body])}
        del described["requestBody"]["description"]
    if operation.query is not None:
        described["parameters"] = _parameters(operation.query)
    if operation.streams:
        described["responses"]["200"]["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    if operation.guarded:
        described["security"] = [{"token": []}, {}]
    if operation.path == "/readyz":
        described["responses"]["503"] = _content("Not yet", schema_of[operation.answer])
    return described


def _parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": schema.pop("description", ""),
            "schema": schema,
        }
        for name, schema in query.model_json_schema()["properties"].items()
    ]


def _content(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
