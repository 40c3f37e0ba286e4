"""The end of resources on a real API server: in order, refused where in use, possible without the operator."""

from __future__ import annotations

import subprocess
import sys

from kube_process import Process, wait_for
from operator_process import (
    DAEMON_SETS,
    DEPLOYMENTS,
    DEPLOYMENTS_OWN,
    POOLS,
    ROOT,
    SECONDS_MAX,
    Operators,
    Place,
    condition,
    deployment,
    pool,
)

IN_USE = "kvcommons.io/pool-in-use"


def finalizers(place: Place, name: str = "pool") -> list[str]:
    return list((place.get(POOLS, name) or {"metadata": {}})["metadata"].get("finalizers") or [])


def test_a_pool_in_use_refuses_to_go_and_says_why(attended: Place) -> None:
    """It stays with all its children until its last user has gone, and then goes by itself."""
    attended.apply(pool(), deployment())
    attended.have(DEPLOYMENTS, "chat-engine")
    wait_for(lambda: IN_USE in finalizers(attended), "the pool is held", SECONDS_MAX)
    attended.delete(POOLS, "pool")
    seen = attended.until(
        POOLS, "pool", lambda it: "chat" in condition(it, "Ready").get("message", ""), "names its user in a condition"
    )
    assert "deletionTimestamp" in seen["metadata"]
    assert attended.get(DAEMON_SETS, "pool-node") is not None
    attended.delete(DEPLOYMENTS_OWN, "chat")
    attended.gone(POOLS, "pool")


def test_a_pool_that_nobody_uses_holds_nothing(attended: Place) -> None:
    """It has no finalizer of ours, so that its deletion waits for nobody."""
    attended.apply(pool())
    attended.have(DAEMON_SETS, "pool-node")
    assert finalizers(attended) == []
    attended.delete(POOLS, "pool")
    assert attended.get(POOLS, "pool") is None


def test_a_deployment_that_leaves_its_pool_lets_it_go(attended: Place) -> None:
    """The finalizer goes when the last user is another pool's."""
    attended.apply(pool(), deployment())
    wait_for(lambda: IN_USE in finalizers(attended), "the pool is held", SECONDS_MAX)
    attended.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"poolRef": None}})
    wait_for(lambda: finalizers(attended) == [], "the pool is free", SECONDS_MAX)


def test_nothing_is_made_for_what_is_going(attended: Place) -> None:
    """With a deletion under way (here somebody else's finalizer holds it) a child that is deleted stays away."""
    resource = deployment(pool_name=None)
    resource["metadata"]["finalizers"] = ["others.example/hold"]
    attended.apply(resource)
    attended.have(DEPLOYMENTS, "chat-engine")
    attended.delete(DEPLOYMENTS_OWN, "chat")
    attended.delete(DEPLOYMENTS, "chat-engine")
    attended.apply(deployment("other", pool_name=None))
    attended.have(DEPLOYMENTS, "other-engine")
    assert attended.get(DEPLOYMENTS, "chat-engine") is None
    attended.merge(DEPLOYMENTS_OWN, "chat", {"metadata": {"finalizers": []}})
    attended.gone(DEPLOYMENTS_OWN, "chat")


def test_the_operator_can_be_removed_first(operators: Operators, place: Place) -> None:
    """`kvcommons operator --release` takes our finalizers away; then everything can be deleted without an operator."""
    operator = operators.start().ready()
    place.apply(pool(), deployment())
    wait_for(lambda: IN_USE in finalizers(place), "the pool is held", SECONDS_MAX)
    operator.stop()
    command = [sys.executable, "-P", "-m", "kvcommons_operator", "--release", "--namespace", place.namespace]
    command += ["--kubeconfig", str(place.apiserver.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert finalizers(place) == []
    place.delete(POOLS, "pool")
    place.delete(DEPLOYMENTS_OWN, "chat")
    assert place.get(POOLS, "pool") is None
    assert place.get(DEPLOYMENTS_OWN, "chat") is None


def test_finalizers_stay_while_an_operator_leads(operators: Operators, place: Place) -> None:
    """A leader would put them back: releasing waits for its Lease, and then says what to do instead."""
    operators.start().ready()
    place.apply(pool(), deployment())
    wait_for(lambda: IN_USE in finalizers(place), "the pool is held", SECONDS_MAX)
    command = [sys.executable, "-P", "-m", "kvcommons_operator", "--release", "--namespace", place.namespace]
    command += ["--own-namespace", place.namespace, "--lease-seconds", "3"]
    command += ["--kubeconfig", str(place.apiserver.kubeconfig)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT)
    assert done.returncode == 1
    assert "held by operator: scale the operator to 0 replicas first" in done.stderr
    assert IN_USE in finalizers(place)


def test_children_go_with_their_owner(operators: Operators, place: Place, controllers: Process) -> None:
    """The cluster's garbage collector removes every child: none needs the operator for it."""
    operator = operators.start().ready()
    place.apply(pool(), deployment())
    place.have(DEPLOYMENTS, "chat-router")
    place.have(DAEMON_SETS, "pool-node")
    place.delete(DEPLOYMENTS_OWN, "chat")
    place.gone(DEPLOYMENTS, "chat-router")
    place.gone("serviceaccounts", "chat-router")
    wait_for(lambda: finalizers(place) == [], "the pool is free", SECONDS_MAX)
    operator.stop()
    place.delete(POOLS, "pool")
    place.gone(DAEMON_SETS, "pool-node")
    place.gone("secrets", "pool-node-keys")
    assert controllers.alive
