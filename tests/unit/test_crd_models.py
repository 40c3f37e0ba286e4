"""The models read what the API server stored, and refuse what it refuses, naming the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from crd_case import BASES, DEPLOYMENT, POOL, Case, Change, Spec, body, merged
from crd_cases import CASES, CHANGES
from kvcommons_operator.api import (
    InferenceDeployment,
    InvalidResourceError,
    KVCachePool,
    Resource,
    Verdict,
    count_or_share,
    parse,
    parse_deployment,
    parse_pool,
    parse_quantity,
    quantity_bytes,
    refused,
    unbuilt,
)
from kvcommons_operator.api.unbuilt import DEPLOYMENT_GAPS, POOL_GAPS

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"


def problems(kind: Any, spec: Spec, name: str = "x") -> dict[str, str]:
    """Field -> message of what is wrong; empty when nothing is."""
    try:
        parse(kind, body(kind, name, spec))
    except InvalidResourceError as error:
        return {problem.path: problem.message for problem in error.problems}
    return {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_refuses_what_breaks_it_and_nothing_else(case: Case) -> None:
    """What breaks a rule is refused with the rule's message at its field; its neighbour that keeps the rule is read."""
    found = problems(case.kind, merged(BASES[case.kind], case.bad))
    assert any(case.message in message for message in found.values()), found
    assert any(case.field.startswith(path) or path.startswith(case.field) for path in found), found
    assert problems(case.kind, merged(BASES[case.kind], case.good)) == {}


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_that_is_not_allowed_is_told_from_one_that_is(change: Change) -> None:
    """The rule about changes holds for the good one and not for the bad one."""

    def spec(patch: Spec) -> Any:
        return parse(change.kind, body(change.kind, "x", merged(BASES[change.kind], patch))).spec  # type: ignore[attr-defined]

    def broken(old: Any, new: Any) -> set[str]:
        pairs = [(old, new)]
        if change.kind is KVCachePool:
            pairs += [(old.index, new.index), (old.index.external, new.index.external)]
        return {
            rule.message
            for before, after in pairs
            if before is not None and after is not None
            for rule in after.TRANSITIONS
            if not rule.holds(before, after)
        }

    old = spec(change.old)
    assert any(change.message in message for message in broken(old, spec(merged(change.old, change.bad))))
    assert broken(old, spec(merged(change.old, change.good))) == set()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_read_and_are_built(path: Path) -> None:
    """Every example is a valid resource, and asks for nothing that is not built yet."""
    documents = [document for document in yaml.safe_load_all(path.read_text()) if document["kind"] != "Namespace"]
    assert documents
    for document in documents:
        resource = parse_pool(document) if document["kind"] == "KVCachePool" else parse_deployment(document)
        assert unbuilt(resource.spec) == []


def test_the_least_spec_has_every_default() -> None:
    """A pool with nothing but its memory, and a deployment with nothing but its model, are whole."""
    pool = parse_pool(body(KVCachePool, "p", POOL)).spec
    assert pool.placement == "sidecar"
    assert pool.index.managed is not None
    assert (pool.chunk_tokens, pool.index.managed.replicas) == (256, 1)
    deployment = parse_deployment(body(InferenceDeployment, "d", DEPLOYMENT)).spec
    assert (deployment.replicas, deployment.engine.type, deployment.routing.replicas) == (1, "vllm", 2)
    assert deployment.to_dict() == DEPLOYMENT


def test_names_that_can_be_no_label_are_refused() -> None:
    """Children are named after a resource and labelled with its name."""
    for name in ("a.b", "1a", "a" * 64, "a-"):
        assert "at most 63 characters" in str(problems(KVCachePool, POOL, name)), name
    assert problems(KVCachePool, POOL, "a" * 63) == {}


def test_a_field_that_is_unknown_or_in_another_spelling_is_named() -> None:
    """snake_case is no YAML spelling, and a misspelt field is not passed over."""
    assert set(problems(KVCachePool, merged(POOL, {"chunk_tokens": 64}))) == {"spec.chunk_tokens"}
    assert set(problems(KVCachePool, merged(POOL, {"tiers": {"memroy": {}}}))) == {"spec.tiers.memroy"}


def test_a_key_that_is_no_name_is_shown_with_its_place() -> None:
    """The path leads to the map, through lists, as the API server writes it; the key is in the message."""
    metric = {"type": "External", "name": "n", "target": 1, "selector": {"a b": "c"}}
    found = problems(InferenceDeployment, merged(DEPLOYMENT, {"autoscaling": {"maxReplicas": 2, "metrics": [metric]}}))
    assert list(found) == ["spec.autoscaling.metrics[0].selector"]
    assert found.popitem()[1].startswith("'a b': keys are names")


def test_null_is_left_out_where_the_api_server_leaves_it_out() -> None:
    """null takes the default, and stays an error for what is required."""
    spec = merged(POOL, {})
    spec["eviction"] = None
    assert parse_pool(body(KVCachePool, "p", spec)).spec.eviction.policy == "auto"
    assert set(problems(KVCachePool, {"tiers": None})) == {"spec.tiers"}


def test_types_are_not_guessed() -> None:
    """A number in quotes is no number and "yes" no boolean; only quantities may be written as either."""
    assert set(problems(KVCachePool, merged(POOL, {"chunkTokens": "256"}))) == {"spec.chunkTokens"}
    assert set(problems(KVCachePool, merged(POOL, {"security": {"multiTenant": "yes"}}))) == {
        "spec.security.multiTenant"
    }
    spec = parse_deployment(
        body(InferenceDeployment, "d", merged(DEPLOYMENT, {"engine": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}))
    ).spec
    assert spec.engine.resources.limits == {"nvidia.com/gpu": "1"}


def test_what_is_there_twice_is_named() -> None:
    """Lists that are maps or sets take nothing twice, as in the API server."""
    twice = [{"tenant": "a", "memoryPercent": 1}, {"tenant": "a", "memoryPercent": 2}]
    assert set(problems(KVCachePool, merged(POOL, {"tenancy": {"quotas": twice}}))) == {"spec.tenancy.quotas[1]"}
    assert set(problems(KVCachePool, merged(POOL, {"compression": {"tiers": ["disk", "disk"]}}))) == {
        "spec.compression.tiers[1]"
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1Ki", 1024), ("1.5Gi", 3 << 29), ("1k", 1000), ("1e3", 1000), ("100m", 1), ("2E", 2 * 10**18)],
)
def test_quantities_are_bytes_rounded_up(text: str, value: int) -> None:
    """Every suffix of Kubernetes counts as there."""
    assert quantity_bytes(text) == value


def test_what_is_no_quantity_is_named() -> None:
    """The message shows how one is written."""
    with pytest.raises(ValueError, match=r"'4GB' is no quantity; write a number with a suffix, as 4Gi"):
        parse_quantity("4GB")


def test_counts_and_shares_are_as_kubernetes_wants_them() -> None:
    """A number of pods is a number, a share stays text."""
    assert (count_or_share("1"), count_or_share("25%")) == (1, "25%")


BUCKET: Spec = {"type": "remote", "capacity": "1Gi", "s3": {"bucket": "abc"}}
UNBUILT: tuple[tuple[str, Spec], ...] = (
    ("spec.tiers.secondary", {"tiers": {"secondary": [BUCKET, {"type": "disk", "capacity": "1Gi", "emptyDir": {}}]}}),
    ("spec.tiers.secondary", {"tiers": {"secondary": [BUCKET, BUCKET]}}),
    (
        "spec.tiers.secondary[].s3.prefix",
        {"tiers": {"secondary": [{**BUCKET, "s3": {"bucket": "abc", "prefix": "a//b"}}]}},
    ),
    (
        "spec.tiers.secondary[].capacity",
        {"tiers": {"secondary": [{"type": "disk", "capacity": f"{size}Gi", "emptyDir": {}} for size in (1, 2)]}},
    ),
    (
        "spec.tiers.secondary[].medium",
        {"tiers": {"secondary": [{"type": "disk", "capacity": "1Gi", "emptyDir": {}, "medium": "hdd"}]}},
    ),
    ("spec.tiers.memory.hugePages", {"tiers": {"memory": {"hugePages": "1Gi"}}}),
    ("spec.compression", {"compression": {"codec": "fp8"}}),
    ("spec.transport.type", {"transport": {"type": "nixl"}}),
    ("spec.tenancy.quotas", {"tenancy": {"quotas": [{"tenant": "a", "memoryPercent": 10}]}}),
    ("spec.engine.type", {"engine": {"type": "sglang"}}),
    (
        "spec.engine.nodesPerReplica",
        {"engine": {"nodesPerReplica": 2, "tensorParallelSize": 2}, "poolRef": {"name": "p"}},
    ),
    ("spec.routing.failureMode", {"routing": {"failureMode": "FailClosed"}}),
    ("spec.gateway.inferencePool", {"gateway": {"inferencePool": {}}}),
)


def test_every_gap_is_shown_by_a_spec() -> None:
    """The table of what is not built and the specs that ask for it are the same list."""
    assert [field for field, _ in UNBUILT] == [gap.field for gap in POOL_GAPS + DEPLOYMENT_GAPS]


@pytest.mark.parametrize(("field", "patch"), UNBUILT, ids=[field for field, _ in UNBUILT])
def test_what_is_not_built_is_named_with_its_verdict(field: str, patch: Spec) -> None:
    """A spec that asks for one thing that is not built is told of that thing alone; its neighbours by default of none."""
    kind: type[Resource] = KVCachePool if field in {gap.field for gap in POOL_GAPS} else InferenceDeployment
    spec = parse(kind, body(kind, "x", merged(BASES[kind], patch))).spec  # type: ignore[attr-defined]
    found = unbuilt(spec)
    assert [(gap.field, gap.reason) for gap in found] == [(field, "NotBuiltYet")]
    assert found[0].message
    assert refused(spec) == [gap for gap in found if gap.verdict is Verdict.REFUSED]
    assert unbuilt(parse(kind, body(kind, "x", BASES[kind])).spec) == []  # type: ignore[attr-defined]


def test_a_status_of_another_version_is_read() -> None:
    """What a newer operator wrote into the status stands in nobody's way."""
    manifest = body(KVCachePool, "p", POOL) | {"status": {"observedGeneration": 3, "newThing": {"a": 1}}}
    assert parse_pool(manifest).status.observed_generation == 3
