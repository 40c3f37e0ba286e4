"""What is not this operator's stays as it is: objects of others that have a child's name, and resources of another operator."""

from __future__ import annotations

from typing import Any

from kube_process import wait_for
from operator_process import (
    DAEMON_SETS,
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    SECONDS_MAX,
    Operators,
    Place,
    condition,
    deployment,
    pool,
)

MARK = "kvcommons.io/operator"


def told(place: Place, reason: str) -> list[str]:
    """The notes of the Events with that reason."""
    return [str(one["note"]) for one in place.list("events.k8s.io/v1/events") if one["reason"] == reason]


def test_an_object_of_somebody_else_with_a_childs_name_is_not_touched(attended: Place) -> None:
    """A user's Service and Secret keep every field; the condition names them and the way out, the other children are made, and once
    the Service is gone the work goes on by itself."""
    service = {"metadata": {"name": "chat"}, "spec": {"selector": {"mine": "yes"}, "ports": [{"port": 8000}]}}
    secret = {"metadata": {"name": "chat-router-salt"}, "stringData": {"salt.secret": "mine"}}
    before = attended.create("services", service), attended.create("secrets", secret)
    attended.apply(deployment(pool_name=None))
    seen = attended.reason(DEPLOYMENTS_OWN, "chat", "Ready", "NameTaken")
    message = condition(seen, "Progressing")["message"]
    assert f"Service {attended.namespace}/chat has a name that is taken" in message
    assert "rename or delete it" in message
    assert condition(seen, "Ready")["status"] == condition(seen, "Progressing")["status"] == "False"
    attended.have(DEPLOYMENTS, "chat-router")
    notes = wait_for(lambda: found if len(found := told(attended, "NameTaken")) > 1 else None, "Events", SECONDS_MAX)
    assert any(f"Secret {attended.namespace}/chat-router-salt" in note for note in notes)
    assert (attended.get("services", "chat"), attended.get("secrets", "chat-router-salt")) == before
    attended.delete("services", "chat")
    attended.delete("secrets", "chat-router-salt")
    attended.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"drainSeconds": 60}})
    made = attended.have("services", "chat")
    assert made["spec"]["selector"]["kvcommons.io/deployment"] == "chat"
    wait_for(lambda: condition(attended.get(DEPLOYMENTS_OWN, "chat"), "Ready")["reason"] != "NameTaken", "goes on", 60)


def test_two_resources_of_ours_do_not_fight_for_a_name(attended: Place) -> None:
    """A deployment whose child would have the name of another deployment's is told so, and the other one keeps what it has."""
    attended.apply(deployment(pool_name=None))
    before = attended.have("services", "chat-engines")
    attended.apply(deployment("chat-engines", pool_name=None))
    seen = attended.reason(DEPLOYMENTS_OWN, "chat-engines", "Ready", "NameTaken")
    assert f"a part of InferenceDeployment {attended.namespace}/chat" in condition(seen, "Ready")["message"]
    assert attended.get("services", "chat-engines") == before


def test_two_operators_do_not_fight_for_a_resource(operators: Operators, place: Place) -> None:
    """Whoever was first looks after it; another install, with another root secret, changes nothing and says so; and takes over when
    the mark is taken away."""
    home = f"{place.namespace}-second"
    place.apiserver.create_namespace(home)
    first = operators.start("first").ready()
    place.apply(pool())
    before = place.have("secrets", "pool-node-keys")
    first.until(lambda: place.get(DAEMON_SETS, "pool-node"), "the first one has made it")
    second = operators.start("second", namespace=home, node_image="other/node:1").ready()
    note = wait_for(lambda: told(place, "OtherOperator"), "the second one says so", SECONDS_MAX)[0]
    assert f"operator {place.namespace}/kvcommons-operator looks after this KVCachePool" in note
    assert place.get("secrets", "pool-node-keys") == before
    assert image(place) != "other/node:1"
    first.stop()
    place.merge(POOLS, "pool", {"metadata": {"annotations": {MARK: None}}})
    second.until(lambda: image(place) == "other/node:1", "the second one has taken over")
    assert place.have("secrets", "pool-node-keys")["data"] != before["data"]


def image(place: Place) -> str:
    daemon_set: dict[str, Any] = place.have(DAEMON_SETS, "pool-node")
    return str(daemon_set["spec"]["template"]["spec"]["containers"][0]["image"])
