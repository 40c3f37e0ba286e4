"""From the two resources to their children on a real API server: made, owned, changed, put back, left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from kube_process import wait_for
from operator_process import (
    DAEMON_SETS,
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    STATEFUL_SETS,
    Operators,
    Place,
    condition,
    deployment,
    pool,
)

Manifest = dict[str, Any]
AUTOSCALERS = "autoscaling/v2/horizontalpodautoscalers"
CPU: Manifest = {"minReplicas": 1, "maxReplicas": 8, "metrics": [{"type": "Cpu", "target": "80"}]}
OF_POOL = {
    (DAEMON_SETS, "pool-node"),
    (STATEFUL_SETS, "pool-index"),
    ("services", "pool-index"),
    ("services", "pool-nodes"),
    ("secrets", "pool-node-keys"),
    ("secrets", "pool-index-auth"),
    ("networking.k8s.io/v1/networkpolicies", "pool-nodes"),
}
OF_DEPLOYMENT = {
    (DEPLOYMENTS, "chat-engine"),
    (DEPLOYMENTS, "chat-router"),
    ("services", "chat"),
    ("serviceaccounts", "chat-router"),
    ("rbac.authorization.k8s.io/v1/roles", "chat-router"),
    ("rbac.authorization.k8s.io/v1/rolebindings", "chat-router"),
    ("networking.k8s.io/v1/networkpolicies", "chat-engines"),
    ("policy/v1/poddisruptionbudgets", "chat-engine"),
}


def container(workload: Manifest, name: str) -> Manifest:
    spec = workload["spec"]["template"]["spec"]
    found = [*spec["containers"], *spec.get("initContainers", [])]
    return next(one for one in found if one["name"] == name)


def test_two_resources_become_everything_that_serves(attended: Place) -> None:
    """Every child of a pool and of a deployment is there, says whose it is, and goes with its owner."""
    attended.apply(pool(), deployment())
    owner = {
        name: attended.have(kind, name)["metadata"]["uid"]
        for kind, name in ((POOLS, "pool"), (DEPLOYMENTS_OWN, "chat"))
    }
    for children, of in ((OF_POOL, "pool"), (OF_DEPLOYMENT, "chat")):
        for kind, name in sorted(children):
            child = attended.have(kind, name)
            references = child["metadata"]["ownerReferences"]
            assert [(one["name"], one["uid"], one["controller"]) for one in references] == [(of, owner[of], True)]
            assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "kvcommons-operator"
    seen = attended.until(DEPLOYMENTS_OWN, "chat", lambda it: condition(it, "Ready"), "a condition")
    assert condition(seen, "Ready")["status"] == "False"
    assert seen["status"]["observedGeneration"] == seen["metadata"]["generation"]


def test_nothing_is_asked_once_everything_is_so(operators: Operators, place: Place) -> None:
    """With nothing to do the operator renews its Lease and says nothing else to the API server."""
    operator = operators.start().ready()
    place.apply(pool(), deployment())
    place.have(DEPLOYMENTS, "chat-router")

    def asked() -> float:
        samples = operator.metrics()
        every = sum(
            value for name, value in samples.items() if name.startswith("kvcommons_operator_api_requests_total{")
        )
        lease = sum(value for name, value in samples.items() if 'kind="Lease"' in name and "_requests_total" in name)
        return every - lease

    quiet = [asked()]

    def unchanged_for_a_while() -> bool:
        now = asked()
        if now != quiet[-1]:
            quiet[:] = [now]
        quiet.append(now)
        return len(quiet) > 30

    wait_for(unchanged_for_a_while, "thirty looks without a request", 60, every=0.2)
    place.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"engine": {"args": ["--max-model-len", "512"]}}})
    wait_for(lambda: asked() > quiet[-1], "a request after a change", 20)


POOL_CHANGES: list[tuple[str, Manifest, str, str, Callable[[Manifest], object]]] = [
    ("memory", {"tiers": {"memory": {"capacity": "2Gi"}}}, DAEMON_SETS, "pool-node", lambda it: "2147483648" in str(it)),
    ("selector", {"nodeSelector": {"kv": "yes"}}, DAEMON_SETS, "pool-node",
     lambda it: it["spec"]["template"]["spec"]["nodeSelector"].get("kv") == "yes"),
    ("image", {"images": {"node": "own/node:2"}}, DAEMON_SETS, "pool-node", lambda it: "own/node:2" in str(it)),
    ("eviction", {"eviction": {"policy": "s3fifo"}}, DAEMON_SETS, "pool-node", lambda it: "'s3fifo'" in str(it)),
    ("disk", {"tiers": {"secondary": [{"type": "disk", "capacity": "8Gi", "path": "/mnt/d"}]}}, DAEMON_SETS, "pool-node",
     lambda it: "/mnt/d" in str(it) and "8589934592" in str(it)),
    ("log", {"logLevel": "debug"}, DAEMON_SETS, "pool-node", lambda it: "debug" in str(it)),
    ("tolerations", {"tolerations": [{"operator": "Exists"}]}, DAEMON_SETS, "pool-node",
     lambda it: {"operator": "Exists"} in it["spec"]["template"]["spec"].get("tolerations", [])),
]  # fmt: skip
DEPLOYMENT_CHANGES: list[tuple[str, Manifest, str, str, Callable[[Manifest], object]]] = [
    ("image", {"engine": {"image": "vllm:0.33.0"}}, DEPLOYMENTS, "chat-engine", lambda it: "vllm:0.33.0" in str(it)),
    ("args", {"engine": {"args": ["--max-model-len", "4096"]}}, DEPLOYMENTS, "chat-engine",
     lambda it: "4096" in container(it, "engine")["command"] + container(it, "engine").get("args", [])),
    ("replicas", {"replicas": 3}, DEPLOYMENTS, "chat-engine", lambda it: it["spec"]["replicas"] == 3),
    ("revision", {"model": {"revision": "a" * 40}}, DEPLOYMENTS, "chat-engine", lambda it: "a" * 40 in str(it["spec"])),
    ("drain", {"drainSeconds": 33}, DEPLOYMENTS, "chat-engine",
     lambda it: it["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= 33),
    ("service", {"service": {"type": "NodePort"}}, "services", "chat", lambda it: it["spec"]["type"] == "NodePort"),
]  # fmt: skip


def test_a_change_of_each_field_reaches_the_children(attended: Place) -> None:
    """Whatever part of a spec is changed, the child that it concerns follows."""
    attended.apply(pool(), deployment())
    for kind, name, changes in ((POOLS, "pool", POOL_CHANGES), (DEPLOYMENTS_OWN, "chat", DEPLOYMENT_CHANGES)):
        for what, change, child_kind, child, holds in changes:
            attended.have(child_kind, child)
            attended.merge(kind, name, {"spec": change})
            attended.until(child_kind, child, holds, f"follows {what}")


def test_an_immutable_field_is_refused_with_the_way_out(operators: Operators, place: Place) -> None:
    """The API server itself says what to do instead."""
    place.apply(pool())
    with pytest.raises(Exception, match="create another pool"):
        place.merge(POOLS, "pool", {"spec": {"placement": "sidecar"}})


def test_drift_is_put_back_and_what_is_not_ours_is_left(attended: Place) -> None:
    """Deleted children come again, changed fields return; labels and annotations of others stay."""
    attended.apply(pool(), deployment())
    before = attended.have(DEPLOYMENTS, "chat-engine")
    attended.merge(DEPLOYMENTS, "chat-engine", {"metadata": {"annotations": {"others.example/note": "mine"}}})
    attended.merge(DEPLOYMENTS, "chat-engine", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})
    grace = before["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    back = attended.until(
        DEPLOYMENTS,
        "chat-engine",
        lambda it: it["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == grace,
        "its grace period is back",
    )
    assert back["metadata"]["annotations"]["others.example/note"] == "mine"
    uid = attended.have("services", "chat")["metadata"]["uid"]
    attended.delete("services", "chat")
    attended.until("services", "chat", lambda it: it["metadata"]["uid"] != uid, "is there again")
    attended.merge("services", "pool-nodes", {"metadata": {"labels": {"kvcommons.io/pool": "another"}}})
    attended.until(
        "services",
        "pool-nodes",
        lambda it: it["metadata"]["labels"]["kvcommons.io/pool"] == "pool",
        "its label is back",
    )


def test_a_child_that_is_wanted_no_more_goes(attended: Place) -> None:
    """Without autoscaling the autoscaler goes, and the operator writes the replicas again."""
    attended.apply(pool(), deployment(replicas=2, autoscaling=CPU))
    attended.have(AUTOSCALERS, "chat-engine")
    attended.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"autoscaling": None}})
    attended.gone(AUTOSCALERS, "chat-engine")
    attended.until(DEPLOYMENTS, "chat-engine", lambda it: it["spec"]["replicas"] == 2, "has what the resource says")


def test_replicas_have_one_writer(attended: Place) -> None:
    """Through the scale subresource the resource says how many; what somebody writes on the child is put back."""
    attended.apply(pool(), deployment())
    attended.have(DEPLOYMENTS, "chat-engine")
    attended.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"replicas": 4}}, "scale")
    attended.until(DEPLOYMENTS, "chat-engine", lambda it: it["spec"]["replicas"] == 4, "follows the scale")
    attended.merge(DEPLOYMENTS, "chat-engine", {"spec": {"replicas": 9}}, "scale")
    attended.until(DEPLOYMENTS, "chat-engine", lambda it: it["spec"]["replicas"] == 4, "is put back")


def test_with_autoscaling_the_operator_leaves_replicas_to_the_autoscaler(attended: Place) -> None:
    """What the autoscaler wrote stays through a repair of drift and through a `kubectl apply` of the resource."""
    scaled = deployment(autoscaling=CPU)
    attended.apply(pool(), scaled)
    attended.have(DEPLOYMENTS, "chat-engine")
    attended.have(AUTOSCALERS, "chat-engine")
    attended.merge(DEPLOYMENTS, "chat-engine", {"spec": {"replicas": 5}}, "scale")
    attended.merge(DEPLOYMENTS, "chat-engine", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})
    back = attended.until(
        DEPLOYMENTS,
        "chat-engine",
        lambda it: it["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] != 1,
        "is repaired",
    )
    assert back["spec"]["replicas"] == 5
    scaled["spec"]["engine"] = {"image": "vllm:0.34.0"}
    attended.apply(scaled)
    changed = attended.until(DEPLOYMENTS, "chat-engine", lambda it: "vllm:0.34.0" in str(it), "follows the apply")
    assert changed["spec"]["replicas"] == 5


def test_what_is_not_built_yet_is_said_and_makes_nothing(attended: Place) -> None:
    """A resource that asks for more than this version does is not accepted, with a reason, and has no children."""
    attended.apply(pool(), deployment(engine={"type": "sglang"}))
    seen = attended.reason(DEPLOYMENTS_OWN, "chat", "Accepted", "NotBuiltYet")
    assert "spec.engine.type" in condition(seen, "Accepted")["message"]
    assert condition(seen, "Ready")["status"] == "False"
    assert attended.list(DEPLOYMENTS) == []
