"""A machine is lost; a deployment is scaled to nothing. Minutes long, so that `make soak` alone names this file."""

from __future__ import annotations

from typing import Any

import pytest
from kube_cluster import condition
from kube_process import wait_for
from kube_served import NAME, POOL, PROMPTS, TOKENS, Served, known

SECONDS_MAX = 300.0
LOST_SECONDS_MAX = 60.0
TRUTH_SECONDS_MAX = 30.0

pytestmark = pytest.mark.parametrize("served", ["perNode"], indirect=True)


def test_a_lost_machine_costs_what_ran_on_it(served: Served) -> None:
    """A node that vanishes with engine, cache node, router and index: the rest serves, and says how many are left."""
    expected, lost = known(served), served.cluster.nodes[1]
    lost.kill()
    # Not a stream: what runs through the lost router hangs, as it does on any network.
    outcomes = [served.router().streamed(text, number, TOKENS) for number, text in enumerate(PROMPTS)]
    assert [outcome.text for outcome in outcomes] == expected, outcomes
    wait_for(lambda: served.object()["status"]["readyReplicas"] == 1, "one engine is counted", LOST_SECONDS_MAX, 0.5)
    assert served.condition("Ready") == "True", "one engine serves"
    assert condition(served.object("kvcachepools", POOL), "Ready") == "False", "a cache node is missing"
    served.cluster.power_on(lost)
    wait_for(
        lambda: condition(served.object("kvcachepools", POOL), "Ready") == "True", "the pool again", SECONDS_MAX, 0.5
    )


def routable(served: Served) -> int:
    """Routers that would send a request somewhere, asked directly: the Service sends nobody to one that is not ready."""
    return sum(answers(served, pod) for pod in served.pods("router"))


def answers(served: Served, pod: dict[str, Any]) -> bool:
    try:
        return served.engine(pod).get("/readyz")[0] == 200
    except OSError:
        return False


def test_it_is_not_ready_while_all_engines_are_dead(served: Served) -> None:
    """kill -9 of both engines at once: within seconds nothing is routable and the deployment says so, and both come back together:
    it is never Ready for longer than a moment while no router has anybody to send to."""
    served.wait_ready()
    for pod in served.ready_engines():
        served.cluster.kill_container(served.namespace, pod["metadata"]["name"], "engine")
    wait_for(lambda: not routable(served), "no router sends to a dead engine", TRUTH_SECONDS_MAX, every=0.2)
    served.wait_condition("Ready", "False", TRUTH_SECONDS_MAX)
    assert served.condition("Available") == "False"

    def is_back() -> bool:
        said = served.condition("Ready") == "True"
        if said:
            assert routable(served), "Ready, and nothing is routable"
        return said

    wait_for(is_back, "Ready again", SECONDS_MAX, every=0.3)
    served.wait_ready()


def test_it_is_never_ready_while_nothing_is_routable(served: Served) -> None:
    """Scaled to nothing, the deployment says so."""
    served.cluster.kubectl("scale", "ifd", NAME, "--replicas=0", "-n", served.namespace)
    served.wait_condition("Ready", "False", 60.0)
    wait_for(lambda: not served.pods("engine"), "no engine", 90.0, every=0.5)
    assert served.condition("Available") == "False"
    # Asked directly: the Service sends nobody to a router that is not ready.
    near = [pod for pod in served.pods("router") if pod["spec"]["nodeName"] == served.cluster.nodes[0].name]
    assert [served.engine(pod).get("/readyz")[0] for pod in near] == [503] * len(near)
