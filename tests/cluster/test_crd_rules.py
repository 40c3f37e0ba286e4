"""A real API server keeps the rules of the resources, and says what to do in their words."""

from __future__ import annotations

import itertools
import json

import pytest
from crd_case import BASES, POOL, Case, Change, merged, path_of
from crd_cases import CASES, CHANGES
from crd_server import establish, replace, send
from kube_apiserver import ApiServer
from kvcommons_operator.api import KVCachePool
from kvcommons_operator.crd.definitions import definitions

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(apiserver: ApiServer) -> ApiServer:
    """The API server with our definitions."""
    establish(apiserver)
    return apiserver


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_is_kept(server: ApiServer, case: Case) -> None:
    """What breaks a rule is refused with its message and its field; its neighbour that keeps the rule is taken."""
    bad = send(server, case.kind, "default", merged(BASES[case.kind], case.bad))
    assert bad.stored is None
    assert case.message in bad.faults.get(case.field, ""), bad.faults
    good = send(server, case.kind, "default", merged(BASES[case.kind], case.good))
    assert good.stored is not None, good.faults


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_change_that_cannot_be_is_refused(server: ApiServer, namespace: str, change: Change) -> None:
    """A change that a running resource can't take is refused with the remedy; another one is taken."""
    name = f"change-{next(_numbers)}"
    spec = merged(BASES[change.kind], change.old)
    assert send(server, change.kind, namespace, spec, name=name, dry=False).stored is not None
    bad = replace(server, change.kind, namespace, name, merged(spec, change.bad))
    assert bad.stored is None
    assert change.message in bad.faults.get(change.field, ""), bad.faults
    good = replace(server, change.kind, namespace, name, merged(spec, change.good))
    assert good.stored is not None, good.faults
    server.request("DELETE", path_of(change.kind, namespace, name))


def test_a_name_that_can_be_no_label_is_refused(server: ApiServer) -> None:
    """Children carry a resource's name in labels and in Services' names."""
    for name in ("a.b", "1a", "a" * 64):
        answer = send(server, KVCachePool, "default", POOL, name=name)
        assert "at most 63 characters" in str(answer.faults), name
    assert send(server, KVCachePool, "default", POOL, name="a" * 63).stored is not None


def test_rules_cost_less_than_a_quarter_of_what_the_api_server_allows(server: ApiServer) -> None:
    """Each rule four times over is still accepted: other releases, which estimate otherwise, have room."""
    for name, whole in definitions().items():
        crd = json.loads(json.dumps(whole))  # parts that are alike are one object there
        plural, _, group = name.partition(".")
        _repeat(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"], 4)
        crd["spec"]["group"] = f"fourfold.{group}"
        crd["metadata"]["name"] = f"{plural}.fourfold.{group}"
        crd["spec"]["names"].update(categories=[], shortNames=[])
        server.request("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All", crd)


def _repeat(schema: object, times: int) -> None:
    if isinstance(schema, dict):
        for rule in schema.get("x-kubernetes-validations", []):
            rule["rule"] = " && ".join([f"({rule['rule']})"] * times)
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _repeat(part, times)
