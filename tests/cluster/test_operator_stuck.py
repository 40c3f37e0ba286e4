"""Pods that can't start, on a real API server: what is missing, which field names it, and what to do, in conditions."""

from __future__ import annotations

from typing import Any

from kube_process import wait_for
from operator_process import (
    DAEMON_SETS,
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    Operators,
    Place,
    condition,
    deployment,
    pool,
)

HUB = {
    "name": "q",
    "revision": "0123456789abcdef0123456789abcdef01234567",
    "source": {"hub": {"repo": "Qwen/Qwen3", "tokenSecretRef": {"name": "hub", "key": "token"}}},
}


def stuck_pod(place: Place, kind: str, workload: str, name: str) -> dict[str, Any]:
    """A pod of a workload that has a node and comes no further."""
    labels = place.have(kind, workload)["spec"]["template"]["metadata"]["labels"]
    spec = {"nodeName": "n", "containers": [{"name": "main", "image": "none"}], "terminationGracePeriodSeconds": 0}
    return place.create("pods", {"metadata": {"name": name, "labels": labels}, "spec": spec})


def warn(place: Place, about: dict[str, Any], kind: str, reason: str, note: str) -> None:
    """As the kubelet and controllers do: by the older of the two APIs."""
    metadata = about["metadata"]
    named = {"kind": kind, "namespace": place.namespace, "name": metadata["name"], "uid": metadata["uid"]}
    now = metadata["creationTimestamp"]
    told = {
        "reason": reason,
        "message": note,
        "type": "Warning",
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    place.create("events", {"metadata": {"generateName": "test-"}, "involvedObject": named, **told})


def told(place: Place, kind: str, name: str, which: str, reason: str) -> str:
    return str(condition(place.reason(kind, name, which, reason), which)["message"])


def test_pods_that_cannot_start_say_what_is_missing(attended: Place) -> None:
    """A volume's Secret and a claim on the deployment; refused pods of a DaemonSet on the pool; all of it by name, with its field."""
    attended.apply(pool(), deployment(model=HUB))
    pod = stuck_pod(attended, DEPLOYMENTS, "chat-engine", "chat-0")
    warn(attended, pod, "Pod", "FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "hub" not found')
    message = told(attended, DEPLOYMENTS_OWN, "chat", "ResolvedRefs", "SecretNotFound")
    assert f"Secret {attended.namespace}/hub does not exist" in message
    assert "spec.model.source.hub.tokenSecretRef" in message

    image = {"name": "main", "image": "none", "imageID": "", "ready": False, "restartCount": 0}
    state = {"waiting": {"reason": "ErrImagePull", "message": "pull access denied"}}
    attended.merge("pods", "chat-0", {"status": {"containerStatuses": [{**image, "state": state}]}}, "status")
    found = attended.until(DEPLOYMENTS_OWN, "chat", lambda it: it["status"].get("unhealthyReplicas"), "names the pod")
    assert found["status"]["unhealthyReplicas"][0]["reason"] in ("SecretNotFound", "ImagePullBackOff")
    attended.until(
        DEPLOYMENTS_OWN, "chat", lambda it: "imagePullSecrets" in condition(it, "Available")["message"], "image"
    )

    daemon_set = attended.have(DAEMON_SETS, "pool-node")
    status = {
        "observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
    }  # fmt: skip
    attended.merge(DAEMON_SETS, "pool-node", {"status": status}, "status")
    refusal = (
        'Error creating: pods "pool-node-x" is forbidden: violates PodSecurity "restricted:latest": hostPath volumes'
    )
    warn(attended, daemon_set, "DaemonSet", "FailedCreate", refusal)
    message = told(attended, POOLS, "pool", "Progressing", "RolloutStuck")
    assert message.startswith('DaemonSet pool-node may not make its pods: violates PodSecurity "restricted:latest"')
    assert "pool-node-x" not in message


def test_without_its_pool_a_deployment_says_that_and_nothing_else(attended: Place) -> None:
    """Nothing is being made while the pool is missing, and no condition says otherwise; it begins when the pool is there."""
    attended.apply(deployment())
    seen = attended.reason(DEPLOYMENTS_OWN, "chat", "ResolvedRefs", "PoolNotFound")
    progressing = condition(seen, "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "PoolNotFound")
    attended.apply(pool())
    attended.reason(DEPLOYMENTS_OWN, "chat", "ResolvedRefs", "ResolvedRefs")
    attended.until(
        POOLS, "pool", lambda it: condition(it, "Available").get("reason") == "Creating", "is not judged yet"
    )


def test_what_only_the_cluster_can_refuse_is_told_by_our_field(operators: Operators, place: Place) -> None:
    """A node port outside of this cluster's range passes the schema, since ranges differ; the API server's refusal of the Service is told
    by the field that asked for it, is not tried again and again, and is over when the field is mended."""
    operator = operators.start().ready()
    place.apply(deployment(pool_name=None, service={"type": "NodePort", "nodePort": 1}))
    message = told(place, DEPLOYMENTS_OWN, "chat", "Accepted", "ChildRefused")
    assert message.startswith("spec.service.nodePort: Service ")
    assert "valid ports" in message
    place.have(DEPLOYMENTS, "chat-router")
    looks: list[float] = []

    def quiet_for_two_seconds() -> bool:
        looks.append(
            sum(v for n, v in operator.metrics().items() if "api_requests_total" in n and 'kind="Service"' in n)
        )
        return len(looks) > 20 and len(set(looks[-20:])) == 1

    wait_for(quiet_for_two_seconds, "the Service is not tried again at once", 25.0, every=0.1)
    place.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"service": {"type": "ClusterIP", "nodePort": None}}})
    place.reason(DEPLOYMENTS_OWN, "chat", "Accepted", "Accepted")
    place.have("services", "chat")
