"""What a resource says where the API server refuses one of its children: the truth, and the same truth at every look."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_examples as examples
import pytest
from kvcommons_operator import names
from kvcommons_operator.kube.errors import RejectedError
from kvcommons_operator.observed import Ref
from kvcommons_operator.outcome import Event, Plan
from kvcommons_operator.reconcile.act import Refused
from kvcommons_operator.reconcile.controller import with_refusals, without_hopes
from kvcommons_operator.refusals import fields_of

REFUSED = [Refused(Ref("v1", "Service", "llm", "chat"), RejectedError(422, "Invalid", "no such port", "PATCH x"))]


def condition(kind: str, status: str, since: str, reason: str = "Ready") -> dict[str, Any]:
    return {
        "type": kind,
        "status": status,
        "observedGeneration": 1,
        "lastTransitionTime": since,
        "reason": reason,
        "message": "well",
    }


def test_what_is_refused_again_has_not_changed_again() -> None:
    """The condition keeps the time since when it does not hold: a status that only ages is not written every half minute."""
    resource = examples.deployment()
    resource["status"] = {"conditions": [condition("Ready", "False", examples.NOW, "ApplyRefused")]}
    hoped = {"conditions": [condition("Ready", "True", examples.LATER)]}
    told = with_refusals(hoped, REFUSED, resource)["conditions"][0]
    assert (told["status"], told["reason"]) == ("False", "ApplyRefused")
    assert told["lastTransitionTime"] == examples.NOW
    assert "Service llm/chat is refused: no such port" in told["message"]


def test_what_has_just_been_refused_has_changed_now() -> None:
    """A resource that was ready has not been without it since it became ready."""
    resource = examples.deployment()
    resource["status"] = {"conditions": [condition("Ready", "True", examples.NOW)]}
    told = with_refusals({"conditions": [condition("Ready", "True", examples.NOW)]}, REFUSED, resource)["conditions"][0]
    assert told["status"] == "False"
    assert told["lastTransitionTime"] != examples.NOW


@pytest.mark.parametrize(
    ("kind", "component", "child_field", "ours"),
    [
        ("Service", "router", "spec.ports[0].nodePort", "spec.service.nodePort"),
        ("Deployment", "engine", "spec.template.spec.containers[0].resources.limits", "spec.engine.resources"),
        ("Deployment", "engine", "spec.template.spec.tolerations[0].effect", "spec.podTemplate.tolerations"),
        ("Deployment", "router", "spec.template.spec.containers[0].image", "spec.routing.image"),
        ("PodDisruptionBudget", "engine", "spec.minAvailable", "spec.disruption.minAvailable"),
        ("HTTPRoute", "router", "spec.hostnames[0]", "spec.gateway.httpRoute.hostnames"),
        ("HorizontalPodAutoscaler", "engine", "spec.metrics[0]", "spec.autoscaling.metrics"),
        ("Deployment", "engine", "spec.selector", ""),
        ("ServiceAccount", "router", "metadata.name", ""),
    ],
)
def test_a_refused_child_is_told_by_the_field_that_asked_for_it(
    kind: str, component: str, child_field: str, ours: str
) -> None:
    """The API server names a field of the child; a person has only written the resource's."""
    details = {"causes": [{"field": child_field, "message": "no"}]}
    assert fields_of(names.DEPLOYMENT_KIND, kind, component, details) == ((ours,) if ours else ())


def test_a_pools_child_is_told_by_the_pools_field() -> None:
    """The same child field is another field of ours in a pool."""
    details = {"causes": [{"field": f"spec.template.spec.{name}"} for name in ("tolerations[0].key", "nodeSelector")]}
    found = fields_of(names.POOL_KIND, "DaemonSet", "cache-node", details)
    assert found == ("spec.tolerations", "spec.nodeSelector")
    assert fields_of(names.POOL_KIND, "DaemonSet", "cache-node", {}) == ()
    assert fields_of(names.POOL_KIND, "Certificate", "cache-node", {}) == ("spec.security.tls.certManager",)


def test_what_a_field_asked_for_and_is_not_possible_is_not_accepted() -> None:
    """Accepted says so too, with the field's path first; a refusal that no field explains leaves it as it was."""
    wrong = [replace(REFUSED[0], fields=("spec.service.nodePort",))]
    hoped = {"conditions": [condition(kind, "True", examples.NOW) for kind in ("Accepted", "Ready", "Available")]}
    told = {one["type"]: one for one in with_refusals(hoped, wrong, examples.deployment())["conditions"]}
    assert told["Accepted"]["reason"] == told["Ready"]["reason"] == "ChildRefused"
    assert told["Accepted"]["message"].startswith("spec.service.nodePort: Service llm/chat is refused: no such port")
    assert told["Available"]["status"] == "True"
    told = {one["type"]: one for one in with_refusals(hoped, REFUSED, examples.deployment())["conditions"]}
    assert (told["Accepted"]["status"], told["Ready"]["status"]) == ("True", "False")


def test_no_event_tells_what_was_only_hoped_for() -> None:
    """That the resource is ready is not told where its condition says that it is not."""
    events = tuple(Event(type="Normal", reason="x", message=f"{kind}: well") for kind in ("Ready", "Available"))
    assert [event.message for event in without_hopes(Plan(events=events)).events] == ["Available: well"]
