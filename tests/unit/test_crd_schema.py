"""The CustomResourceDefinitions: structural, bounded, described, in step with the models, and their files with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd_cases import CASES, CHANGES
from kvcommons_operator.api.unbuilt import DEPLOYMENT_GAPS, POOL_GAPS
from kvcommons_operator.crd import __main__ as command
from kvcommons_operator.crd.definitions import KUBERNETES_MINOR_MIN, definitions
from kvcommons_operator.crd.generate import files, outdated, to_yaml, write
from kvcommons_operator.crd.schema import UnstructuralError, structural
from pydantic import BaseModel

ROOT = Path(__file__).resolve().parents[2]
# What `kubectl apply` keeps of an object in one annotation must stay under 256 KiB.
APPLY_BYTES_MAX = 200_000
SCHEMAS = {name: crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"] for name, crd in definitions().items()}
STRUCTURAL = {"integer", "string", "boolean", "object", "array"}


def walk(schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema beneath one, with its path."""
    yield path, schema
    for name, part in schema.get("properties", {}).items():
        yield from walk(part, f"{path}.{name}")
    for child, suffix in (("items", "[]"), ("additionalProperties", "[*]")):
        if child in schema:
            yield from walk(schema[child], path + suffix)


def parts() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema under spec and status of all kinds."""
    for name, schema in SCHEMAS.items():
        for part in ("spec", "status"):
            yield from walk(schema["properties"][part], f"{name}:{part}")


def test_every_schema_is_structural() -> None:
    """Each part has exactly one type, objects have fields or a type of values but not both, and nothing refers elsewhere."""
    for path, schema in parts():
        if schema.get("x-kubernetes-int-or-string"):
            assert "type" not in schema, path
            continue
        assert schema.get("type") in STRUCTURAL, path
        assert not {"$ref", "anyOf", "oneOf", "allOf", "not", "nullable"} & set(schema), path
        if schema["type"] == "object":
            assert ("properties" in schema) != ("additionalProperties" in schema), path


def test_everything_is_bounded() -> None:
    """Every string has a longest length or fixed values, every list and map a largest size, every number a least value: rules stay cheap."""
    for path, schema in parts():
        kind = schema.get("type")
        if kind == "string" or schema.get("x-kubernetes-int-or-string"):
            assert "maxLength" in schema or "enum" in schema, path
        elif kind == "array":
            assert "maxItems" in schema, path
            assert "x-kubernetes-list-type" in schema, path
        elif kind == "object" and "additionalProperties" in schema:
            assert "maxProperties" in schema, path
        elif kind == "integer":
            assert "minimum" in schema or "enum" in schema, path


def test_every_field_is_described() -> None:
    """`kubectl explain` says something of each field, in whole sentences."""
    for path, schema in parts():
        for name, part in schema.get("properties", {}).items():
            text = part.get("description", "")
            assert text.endswith("."), f"{path}.{name}: {text!r}"
            assert len(text) > 8, f"{path}.{name}"


def test_every_rule_has_a_message_that_says_what_to_do_and_a_case_that_breaks_it() -> None:
    """No rule comes without a message, and none without a spec that shows it at work."""
    told = [case.message for case in CASES] + [change.message for change in CHANGES]
    told.append("the name must have at most 63 characters")
    for name, schema in SCHEMAS.items():
        for path, part in walk(schema, name):
            for rule in part.get("x-kubernetes-validations", []):
                assert rule["message"], path
                assert any(text in rule["message"] for text in told), f"{path}: {rule['message']}"


def test_names_columns_and_subresources() -> None:
    """Kinds are found by short name and category; columns point to fields that exist; the scalable ones have a scale."""
    for name, crd in definitions().items():
        names = crd["spec"]["names"]
        assert names["categories"] == ["kvcommons"]
        assert len(names["shortNames"]) == 1
        version = crd["spec"]["versions"][0]
        known = {path.split(":", 1)[1] for path, _ in parts() if path.startswith(f"{name}:")}
        for column in version["additionalPrinterColumns"]:
            path = column["jsonPath"].lstrip(".")
            if not path.startswith(("metadata.", "status.conditions[")):
                assert path in known, column
        scalable = names["kind"] != "KVCachePool"
        assert ("scale" in version["subresources"]) == scalable


def test_kubectl_apply_can_keep_what_it_applied() -> None:
    """A definition fits in the annotation in which `kubectl apply` keeps it."""
    for name, crd in definitions().items():
        assert len(json.dumps(crd)) < APPLY_BYTES_MAX, name


def test_conditions_are_a_map_by_type() -> None:
    """Server-side apply merges conditions one by one."""
    for schema in SCHEMAS.values():
        conditions = schema["properties"]["status"]["properties"]["conditions"]
        assert conditions["x-kubernetes-list-type"] == "map"
        assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_what_is_not_built_names_fields_that_exist() -> None:
    """The table of gaps speaks of real fields."""
    known = {path for path, _ in parts()}
    for plural, gaps in (("kvcachepools", POOL_GAPS), ("inferencedeployments", DEPLOYMENT_GAPS)):
        for gap in gaps:
            assert f"{plural}.kvcommons.io:{gap.field}" in known, gap.field


def test_the_files_are_what_the_models_say() -> None:
    """crds/, the chart's copy and docs/crds.md are generated; run `python -m kvcommons_operator.crd` when this fails."""
    assert outdated(ROOT) == []
    assert command.main(["--check"]) == 0


def test_drift_is_found_and_mended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed, a missing and a foreign file are each named; writing mends the first two and touches nothing else."""
    written = write(tmp_path)
    assert sorted(written) == sorted(files())
    assert write(tmp_path) == []
    (tmp_path / "crds/kvcachepools.yaml").write_text("changed")
    (tmp_path / "docs/crds.md").unlink()
    (tmp_path / "crds/old.yaml").write_text("foreign")
    assert outdated(tmp_path) == ["crds/kvcachepools.yaml", "crds/old.yaml", "docs/crds.md"]
    assert write(tmp_path) == ["crds/kvcachepools.yaml", "docs/crds.md"]
    assert command.main(["--chekc"]) == 2
    assert "--check" in capsys.readouterr().err


def test_the_yaml_reads_back_as_what_was_written() -> None:
    """Patterns and rules survive YAML."""
    for crd in definitions().values():
        assert yaml.safe_load(to_yaml(crd)) == crd


def test_a_model_that_no_structural_schema_can_say_is_refused() -> None:
    """A union, or a map whose keys have no pattern, is named with its path."""

    class Union(BaseModel):
        field: int | str

    class Map(BaseModel):
        inner: dict[str, str]

    with pytest.raises(UnstructuralError, match=r"\.field: a union of 2 types"):
        structural(Union)
    with pytest.raises(UnstructuralError, match=r"\.inner: the keys of a map need a pattern"):
        structural(Map)


# The minor release of Kubernetes 1 in which a custom resource's rule may first call it; macros and CEL's own are from the beginning.
CALLS_SINCE = {
    **dict.fromkeys(
        ("has", "all", "exists", "filter", "size", "matches", "startsWith", "contains", "string", "type", "int"), 25
    ),
    **dict.fromkeys(("quantity", "compareTo", "isGreaterThan", "add"), 29),
}


def test_rules_call_nothing_newer_than_the_oldest_kubernetes() -> None:
    """A rule that needs a newer release than is stated would keep the definitions from being accepted there."""
    called: set[str] = set()
    for name, schema in SCHEMAS.items():
        for _, part in walk(schema, name):
            for rule in part.get("x-kubernetes-validations", []):
                called |= set(re.findall(r"\b([A-Za-z]+)\(", re.sub(r"'[^']*'", "''", rule["rule"])))
    assert called == set(CALLS_SINCE)
    assert max(CALLS_SINCE.values()) == KUBERNETES_MINOR_MIN
