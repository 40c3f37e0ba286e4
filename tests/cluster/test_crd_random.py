"""Random resources: the API server and the models agree on every one, and a refusal names the field at fault."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from crd_case import body
from crd_random import Maker
from crd_server import Answer, establish, send
from kube_apiserver import ApiServer
from kvcommons_operator.api import (
    InferenceDeployment,
    InferenceRole,
    InvalidResourceError,
    KVCachePool,
    Resource,
    parse,
)

# Others, and more of them: KVCOMMONS_SEED=7 KVCOMMONS_TIMES=10 pytest tests/cluster/test_crd_random.py
SEED = int(os.environ.get("KVCOMMONS_SEED", "20260"))
TIMES = int(os.environ.get("KVCOMMONS_TIMES", "1"))
COUNTS: tuple[tuple[type[Resource], int], ...] = ((KVCachePool, 120), (InferenceDeployment, 160), (InferenceRole, 20))


@pytest.fixture(scope="module")
def server(apiserver: ApiServer) -> ApiServer:
    """The API server with our definitions."""
    establish(apiserver)
    return apiserver


def seeds(count: int) -> Iterator[int]:
    """Seeds of this run."""
    return iter(range(SEED, SEED + count * TIMES))


def complaints(kind: type[Resource], spec: dict[str, Any]) -> dict[str, str]:
    """Field -> message of what the model finds wrong."""
    try:
        parse(kind, body(kind, "x", spec, "default"))
    except InvalidResourceError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


def meet(one: str, other: str) -> bool:
    """Whether two paths are the same, or one leads to the other."""
    return one.startswith(other) or other.startswith(one)


@pytest.mark.parametrize(("kind", "count"), COUNTS, ids=lambda value: getattr(value, "KIND", ""))
def test_what_the_model_takes_is_stored_as_the_model_has_it(
    server: ApiServer, kind: type[Resource], count: int
) -> None:
    """The API server stores every resource that the model takes, and with its defaults it is still the same resource."""
    for seed in seeds(count):
        spec = Maker(seed).valid(kind)
        answer = send(server, kind, "default", spec)
        assert answer.stored is not None, f"seed {seed}: {answer.faults}\n{spec}"
        sent = parse(kind, body(kind, "x", spec, "default"))
        stored = parse(kind, answer.stored)
        assert stored.spec == sent.spec, f"seed {seed}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "count"), COUNTS, ids=lambda value: getattr(value, "KIND", ""))
def test_what_is_broken_is_refused_by_both_at_the_same_field(
    server: ApiServer, kind: type[Resource], count: int
) -> None:
    """One thing broken at random is refused by the API server and by the model alike, and both point to it."""
    refused = 0
    for seed in seeds(count):
        spec, fault = Maker(seed).faulty(kind)
        own = complaints(kind, spec)
        answer: Answer = send(server, kind, "default", spec)
        assert (answer.stored is None) == bool(own), f"seed {seed}: {fault}\nmodel: {own}\nserver: {answer.faults}"
        if own:
            refused += 1
            found = f"seed {seed}: {fault}\nmodel: {own}\nserver: {answer.faults}"
            assert any(meet(mine, theirs) for mine in own for theirs in answer.faults), found
    assert refused > count * TIMES * 0.7
