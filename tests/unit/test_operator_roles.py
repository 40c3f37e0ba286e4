"""Prefill and decode as groups of engines of their own: what is made for each, how many, and what is said about them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
from kvcommons_operator import names
from kvcommons_operator.build import scaling
from kvcommons_operator.kube.kinds import ROLE_OWN
from kvcommons_operator.observed import Manifest, Pod, Ref
from kvcommons_operator.outcome import Plan
from kvcommons_operator.plan import plan_deployment
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_router.pods import view_of
from kvcommons_router.settings_instances import KubernetesSettings

ROLES = ("prefill", "decode")


def plan(ifd: Manifest, **more: Any) -> Plan:
    return plan_deployment(ifd, examples.world(**more))


def engine_of(role: str, number: int = 0, **more: Any) -> Pod:
    labels = {**examples.engine_pod(0).labels, names.ROLE_LABEL: role}
    return examples.engine_pod(number, name=f"chat-{role}-{number}", uid=f"{role}-{number}", labels=labels, **more)


def serving(*engines: Pod, **roles: Any) -> Plan:
    """The plan of a deployment with roles that has come up with these engines."""
    ifd = cases.roles_example(**roles)
    done = {"replicas": 1, "updatedReplicas": 3, "availableReplicas": 3, "observedGeneration": 1}
    live = examples.live(plan(ifd).apply, Deployment=done)
    return plan(ifd, children=live, pods=(*engines, examples.router_pod(0)), routable=1)


def told(found: Plan, kind: str) -> tuple[str, str]:
    one = examples.condition(found.status, kind)
    return one["status"], one["reason"]


def role_of(manifests: Any, role: str) -> Manifest:
    return examples.named(manifests, names.ROLE_KIND, f"chat-{role}")


def test_each_role_has_its_own_children_and_the_rest_is_shared() -> None:
    """A workload, a disruption budget and an object with a scale for each; one router, one policy that covers both, no engine beside them."""
    made = plan(cases.roles_example()).apply
    by_kind: dict[str, set[str]] = {}
    for one in made:
        by_kind.setdefault(one["kind"], set()).add(one["metadata"]["name"])
    own = {f"chat-{role}" for role in ROLES}
    assert by_kind[names.ROLE_KIND] == own
    assert by_kind["Deployment"] == by_kind["PodDisruptionBudget"] == own | {"chat-router"}
    assert by_kind["NetworkPolicy"] == {"chat-engines"}
    policy = examples.named(made, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    for role in ROLES:
        labels = examples.named(made, "Deployment", f"chat-{role}")["spec"]["template"]["metadata"]["labels"]
        assert policy.items() <= labels.items()


def test_the_router_learns_each_replicas_role_from_its_pod() -> None:
    """The label that the operator writes is the one that the router's discovery reads; engines without roles do whole requests."""
    settings = KubernetesSettings(namespace="llm", selector="a=b", port=8000, model="smol")
    split, whole = plan(cases.roles_example()).apply, plan(examples.deployment()).apply
    for role, manifests, name in (
        ("prefill", split, "chat-prefill"),
        ("decode", split, "chat-decode"),
        ("aggregated", whole, "chat-engine"),
    ):
        metadata = examples.named(manifests, "Deployment", name)["spec"]["template"]["metadata"]
        pod = {"metadata": {**metadata, "name": "x"}, "status": {"podIP": "10.0.0.1"}}
        (wanted,) = view_of(pod, settings).wanted
        assert wanted.settings.role == role


def test_each_role_is_scaled_by_itself() -> None:
    """An autoscaler of decode scales the decode engines alone, and the operator leaves their number out once it has spoken."""
    ifd = cases.roles_example(decode={"autoscaling": cases.CPU})
    made = plan(ifd).apply
    hpa = examples.named(made, "HorizontalPodAutoscaler", "chat-decode")
    assert hpa["spec"]["scaleTargetRef"]["name"] == "chat-decode"
    live = examples.live(made)
    written = [{"manager": "kube-controller-manager", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    live[Ref("apps/v1", "Deployment", "llm", "chat-decode")]["metadata"]["managedFields"] = written
    again = plan(ifd, children=live).apply
    assert "replicas" not in examples.named(again, "Deployment", "chat-decode")["spec"]
    assert examples.named(again, "Deployment", "chat-prefill")["spec"]["replicas"] == 1


def test_a_roles_object_keeps_what_it_was_scaled_to_until_the_deployment_says_more() -> None:
    """The newest wish wins: a scaled role stays scaled, and a changed number in the deployment is written."""
    deployment = cases.roles_deployment()
    decode = next(group for group in deployment.groups if group.role == "decode")
    first = scaling.role_object(deployment, decode, None)
    assert first["spec"]["replicas"] == 3
    (live,) = examples.live([first]).values()
    live["spec"]["replicas"] = 8
    live["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    assert "replicas" not in scaling.role_object(deployment, decode, live)["spec"]
    live["metadata"]["annotations"][names.REPLICAS_FROM] = "2"
    assert scaling.role_object(deployment, decode, live)["spec"]["replicas"] == 3
    assert replace(deployment, role_replicas={"decode": 8}).groups[1].replicas == 8


def test_a_scaled_roles_number_reaches_its_engines_alone() -> None:
    """`kubectl scale ifr chat-decode` changes the decode engines; a newer number in the deployment wins over it."""
    live = examples.live(plan(cases.roles_example()).apply)
    role = live[Ref(names.API_VERSION, names.ROLE_KIND, "llm", "chat-decode")]
    role["spec"]["replicas"] = 7
    role["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": {"f:spec": {"f:replicas": {}}}}]
    made = plan(cases.roles_example(), children=live).apply
    assert examples.named(made, "Deployment", "chat-decode")["spec"]["replicas"] == 7
    assert examples.named(made, "Deployment", "chat-prefill")["spec"]["replicas"] == 1
    assert "replicas" not in role_of(made, "decode")["spec"]
    newer = plan(cases.roles_example(decode={"replicas": 2}), children=live).apply
    assert examples.named(newer, "Deployment", "chat-decode")["spec"]["replicas"] == 2
    assert role_of(newer, "decode")["spec"]["replicas"] == 2


def test_who_scaled_a_role_is_remembered_with_it() -> None:
    """Of the writers of a role's object only those of its number are kept: without them the operator would write over a scale."""
    resources = Resources()
    fields: Manifest = {"f:spec": {"f:replicas": {}, "f:role": {}}}
    metadata = {"name": "chat-decode", "namespace": "llm", "uid": "u", "resourceVersion": "3"}
    writers = [{"manager": "kubectl", "fieldsV1": fields}, {"manager": "x", "fieldsV1": {"f:status": {}}}]
    resources.put(ROLE_OWN.name, {"metadata": {**metadata, "managedFields": writers}, "spec": {"replicas": 4}})
    kept = resources.get(Id(ROLE_OWN.name, "llm", "chat-decode"))
    assert kept is not None
    assert [one["manager"] for one in kept["metadata"]["managedFields"]] == ["kubectl"]
    assert scaling.others_own_replicas(kept)


def test_an_object_that_only_looks_like_a_role_is_left_alone() -> None:
    """Somebody's InferenceRole with our labels under another name says nothing about how many engines there are, and is not deleted."""
    live = examples.live(plan(cases.roles_example()).apply)
    ref = Ref(names.API_VERSION, names.ROLE_KIND, "llm", "chat-decode")
    live[ref._replace(name="mine")] = {**live[ref], "spec": {**live[ref]["spec"], "replicas": 99}}
    found = plan(cases.roles_example(), children=live)
    assert examples.named(found.apply, "Deployment", "chat-decode")["spec"]["replicas"] == 3
    assert found.delete == ()


# What is said ---------------------------------------------------------------------------------------------------------


def test_with_an_engine_of_each_role_all_is_well() -> None:
    """The deployment is ready and disaggregated, and its status counts each role."""
    found = serving(engine_of("prefill"), engine_of("decode"), engine_of("decode", 1, ready=False))
    assert told(found, "Ready") == ("True", "Ready")
    assert told(found, "Disaggregated") == ("True", "Disaggregated")
    assert found.status["roles"] == [
        {"name": "prefill", "replicas": 1, "readyReplicas": 1},
        {"name": "decode", "replicas": 2, "readyReplicas": 1},
    ]
    assert found.status["replicas"] == 3


@pytest.mark.parametrize(
    ("prefill", "reason"), [((), "NoPrefillReady"), ((engine_of("prefill", ready=False),), "NoPrefillReady")]
)
def test_decode_alone_serves_and_says_what_is_missing(prefill: tuple[Pod, ...], reason: str) -> None:
    """Engines that write answers can read prompts too: the deployment is ready, and a condition tells that prefill is missing."""
    found = serving(*prefill, engine_of("decode"))
    assert told(found, "Ready") == ("True", "Ready")
    assert told(found, "Disaggregated") == ("False", reason)
    assert "decode engines read prompts too" in examples.condition(found.status, "Disaggregated")["message"]


def test_prefill_that_was_scaled_to_zero_is_no_fault() -> None:
    """The reason is the number that was asked for."""
    found = serving(engine_of("decode"), prefill={"replicas": 0})
    assert told(found, "Ready") == ("True", "Ready")
    assert told(found, "Disaggregated") == ("False", "ScaledToZero")


def test_prefill_alone_does_not_serve() -> None:
    """Nobody writes answers: neither available nor ready, and both conditions say so."""
    found = serving(engine_of("prefill"))
    assert told(found, "Available") == told(found, "Ready") == ("False", "NoEngineReady")
    assert told(found, "Disaggregated") == ("False", "NoDecodeReady")


def test_the_object_of_a_role_says_how_its_own_engines_are() -> None:
    """Counts, conditions and the selector that an autoscaler needs are those of the role alone, about its own generation."""
    found = serving(engine_of("decode"), engine_of("decode", 1))
    decode, prefill = (role_of(found.apply, role)["status"] for role in ("decode", "prefill"))
    assert (decode["replicas"], decode["readyReplicas"], decode["observedGeneration"]) == (2, 2, 1)
    assert {one["type"]: one["status"] for one in decode["conditions"]} == {"Available": "True", "Ready": "True"}
    assert "kvcommons.io/role=decode" in decode["selector"].split(",")
    assert {one["type"]: one["reason"] for one in prefill["conditions"]} == dict.fromkeys(
        ("Available", "Ready"), "NoEngineReady"
    )
