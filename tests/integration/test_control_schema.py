"""The control API of a running node against its own OpenAPI document, by schemathesis: what it says is what it does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from node_process import NodeProcess, node_in

EXAMPLES_AN_OPERATION = 25
SEED = 20_261
TESTED_APART = {"GET /v1/events": "a stream", "POST /v1/resize": "the node begins anew"}


@pytest.fixture(scope="module")
def node() -> Iterator[NodeProcess]:
    with ExitStack() as stack:
        made = stack.enter_context(node_in(Path(stack.enter_context(TemporaryDirectory(prefix="kvn-")))))
        made.start()
        yield made


def operations(node: NodeProcess) -> dict[str, Any]:
    """By method and path; a part of the document that can't be understood raises here."""
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{node.port}/openapi.json")
    found = [cast("Any", result).ok() for result in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


def test_every_operation_answers_as_its_document_says(node: NodeProcess) -> None:
    """Seeded bodies and queries, good and bad: no answer is a 500, none breaks its schema, and the node is ready afterwards."""
    found = operations(node)
    assert {"POST /v1/pin", "POST /v1/clear", "GET /v1/requests", "GET /readyz"} <= found.keys()
    for label, operation in found.items():
        if label in TESTED_APART:
            continue

        @seed(SEED)
        @settings(
            max_examples=EXAMPLES_AN_OPERATION,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            case.call_and_validate()

        answers()
    assert node.get("/readyz")[1]["ready"] is True
