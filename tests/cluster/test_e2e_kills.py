"""Parts are killed while requests run: what had not begun to answer succeeds, the rest fails openly, and conditions are true."""

from __future__ import annotations

from functools import partial

import kube_chart
import pytest
from kube_chat import Stream
from kube_cluster import condition
from kube_process import wait_for
from kube_served import NAME, PROMPTS, TOKENS, Served, known

AFTER = 4
OPERATOR_SECONDS_MAX = 60.0
SECONDS_MAX = 300.0  # for requests that take a tenth of a second on a machine with nothing else to do

pytestmark = pytest.mark.parametrize("served", ["perNode"], indirect=True)


@pytest.fixture(scope="module")
def answers(served: Served) -> list[str]:
    """To all prompts, before anything is broken."""
    return known(served)


@pytest.fixture
def stream(served: Served) -> Stream:
    """Requests whose answers are known from before anything was broken."""
    return Stream(served.router(), PROMPTS, TOKENS)


def judge(stream: Stream, answers: list[str]) -> None:
    """Each request was answered as before, or had begun and then failed openly."""
    for outcome in stream.outcomes:
        if outcome.done:
            assert outcome.text == answers[outcome.prompt], outcome
        else:
            assert outcome.began, f"failed before it began: {outcome}"
            assert outcome.error, f"ended without a word: {outcome}"
            assert answers[outcome.prompt].startswith(outcome.text), outcome


def test_a_deleted_engine_finishes_what_it_began(served: Served, stream: Stream, answers: list[str]) -> None:
    """kubectl delete pod: nothing new goes there, its streams finish, no request fails at all. The next tests begin while another engine
    takes its place: one is there to route to, which is all that they need."""
    served.wait_ready()
    victim = served.ready_engines()[0]["metadata"]["name"]
    with stream:
        stream.wait_more(AFTER, SECONDS_MAX)
        served.cluster.kubectl("delete", "pod", victim, "-n", served.namespace, "--wait=false")
        stream.wait_more(2 * AFTER, SECONDS_MAX)
    judge(stream, answers)
    assert all(outcome.done for outcome in stream.outcomes), stream.outcomes


LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{kube_chart.NAMESPACE}/leases/kvcommons-operator"


def leader(served: Served) -> str:
    """The pod of the operator that leads; empty while the Lease names one that is gone."""
    holder = str(served.cluster.request("GET", LEASE)["spec"]["holderIdentity"])
    operators = served.cluster.pods(kube_chart.NAMESPACE, "app.kubernetes.io/name=kvcommons-operator")
    names = [str(pod["metadata"]["name"]) for pod in operators]
    return next((name for name in names if holder.startswith(name)), "")


def drift_is_put_back(served: Served) -> None:
    """A child that somebody deletes comes back: an operator leads and works."""
    path = f"/apis/policy/v1/namespaces/{served.namespace}/poddisruptionbudgets/{NAME}-router"
    served.cluster.request("DELETE", path)
    wait_for(lambda: served.cluster.exists(path), "the deleted child", OPERATOR_SECONDS_MAX, every=0.2)


def test_a_killed_operator_works_again(served: Served, stream: Stream, answers: list[str]) -> None:
    """kill -9 of the leading operator, then the loss of its pod: requests go on, and an operator puts drift back each time."""
    first = leader(served)
    with stream:
        served.cluster.kill_container(kube_chart.NAMESPACE, first, "operator")
        drift_is_put_back(served)
        served.cluster.kubectl("delete", "pod", first, "-n", kube_chart.NAMESPACE, "--grace-period=0", "--force")
        wait_for(lambda: leader(served) not in {"", first}, "another operator leads", OPERATOR_SECONDS_MAX, every=0.2)
        drift_is_put_back(served)
        stream.wait_more(AFTER, SECONDS_MAX)
        assert served.condition("Ready") == "True"
    judge(stream, answers)


@pytest.mark.parametrize(
    ("component", "container"), [("cache-node", "cache-node"), ("index", "redis"), ("router", "router")]
)
def test_a_part_that_is_killed_and_then_deleted_stops_nobody(
    served: Served, stream: Stream, answers: list[str], component: str, container: str
) -> None:
    """kill -9 of a cache node, of Redis or of a router, then `kubectl delete pod` of it: requests go on each time, the deployment
    stays Ready, since there is always an engine to route to, and what was lost comes back."""
    pod = served.pods(component)[0]["metadata"]["name"]
    with stream:
        stream.wait_more(AFTER, SECONDS_MAX)
        served.cluster.kill_container(served.namespace, pod, container)
        stream.wait_more(2 * AFTER, SECONDS_MAX)
        assert served.condition("Ready") == "True"
        served.cluster.kubectl("delete", "pod", pod, "-n", served.namespace, "--wait=false")
        stream.wait_more(2 * AFTER, SECONDS_MAX)
        assert served.condition("Ready") == "True"
    judge(stream, answers)
    wait_for(partial(has_another, served, component, pod), f"another {component}", SECONDS_MAX, every=0.2)


def has_another(served: Served, component: str, gone: str) -> bool:
    """All pods of a part are ready, and the deleted one is not among them (a StatefulSet's has the same name again)."""
    pods = served.pods(component)
    stays = all("deletionTimestamp" not in pod["metadata"] and condition(pod, "Ready") == "True" for pod in pods)
    return bool(pods) and stays and (component == "index" or gone not in {pod["metadata"]["name"] for pod in pods})


def test_a_killed_engine_is_replaced_by_the_other(served: Served, stream: Stream, answers: list[str]) -> None:
    """kill -9 of an engine: the router goes to the other one at once, the deployment stays available, and the container is started
    again. The last one here: nobody waits a minute for the engine in it."""
    served.wait_ready()
    victim = served.ready_engines()[0]["metadata"]["name"]
    with stream:
        stream.wait_more(AFTER, SECONDS_MAX)
        served.cluster.kill_container(served.namespace, victim, "engine")
        stream.wait_more(2 * AFTER, SECONDS_MAX)
    judge(stream, answers)
    assert served.broken_answers() >= sum(not outcome.done for outcome in stream.outcomes)
    assert served.condition("Available") == "True"
    wait_for(lambda: restarts(served, victim) == 1, "a restart of the container", OPERATOR_SECONDS_MAX, every=0.2)


def restarts(served: Served, name: str) -> int:
    """Of an engine's container."""
    pod = next(pod for pod in served.pods("engine") if pod["metadata"]["name"] == name)
    return int(next(one["restartCount"] for one in pod["status"]["containerStatuses"] if one["name"] == "engine"))
