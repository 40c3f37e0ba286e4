"""What a deployment's plan does and says: references, scaling, conditions, its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_cases as cases
import operator_examples as examples
import pytest
from kvcommons_operator import names
from kvcommons_operator.observed import Container, Manifest, Ref
from kvcommons_operator.outcome import ActionKind, Finalizer, Plan
from kvcommons_operator.plan import plan_deployment


def plan(ifd: Manifest, **more: Any) -> Plan:
    return plan_deployment(ifd, examples.world(**more))


def running(ifd: Manifest, **more: Any) -> dict[str, Any]:
    """A world in which this deployment has come up: two engines, two routers."""
    done = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "observedGeneration": 1}
    live = examples.live(plan(ifd, **more).apply, Deployment=done)
    pods = (*(examples.engine_pod(n) for n in range(2)), *(examples.router_pod(n) for n in range(2)))
    return {"children": live, "pods": pods, "routable": 2, **more}


def statuses(found: Plan) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in found.status["conditions"]}


# Conditions -----------------------------------------------------------------------------------------------------------


def test_a_new_deployment_is_accepted_and_not_ready() -> None:
    """Before anything exists it is being made, and nothing is routable."""
    told = statuses(plan(examples.deployment()))
    assert told["Accepted"][0] == told["ResolvedRefs"][0] == "True"
    assert told["Progressing"] == ("True", "Creating")
    assert told["Ready"] == ("False", "NoEngineReady")
    assert told["ConnectorLoaded"] == ("Unknown", "NotTriedYet")


def test_a_deployment_that_serves_is_ready() -> None:
    """With engines, routers and something routable all is well; the status counts and says where it is."""
    ifd = examples.deployment()
    found = plan(ifd, **running(ifd))
    told = statuses(found)
    assert told["Ready"] == ("True", "Ready")
    assert told["Progressing"] == ("False", "Complete")
    assert told["ConnectorLoaded"] == ("True", "Loaded")
    status = found.status
    assert (status["replicas"], status["readyReplicas"], status["connectedReplicas"]) == (2, 2, 2)
    assert status["router"] == {"namespace": "llm", "replicas": 2, "readyReplicas": 2}
    assert status["url"] == "http://chat.llm.svc.cluster.local:8000/v1"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"pods": (examples.engine_pod(0), examples.router_pod(0, ready=False))}, "NoRouterReady"),
        ({"pods": (examples.engine_pod(0, ready=False), examples.router_pod(0))}, "NoEngineReady"),
        ({"pods": (examples.engine_pod(0, deleting=True), examples.router_pod(0))}, "NoEngineReady"),
        ({"routable": 0}, "NothingRoutable"),
    ],
)
def test_it_is_never_ready_while_nothing_is_routable(change: dict[str, Any], reason: str) -> None:
    """Without a ready router, a ready engine that stays, or a way between them, Ready is False and says why."""
    ifd = examples.deployment()
    told = statuses(plan(ifd, **{**running(ifd), **change}))
    assert told["Available"] == told["Ready"] == ("False", reason)


def test_an_engine_without_the_commons_serves_and_is_told() -> None:
    """The deployment stays ready; ConnectorLoaded says how many serve without, and why."""
    ifd = examples.deployment()
    old = examples.check(loaded=False, reason="GlibcTooOld", message="glibc here is 2.31")
    pods = (examples.engine_pod(0, containers=(old,)), examples.engine_pod(1), examples.router_pod(0))
    found = plan(ifd, **{**running(ifd), "pods": pods})
    told = examples.condition(found.status, "ConnectorLoaded")
    assert (told["status"], told["reason"]) == ("False", "GlibcTooOld")
    assert "1 of 2 engines serve without the commons" in told["message"]
    assert statuses(found)["Ready"][0] == "True"
    assert found.status["connectedReplicas"] == 1


def test_a_report_that_is_no_json_is_a_reason_too() -> None:
    """Whatever an image writes to its termination log is told, and breaks nothing."""
    for text in ("Traceback: no such file", "[1]"):
        pod = examples.engine_pod(0, containers=(Container(name="check", init=True, termination_message=text),))
        found = plan(examples.deployment(), pods=(pod,))
        assert examples.condition(found.status, "ConnectorLoaded")["status"] in ("False", "Unknown")


def test_a_deployment_at_zero_says_so() -> None:
    """Scaled to zero it is not ready, for a reason that is no fault."""
    ifd = examples.deployment(replicas=0)
    assert statuses(plan(ifd))["Ready"] == ("False", "ScaledToZero")


def test_an_image_that_does_not_come_is_a_stuck_rollout() -> None:
    """The old engines serve on: Available; and Progressing names the pod and the image."""
    ifd = examples.deployment()
    waiting = Container(name="engine", waiting_reason="ImagePullBackOff", waiting_message='image "x:1" not found')
    world = running(ifd)
    for ref, live in world["children"].items():
        if ref.kind == "Deployment" and ref.name == "chat-engine":
            live["status"] |= {"updatedReplicas": 1, "replicas": 3}
    pods = (*world["pods"], examples.engine_pod(7, ready=False, containers=(waiting,)))
    found = plan(ifd, **{**world, "pods": pods})
    assert statuses(found)["Available"][0] == "True"
    assert statuses(found)["Progressing"] == ("False", "RolloutStuck")
    assert [(one["name"], one["reason"]) for one in found.status["unhealthyReplicas"]] == [
        ("chat-engine-7", "ImagePullBackOff")
    ]


def test_a_claim_that_is_not_there_is_a_reference_that_is_missing() -> None:
    """The scheduler says so, since a pod without its claim gets no node."""
    said = '0/2 nodes are available: persistentvolumeclaim "models" not found. not found. preemption: 0/2 nodes are available'
    waiting = replace(examples.engine_pod(0), ready=False, unschedulable=said)
    found = plan(examples.deployment(), **{**running(examples.deployment()), "pods": (waiting,)})
    assert statuses(found)["ResolvedRefs"] == ("False", "ClaimNotFound")
    told = examples.condition(found.status, "ResolvedRefs")["message"]
    assert told.endswith(
        "PersistentVolumeClaim llm/models does not exist: create it, or correct spec.model.source.pvc.claimName"
    )
    elsewhere = replace(waiting, unschedulable="0/2 nodes are available: 2 Insufficient nvidia.com/gpu")
    found = plan(examples.deployment(), **{**running(examples.deployment()), "pods": (elsewhere,)})
    assert statuses(found)["ResolvedRefs"] == ("True", "ResolvedRefs")


def test_an_unbuilt_field_is_refused_and_what_runs_goes_on() -> None:
    """SGLang is not built yet: Accepted=False with the path, and no child is touched."""
    ifd = examples.deployment(engine={"type": "sglang"})
    found = plan(ifd, children=examples.live(plan(examples.deployment()).apply), pods=(examples.engine_pod(0),))
    assert (found.apply, found.delete) == ((), ())
    assert statuses(found)["Accepted"] == ("False", "NotBuiltYet")
    assert "spec.engine.type" in examples.condition(found.status, "Accepted")["message"]


def test_a_pool_reference_that_names_its_own_namespace_is_the_same() -> None:
    """Naming the deployment's own namespace changes nothing of what is made, and is no move of the routers."""
    plain, named = examples.deployment(), examples.deployment(poolRef={"name": "commons", "namespace": "llm"})
    assert plan(plain).apply == plan(named).apply
    world = running(plain)
    changed = plan(named, **world)
    assert statuses(changed)["Ready"] == statuses(plan(plain, **world))["Ready"] == ("True", "Ready")
    assert changed.delete == ()


def test_routers_do_not_move_to_another_namespace() -> None:
    """A reference that would take them elsewhere is refused with the way out, and what runs goes on."""
    world = running(examples.deployment())
    other = examples.pool("commons", "team-b", tenancy={"allowedNamespaces": {"from": "All"}})
    moved = examples.deployment(poolRef={"name": "commons", "namespace": "team-b"})
    found = plan(moved, **{**world, "pool": other})
    assert (found.apply, found.delete) == ((), ())
    assert statuses(found)["Accepted"] == ("False", "PoolNamespaceChanged")
    assert "set it back" in examples.condition(found.status, "Accepted")["message"]


def test_conditions_of_a_deployment_without_its_pool_do_not_contradict_each_other() -> None:
    """Nothing is being made while the pool is missing; with engines from before, what runs goes on and is not being changed."""
    ifd = examples.deployment()
    told = statuses(plan(ifd, pool=None))
    assert told["Progressing"] == ("False", "PoolNotFound")
    assert (told["Available"], told["Ready"]) == (("False", "NoEngineReady"), ("False", "PoolNotFound"))
    world = running(ifd)
    told = statuses(plan(ifd, **{**world, "pool": None}))
    assert told["Progressing"] == ("False", "PoolNotFound")
    assert told["Available"] == ("True", "Serving")


def test_labels_that_may_not_be_read_are_a_reason_of_their_own() -> None:
    """An operator that may not read namespaces says that it can't know, and both ways to allow it; it does not say that it is forbidden."""
    allowed = {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}}
    ifd = examples.deployment("chat", "team-a", poolRef={"name": "commons", "namespace": "llm"})
    pool = examples.pool(tenancy={"allowedNamespaces": allowed})
    found = plan(ifd, pool=pool, namespace_labels=None)
    assert (found.apply, found.delete) == ((), ())
    told = examples.condition(found.status, "ResolvedRefs")
    assert told["reason"] == "NamespaceLabelsUnknown"
    assert "from Names" in told["message"]
    assert "rbac.scope cluster" in told["message"]


# References -----------------------------------------------------------------------------------------------------------


def test_a_pool_that_is_not_there_holds_everything_back() -> None:
    """No engine is started that would have to be restarted when the pool comes; the condition says what is missing."""
    found = plan(examples.deployment(), pool=None)
    assert (found.apply, found.delete) == ((), ())
    told = examples.condition(found.status, "ResolvedRefs")
    assert (told["status"], told["reason"]) == ("False", "PoolNotFound")
    assert "llm/commons" in told["message"]


def test_what_runs_goes_on_when_its_pool_is_going() -> None:
    """A pool that is being deleted changes nothing of what serves, and the truth about that stays in the status."""
    ifd, pool = examples.deployment(), examples.pool()
    world = running(ifd)
    pool["metadata"]["deletionTimestamp"] = examples.NOW
    found = plan(ifd, **{**world, "pool": pool})
    assert (found.apply, found.delete) == ((), ())
    assert statuses(found)["ResolvedRefs"] == ("False", "PoolGoing")
    assert statuses(found)["Available"][0] == "True"


@pytest.mark.parametrize(
    ("allowed", "labels", "permitted"),
    [
        ({"from": "Same"}, {}, False),
        ({"from": "All"}, {}, True),
        ({"from": "Names", "names": ["team-a"]}, {}, True),
        ({"from": "Names", "names": ["team-b"]}, {}, False),
        ({"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}}, {"llm": "yes"}, True),
        ({"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}}, {"llm": "no"}, False),
        (
            {"from": "Selector", "selector": {"matchExpressions": [{"key": "llm", "operator": "Exists"}]}},
            {"llm": ""},
            True,
        ),
        (
            {
                "from": "Selector",
                "selector": {"matchExpressions": [{"key": "x", "operator": "NotIn", "values": ["1"]}]},
            },
            {"x": "1"},
            False,
        ),
    ],
)
def test_only_allowed_namespaces_use_a_pool(allowed: dict[str, Any], labels: dict[str, str], permitted: bool) -> None:
    """The pool decides whose deployments may use it; its own namespace always may."""
    pool = examples.pool(tenancy={"allowedNamespaces": allowed})
    ifd = examples.deployment("chat", "team-a", poolRef={"name": "commons", "namespace": "llm"})
    found = plan(ifd, pool=pool, namespace_labels=labels)
    assert bool(found.apply) is permitted
    assert statuses(found)["ResolvedRefs"] == (("True", "ResolvedRefs") if permitted else ("False", "RefNotPermitted"))
    assert plan(examples.deployment(), pool=pool).apply


def test_a_sidecar_pool_serves_its_own_namespace_alone() -> None:
    """Its cache nodes need the pool's Secrets, which never leave its namespace."""
    pool = examples.pool(placement="sidecar", tenancy={"allowedNamespaces": {"from": "All"}})
    ifd = examples.deployment("chat", "team-a", poolRef={"name": "commons", "namespace": "llm"})
    assert statuses(plan(ifd, pool=pool))["ResolvedRefs"] == ("False", "SidecarInOtherNamespace")


def route(*hostnames: str, **more: Any) -> dict[str, Any]:
    return {"gateway": {"httpRoute": {"parentRefs": [{"name": "gate"}], "hostnames": list(hostnames), **more}}}


@pytest.mark.parametrize(
    "routing",
    [
        {"image": "anything:1"},
        {"podTemplate": {"serviceAccountName": "admin"}},
        {"podTemplate": {"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "theirs", "key": "k"}}}]}},
        {"podTemplate": {"metadata": {"labels": {"app": "theirs"}}}},
    ],
)
def test_a_guest_does_not_choose_what_runs_beside_the_pool(routing: dict[str, Any]) -> None:
    """The router stands in the pool's namespace: an image, an account or a Secret there would be the guest's without a right to it."""
    pool = examples.pool(tenancy={"allowedNamespaces": {"from": "All"}})
    guest = examples.deployment("chat", "team-a", poolRef={"name": "commons", "namespace": "llm"}, routing=routing)
    found = plan(guest, pool=pool)
    assert (found.apply, statuses(found)["ResolvedRefs"]) == ((), ("False", "RouterOverrideNotPermitted"))
    assert plan(examples.deployment(routing=routing), pool=pool).apply


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"service": {"port": 80}}, None),
        ({"service": {"type": "NodePort"}}, "ServiceNotPermitted"),
        ({"service": {"type": "LoadBalancer", "loadBalancerClass": "x/y"}}, "ServiceNotPermitted"),
        ({"service": {"annotations": {"dns/hostname": "bank.example.com"}}}, "ServiceNotPermitted"),
        (route("chat.example.com"), None),
        (route("a.teams.example.com", "*.b.teams.example.com"), None),
        (route("chat.example.com", "bank.example.com"), "RouteNotPermitted"),
        (route("teams.example.com"), "RouteNotPermitted"),
        (route("*.example.com"), "RouteNotPermitted"),
        (route("evilteams.example.com"), "RouteNotPermitted"),
        (route(), "RouteNotPermitted"),
        (route("chat.example.com", annotations={"a": "b"}), "RouteNotPermitted"),
    ],
)
def test_a_guest_does_not_choose_how_the_world_reaches_the_pool_s_namespace(
    asked: dict[str, Any], reason: str | None
) -> None:
    """Its router's Service is ClusterIP, and a route is for hosts that the pool's owner allows; beside the pool all may be had."""
    allowed = {"from": "All", "hostnames": ["chat.example.com", "*.teams.example.com"]}
    pool = examples.pool(tenancy={"allowedNamespaces": allowed})
    guest = examples.deployment("chat", "team-a", poolRef={"name": "commons", "namespace": "llm"}, **asked)
    found = plan(guest, pool=pool)
    assert bool(found.apply) is (reason is None)
    said = statuses(found)["ResolvedRefs"][1]
    assert (said if said.endswith("NotPermitted") else None) == reason
    assert plan(examples.deployment(**asked), pool=pool).apply


def test_a_pool_that_is_not_accepted_is_not_used() -> None:
    """A deployment waits for a pool that asks for what is not built."""
    pool = examples.pool(transport={"type": "nixl"})
    assert statuses(plan(examples.deployment(), pool=pool))["ResolvedRefs"] == ("False", "PoolNotAccepted")


def test_an_api_that_is_needed_and_absent_is_a_reference_that_is_missing() -> None:
    """Without KEDA a ScaledObject can't be; the engines run at the number where scaling begins, and the condition says so."""
    ifd = cases.deployments()["keda"][0]
    found = plan(ifd)
    assert statuses(found)["ResolvedRefs"] == ("False", "ApiMissing")
    assert "ScaledObject" not in {one["kind"] for one in found.apply}
    assert examples.named(found.apply, "Deployment", "chat-engine")["spec"]["replicas"] == 2
    assert any(event.reason == "ApiMissing" for event in found.events)


# Scaling --------------------------------------------------------------------------------------------------------------


def test_the_number_of_engines_is_the_resources() -> None:
    """Without autoscaling the operator writes replicas, and puts them back."""
    ifd = examples.deployment(replicas=5)
    live = examples.live(plan(ifd).apply)
    live[Ref("apps/v1", "Deployment", "llm", "chat-engine")]["spec"]["replicas"] = 9
    assert examples.named(plan(ifd, children=live).apply, "Deployment", "chat-engine")["spec"]["replicas"] == 5


def owned(live: dict[Ref, Manifest], ref: Ref, manager: str) -> None:
    live[ref]["metadata"]["managedFields"] = [{"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}}]


def test_an_autoscaler_has_the_only_word_once_it_has_spoken() -> None:
    """As long as nobody else has written replicas they are kept as they are, on the version that was seen; then left out."""
    ifd = examples.deployment(autoscaling=cases.CPU)
    ref = Ref("apps/v1", "Deployment", "llm", "chat-engine")
    live = examples.live(plan(ifd).apply)
    live[ref]["spec"]["replicas"] = 3
    owned(live, ref, names.FIELD_MANAGER)
    kept = examples.named(plan(ifd, children=live).apply, *ref[1::2])
    assert (kept["spec"]["replicas"], kept["metadata"]["resourceVersion"]) == (3, "7")
    owned(live, ref, "kube-controller-manager")
    left = examples.named(plan(ifd, children=live).apply, *ref[1::2])
    assert "replicas" not in left["spec"]
    assert "resourceVersion" not in left["metadata"]


def test_the_autoscaler_scales_the_workload_within_its_bounds() -> None:
    """The HorizontalPodAutoscaler's target is the engines' Deployment; where it begins is within its bounds."""
    ifd = examples.deployment(autoscaling={**cases.CPU, "minReplicas": 3})
    made = plan(ifd).apply
    hpa = examples.named(made, "HorizontalPodAutoscaler")
    assert hpa["spec"]["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "chat-engine"}
    assert (hpa["spec"]["minReplicas"], hpa["spec"]["maxReplicas"]) == (3, 4)
    assert examples.named(made, "Deployment", "chat-engine")["spec"]["replicas"] == 3


def test_without_autoscaling_the_autoscaler_goes() -> None:
    """Switched off, the HorizontalPodAutoscaler is deleted in the plan that takes replicas back."""
    auto = examples.live(plan(examples.deployment(autoscaling=cases.CPU)).apply)
    found = plan(examples.deployment(), children=auto)
    assert [ref.kind for ref in found.delete] == ["HorizontalPodAutoscaler"]


def test_the_coldest_engine_is_marked_to_go_first() -> None:
    """What cache nodes say of their hits becomes the order in which engines are taken away."""
    ifd = examples.deployment()
    nodes = {f"node-{n}": examples.node_state(n, hits=hits) for n, hits in enumerate((5000, 3))}
    found = plan(ifd, **running(ifd), nodes=nodes)
    costs = {action.pod: dict(action.annotations) for action in found.actions}
    assert {action.kind for action in found.actions} == {ActionKind.ANNOTATE_POD}
    warm, cold = (int(costs[f"chat-engine-{number}"][names.DELETION_COST] or "") for number in range(2))
    assert warm > cold


# Changes --------------------------------------------------------------------------------------------------------------


def test_what_is_wished_for_no_more_is_deleted() -> None:
    """A route, a monitor and a policy that are switched off go; the engines stay."""
    apis = frozenset(examples.OPTIONAL)
    full = examples.live(plan(cases.deployments()["everything"][0], apis=apis).apply)
    found = plan(examples.deployment(networkPolicy={"enabled": False}), apis=apis, children=full)
    kinds = {ref.kind for ref in found.delete}
    assert kinds == {"HTTPRoute", "NetworkPolicy", "PrometheusRule", "ServiceMonitor"}


# The end --------------------------------------------------------------------------------------------------------------


def deleted(ifd: Manifest) -> Manifest:
    ifd["metadata"]["deletionTimestamp"] = examples.NOW
    return ifd


def test_an_api_that_is_away_for_a_moment_takes_nothing_along() -> None:
    """An API server that has just begun does not list the kinds of others yet: engines of a LeaderWorkerSet are not deleted by that."""
    spread = examples.deployment(poolRef=None, engine={"tensorParallelSize": 4, "nodesPerReplica": 2})
    made = plan(spread, apis=frozenset(examples.OPTIONAL), pool=None).apply
    assert "LeaderWorkerSet" in {one["kind"] for one in made}
    found = plan(spread, apis=frozenset(), pool=None, children=examples.live(made))
    assert found.delete == ()
    assert "LeaderWorkerSet" not in {one["kind"] for one in found.apply}


def test_a_deployment_beside_its_pool_goes_by_owner_references() -> None:
    """Nothing is created, no finalizer is needed: the garbage collector reaches every child."""
    ifd = examples.deployment()
    world = running(ifd)
    assert plan(ifd, **world).finalizer == Finalizer.DROP
    found = plan(deleted(ifd), **world)
    assert (found.apply, found.delete, found.finalizer) == ((), (), Finalizer.DROP)


def test_what_stands_in_another_namespace_goes_before_the_deployment() -> None:
    """The finalizer stays until the last child beside the pool is gone; routers go first."""
    ifd, pool = cases.deployments()["other namespace"]
    first = plan(ifd, pool=pool)
    assert first.finalizer == Finalizer.KEEP
    live = examples.live(first.apply)
    found = plan(deleted(ifd), pool=pool, children=live)
    assert found.apply == ()
    assert found.finalizer == Finalizer.KEEP
    assert {ref.namespace for ref in found.delete} == {"llm"}
    assert found.delete[0].kind == "Deployment"
    own = {ref: one for ref, one in live.items() if ref.namespace == "team-a"}
    assert plan(deleted(ifd), pool=pool, children=own).finalizer == Finalizer.DROP


def test_a_pool_that_is_gone_does_not_keep_a_deployment_from_going() -> None:
    """Deleted in any order, the children in the other namespace are found by their labels."""
    ifd, pool = cases.deployments()["other namespace"]
    live = examples.live(plan(ifd, pool=pool).apply)
    found = plan(deleted(ifd), pool=None, children=live)
    assert {ref.namespace for ref in found.delete} == {"llm"}
