"""Roles on a real API server: each is made, scaled and told of by itself."""

from __future__ import annotations

from typing import Any

from operator_process import DEPLOYMENTS, DEPLOYMENTS_OWN, ROLES_OWN, Place, condition, deployment, pool

ROLES: dict[str, Any] = {"prefill": {}, "decode": {"replicas": 2}}


def replicas_of(place: Place, name: str, count: int) -> None:
    place.until(DEPLOYMENTS, name, lambda it: it["spec"]["replicas"] == count, f"has {count} replicas")


def test_roles_are_scaled_by_their_own_objects_and_by_the_deployment(attended: Place) -> None:
    """Each role has its workload and an object with a scale; the newest wish wins, whoever had it, and drift on the workload is put back.
    An object of a role that somebody deletes comes again with what the deployment says."""
    wish = deployment(roles=ROLES)
    attended.apply(pool(), wish)
    replicas_of(attended, "chat-prefill", 1)
    replicas_of(attended, "chat-decode", 2)
    attended.merge(ROLES_OWN, "chat-decode", {"spec": {"replicas": 5}}, "scale")
    replicas_of(attended, "chat-decode", 5)
    attended.merge(DEPLOYMENTS, "chat-decode", {"spec": {"replicas": 9}}, "scale")
    replicas_of(attended, "chat-decode", 5)
    attended.apply(wish)  # says nothing new
    wish["spec"]["roles"] = {**ROLES, "prefill": {"replicas": 3}}
    attended.apply(wish)
    replicas_of(attended, "chat-prefill", 3)
    replicas_of(attended, "chat-decode", 5)
    role = attended.until(ROLES_OWN, "chat-prefill", lambda it: it["spec"]["replicas"] == 3, "follows the deployment")
    assert role["metadata"]["ownerReferences"][0]["name"] == "chat"
    attended.delete(ROLES_OWN, "chat-decode")
    attended.have(ROLES_OWN, "chat-decode")
    replicas_of(attended, "chat-decode", 2)


def test_roles_are_told_of(attended: Place) -> None:
    """The deployment counts each role and says that nothing is disaggregated yet; a role's object has a selector for autoscalers."""
    attended.apply(pool(), deployment(roles=ROLES))
    seen = attended.until(DEPLOYMENTS_OWN, "chat", lambda it: condition(it, "Disaggregated"), "says whether")
    assert condition(seen, "Disaggregated")["reason"] == "NoDecodeReady"
    assert [one["name"] for one in seen["status"]["roles"]] == ["prefill", "decode"]
    role = attended.until(ROLES_OWN, "chat-prefill", lambda it: condition(it, "Ready"), "has a condition")
    assert condition(role, "Ready")["reason"] == "NoEngineReady"
    scale = attended.apiserver.request("GET", attended.path(ROLES_OWN, "chat-prefill", "scale"))
    assert "kvcommons.io/role=prefill" in scale["status"]["selector"]
