"""Requests and answers of calls that go to every node of the pool."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from kvcommons_node.api.base import Model, NodeName
from kvcommons_node.api.models_jobs import JobsQuery
from kvcommons_node.api.models_move import MoveRequest
from kvcommons_node.api.models_pins import PinRequest, PinsQuery, UnpinRequest
from kvcommons_node.api.models_recode import CompressRequest, DecompressRequest
from kvcommons_node.api.models_requests import RequestsQuery
from kvcommons_node.api.models_select import ClearRequest, LookupRequest

NODES_MAX = 1_024

SpreadOperation = Literal[
    "stats", "lookup", "clear", "pin", "unpin", "pins", "requests", "jobs", "move", "compress", "decompress"
]
"""What can be asked of all nodes at once."""


QUERIES: dict[str, type[BaseModel]] = {"pins": PinsQuery, "requests": RequestsQuery, "jobs": JobsQuery}
BODIES: dict[str, type[BaseModel]] = {
    "lookup": LookupRequest,
    "clear": ClearRequest,
    "pin": PinRequest,
    "unpin": UnpinRequest,
    "move": MoveRequest,
    "compress": CompressRequest,
    "decompress": DecompressRequest,
}


def _each_operation() -> list[Any]:
    """For the OpenAPI document: what each operation's request is."""
    branches: list[Any] = [{"properties": {"operation": {"const": "stats"}, "body": {"maxProperties": 0}}}]
    for name, query in QUERIES.items():
        branches.append({"properties": {"operation": {"const": name}, "body": query.model_json_schema()}})
    for name, body in BODIES.items():
        reference = {"$ref": f"#/components/schemas/{body.__name__}"}
        branches.append({"required": ["body"], "properties": {"operation": {"const": name}, "body": reference}})
    return branches


class ClusterRequest(Model):
    """One operation for every node of the pool, or for some."""

    model_config = ConfigDict(json_schema_extra={"oneOf": _each_operation()})

    operation: SpreadOperation = Field(description="As its operationId in this document.")
    body: dict[str, Any] = Field(default={}, description="The request of that operation; of a GET: its query.")
    nodes: list[NodeName] = Field(
        default=[], max_length=NODES_MAX, description="Names of the nodes in the index; all of them when empty."
    )


class NodeResult(Model):
    """What came of it on one node."""

    node: str
    ok: bool
    status: int = Field(description="Of HTTP; 0 where there was no answer.")
    error: str = Field(default="", description="Why it did not go well, and what to do.")
    answer: dict[str, Any] = Field(default={}, description="The operation's answer.")
    seconds: float


class ClusterAnswer(Model):
    """What came of it, node by node. The call as a whole went well only where `failed` is 0."""

    operation: str
    nodes: list[NodeResult]
    ok: int
    failed: int
