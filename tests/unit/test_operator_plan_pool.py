"""What a pool's plan does and says: its children, its roll, its conditions, its end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_examples as examples
import pytest
from kvcommons_operator import names
from kvcommons_operator.observed import Container, Manifest, Pod, Ref, User
from kvcommons_operator.outcome import ActionKind, Finalizer, Plan
from kvcommons_operator.plan import plan_pool


def plan(pool: Manifest, **more: Any) -> Plan:
    return plan_pool(pool, examples.pool_world(**more))


def hash_of(pool: Manifest) -> str:
    template = examples.named(plan(pool).apply, "DaemonSet")["spec"]["template"]
    return str(template["metadata"]["annotations"][names.TEMPLATE_HASH])


def index_pod(**more: Any) -> Pod:
    given = {"namespace": "llm", "name": "commons-index-0", "uid": "index", "ready": True}
    return Pod(**{**given, "labels": {names.COMPONENT: names.INDEX, names.POOL_LABEL: "commons"}, **more})


def running(pool: Manifest, size: int = 3, **more: Any) -> dict[str, Any]:
    """A world in which this pool has come up."""
    seen = {"desiredNumberScheduled": size, "currentNumberScheduled": size, "observedGeneration": 1}
    live = examples.live(plan(pool).apply, DaemonSet=seen)
    mark = hash_of(pool) if pool["spec"]["placement"] == "perNode" else ""
    pods = (*(examples.node_pod(number, mark) for number in range(size)), index_pod())
    nodes = {f"pod-{number}": examples.node_state(number) for number in range(size)}
    return {"children": live, "pods": pods, "nodes": nodes, **more}


def statuses(status: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def test_a_new_pool_is_accepted_and_not_ready() -> None:
    """Before anything exists the truth is that it is being made."""
    found = plan(examples.pool())
    assert statuses(found.status) == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
        "Progressing": ("True", "Creating"),
        "Available": ("False", "Creating"),
        "Ready": ("False", "Creating"),
        "IndexConsistent": ("Unknown", "NoAnswer"),
    }
    assert found.status["observedGeneration"] == 1


def test_a_pool_whose_nodes_serve_is_ready() -> None:
    """With every node up, in the index with what it holds, and with the index up, all is well and nothing is to be done."""
    pool = examples.pool()
    found = plan(pool, **running(pool))
    told = statuses(found.status)
    assert told["Ready"] == ("True", "Ready")
    assert told["IndexConsistent"] == ("True", "Consistent")
    assert told["Progressing"] == ("False", "Complete")
    assert (found.actions, found.delete, found.requeue_seconds) == ((), (), None)
    assert found.status["nodes"] == {"desired": 3, "ready": 3, "updated": 3, "unhealthy": 0}
    assert found.status["memory"] == "24576Mi"


def test_a_pool_is_not_ready_without_its_index_and_says_so() -> None:
    """Nodes go on serving their own machines: Available stays, Ready does not."""
    pool = examples.pool()
    world = running(pool)
    world["pods"] = (*world["pods"][:-1], index_pod(ready=False))
    told = statuses(plan(pool, **world).status)
    assert told["Available"][0] == "True"
    assert told["Ready"] == ("False", "IndexNotReady")


def test_a_node_that_is_not_well_is_named() -> None:
    """The condition and the list say which node it is and why."""
    pool = examples.pool()
    world = running(pool)
    crashing = Container(name="cache-node", waiting_reason="CrashLoopBackOff", waiting_message="back-off", exit_code=2)
    crashing = replace(crashing, termination_message="a line\nARENA_BYTES is too small\n")
    sick = examples.node_pod(1, hash_of(pool), ready=False, containers=(crashing,))
    world["pods"] = (world["pods"][0], sick, world["pods"][2], index_pod())
    found = plan(pool, **world).status
    assert statuses(found)["Ready"] == ("False", "NodesNotReady")
    assert "status 2: ARENA_BYTES is too small" in examples.condition(found, "Ready")["message"]
    (unhealthy,) = found["unhealthyNodes"]
    assert (unhealthy["name"], unhealthy["reason"]) == ("node-1", "CrashLoopBackOff")
    assert found["nodes"]["unhealthy"] == 1


def test_no_pod_at_all_points_to_pod_security() -> None:
    """Where the DaemonSet can't make a pod the message names the likely reason and the level that is needed."""
    pool = examples.pool()
    world = running(pool, pods=(), nodes={})
    message = examples.condition(plan(pool, **world).status, "Available")["message"]
    assert "privileged" in message


def test_no_node_that_fits_is_told() -> None:
    """A selector that fits no node is no silent success."""
    pool = examples.pool()
    world = running(pool, size=0)
    assert statuses(plan(pool, **world).status)["Available"] == ("False", "NoNodes")


def test_nothing_is_said_of_nodes_before_their_controller_has_looked() -> None:
    """A DaemonSet that nobody has counted yet has not no nodes: it is being made."""
    pool = examples.pool()
    live = examples.live(plan(pool).apply)
    told = statuses(plan(pool, children=live).status)
    assert told["Available"] == ("False", "Creating")
    assert told["Progressing"] == ("True", "Creating")


def sidecar_world(pool: Manifest, **first: Any) -> dict[str, Any]:
    labels = {**examples.engine_pod(0).labels, names.POOL_LABEL: "commons"}
    pods = [examples.engine_pod(n, labels=labels, ready=False, phase="Pending", containers=()) for n in range(2)]
    pods[0] = replace(pods[0], **first)
    return {"children": examples.live(plan(pool).apply), "pods": (*pods, index_pod())}


def test_a_sidecar_pool_is_not_ready_while_no_node_of_its_engines_serves() -> None:
    """0 of 2 is not Ready, and what keeps an engine's pod is its deployment's to say, not the pool's."""
    pool = examples.pool(placement="sidecar")
    claim = 'persistentvolumeclaim "models" not found'
    found = plan(pool, **sidecar_world(pool, unschedulable=claim)).status
    told = statuses(found)
    assert told["Available"] == told["Ready"] == ("False", "NoNodeReady")
    assert told["ResolvedRefs"] == ("True", "ResolvedRefs")
    assert "InferenceDeployment chat" in examples.condition(found, "Ready")["message"]
    assert "models" not in str(found["conditions"])
    assert found["unhealthyNodes"] == []


def test_what_a_sidecar_of_the_pool_misses_is_the_pools() -> None:
    """The container of the cache node is the pool's wherever it runs."""
    index = {
        "managed": None,
        "external": {"url": "redis://r", "passwordSecretRef": {"name": "redis", "key": "password"}},
    }
    pool = examples.pool(placement="sidecar", index=index)
    waits = Container(
        name="cache-node", waiting_reason="CreateContainerConfigError", waiting_message='secret "redis" not found'
    )
    found = plan(pool, **sidecar_world(pool, containers=(waits,))).status
    told = examples.condition(found, "ResolvedRefs")
    assert told["reason"] == "SecretNotFound"
    assert told["message"].endswith("create it, or correct spec.index.external.passwordSecretRef")


def test_an_external_index_has_no_pods_to_look_at() -> None:
    """What is wrong with it points to its address and credentials, not to pods that do not exist."""
    index = {"managed": None, "external": {"url": "redis://r"}}
    pool = examples.pool(index=index)
    world = running(pool)
    apart = {uid: replace(state, joined=False) for uid, state in world["nodes"].items()}
    found = plan(pool, **{**world, "nodes": apart, "index_reachable": False}).status
    assert "spec.index.external" in examples.condition(found, "IndexConsistent")["message"]
    assert "redis://r" in examples.condition(found, "Ready")["message"]
    assert "pods" not in examples.condition(found, "Ready")["message"]


def test_a_secret_of_its_own_that_somebody_deleted_is_made_again() -> None:
    """It is not watched: that pods miss it is what says so."""
    pool = examples.pool()
    waits = Container(
        name="cache-node",
        waiting_reason="CreateContainerConfigError",
        waiting_message='secret "commons-node-keys" not found',
    )
    world = running(pool)
    world["pods"] = (examples.node_pod(0, hash_of(pool), ready=False, containers=(waits,)), index_pod())
    found = plan(pool, **world)
    assert [ref.name for ref in found.renew] == ["commons-node-keys"]
    assert "makes it again" in examples.condition(found.status, "ResolvedRefs")["message"]


def test_a_missing_secret_is_learnt_from_the_pods() -> None:
    """The operator reads no Secret; what a pod waits for stands in ResolvedRefs with what to do."""
    pool = examples.pool()
    waiting = Container(
        name="cache-node", waiting_reason="CreateContainerConfigError", waiting_message='secret "redis" not found'
    )
    world = running(pool)
    world["pods"] = (examples.node_pod(0, hash_of(pool), ready=False, containers=(waiting,)),)
    found = examples.condition(plan(pool, **world).status, "ResolvedRefs")
    assert found["status"] == "False"
    assert "Secret llm/redis does not exist: create it" in found["message"]


def test_an_unbuilt_field_is_refused_and_nothing_is_touched() -> None:
    """What is not built yet is Accepted=False with the field's path; children that are there stay as they are."""
    pool = examples.pool(transport={"type": "nixl"})
    live = examples.live(plan(examples.pool()).apply)
    found = plan(pool, children=live)
    assert (found.apply, found.delete, found.actions) == ((), (), ())
    accepted = examples.condition(found.status, "Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "NotBuiltYet")
    assert "spec.transport.type" in accepted["message"]
    assert statuses(found.status)["Ready"][0] == "False"


def test_a_resource_that_cannot_be_read_is_no_defect() -> None:
    """What an older CRD let through is refused with the field's path."""
    pool = examples.pool()
    pool["spec"]["chunkTokens"] = "many"
    accepted = examples.condition(plan(pool).status, "Accepted")
    assert accepted["reason"] == "InvalidSpec"
    assert "spec.chunkTokens" in accepted["message"]


def test_a_change_rolls_one_node_at_a_time() -> None:
    """The new template is applied first; the first node is fenced only when the DaemonSet has it."""
    before, after = examples.pool(), examples.pool(tiers={"memory": {"capacity": "9Gi"}})
    world = running(before)
    early = plan(after, **world)
    assert early.actions == ()
    assert statuses(early.status)["Progressing"] == ("True", "RollingNodes")
    applied = running(after)
    found = plan(after, **{**world, "children": applied["children"]})
    (action,) = found.actions
    assert (action.kind, action.member) == (ActionKind.FENCE, "node-0")
    told = statuses(found.status)
    assert told["Progressing"] == ("True", "RollingNodes")
    assert told["Ready"] == ("True", "Ready")


def test_on_delete_waits_for_the_user() -> None:
    """With updateStrategy OnDelete no pod is touched, and the condition says who is waited for."""
    before = examples.pool(updateStrategy={"type": "OnDelete"})
    after = examples.pool(updateStrategy={"type": "OnDelete"}, logLevel="debug")
    world = {**running(before), "children": running(after)["children"]}
    found = plan(after, **world)
    assert found.actions == ()
    assert statuses(found.status)["Progressing"] == ("False", "WaitingForDeletion")


def test_conditions_keep_their_time_until_they_change() -> None:
    """lastTransitionTime is that of the last change of status, however often it is looked."""
    pool = examples.pool()
    pool["status"] = plan(pool).status
    later = plan(pool, **running(pool, now=examples.LATER)).status
    assert examples.condition(later, "Accepted")["lastTransitionTime"] == examples.NOW
    assert examples.condition(later, "Ready")["lastTransitionTime"] == examples.LATER


def test_events_are_told_once_a_change() -> None:
    """A condition that stays as it was makes no Event; one that turns bad makes a warning, and a good one when it is over."""
    pool = examples.pool()
    world = running(pool)
    pool["status"] = plan(pool, **world).status
    assert plan(pool, **world).events == ()
    gone = {**world, "pods": (*world["pods"][:-1], index_pod(ready=False))}
    bad = plan(pool, **gone)
    assert [(event.type, event.reason) for event in bad.events] == [("Warning", "IndexNotReady")]
    pool["status"] = bad.status
    assert [(event.type, event.reason) for event in plan(pool, **world).events] == [("Normal", "Ready")]


def test_shares_are_told_and_not_written_for_every_chunk() -> None:
    """Hits and memory are in the status as soon as there are any; a move of less than five points is told as before."""
    pool = examples.pool()

    def told(hits: int, used_percent: int) -> tuple[int, int]:
        used = (8 << 30) * used_percent // 100 + 1
        nodes = {
            f"pod-{number}": examples.node_state(number, hits=hits, asked=100, used_bytes=used) for number in range(3)
        }
        pool["status"] = plan(pool, **{**running(pool), "nodes": nodes}).status
        return pool["status"]["hitPercent"], pool["status"]["memoryUsedPercent"]

    assert told(40, 20) == (40, 20)
    assert told(44, 24) == (40, 20)
    assert told(45, 25) == (45, 25)


def test_a_pool_that_comes_up_tells_no_event_of_every_step() -> None:
    """Why it is not ready yet is in its conditions, and changes many times; that it is ready is told, once."""
    pool = examples.pool()
    pool["status"] = plan(pool).status
    world = running(pool)
    half = plan(pool, **{**world, "pods": ()})
    assert examples.condition(half.status, "Ready") != examples.condition(pool["status"], "Ready")
    assert [event.reason for event in half.events if event.reason != "Consistent"] == []
    pool["status"] = half.status
    assert sorted({event.reason for event in plan(pool, **world).events} - {"Consistent"}) == ["Ready"]


def test_the_end_of_a_later_change_is_told() -> None:
    """A pool that was ready, changes and is as wished again says so; only its first coming up is told by its readiness alone."""
    pool = examples.pool()
    world = running(pool)
    pool["status"] = plan(pool, **world).status
    for told in pool["status"]["conditions"]:
        if told["type"] == "Progressing":
            told |= {"status": "True", "reason": "RollingOut", "lastTransitionTime": "2026-02-01T00:00:00Z"}
    assert [event.reason for event in plan(pool, **world).events] == ["Complete"]


def test_what_is_wished_for_no_more_is_deleted() -> None:
    """A pool that goes from one Redis to three loses the one, its Service and nothing else."""
    one, three = examples.pool(), examples.pool(index={"managed": {"replicas": 3}})
    found = plan(three, children=examples.live(plan(one).apply))
    assert {(ref.kind, ref.name) for ref in found.delete} == {
        ("Service", "commons-index"),
        ("StatefulSet", "commons-index"),
    }


def test_a_missing_api_is_told_with_the_remedy_and_made_when_it_comes() -> None:
    """A ServiceMonitor that is asked for where Prometheus' operator is not installed makes a warning, not a failure."""
    pool = examples.pool(monitoring={"serviceMonitor": True})
    found = plan(pool)
    assert "ServiceMonitor" not in {one["kind"] for one in found.apply}
    assert [event.reason for event in found.events] == ["ApiMissing"]
    assert "ServiceMonitor" in examples.condition(found.status, "Accepted")["message"]
    assert "ServiceMonitor" in {one["kind"] for one in plan(pool, apis=frozenset(examples.OPTIONAL)).apply}


# The end --------------------------------------------------------------------------------------------------------------


def deleted(**spec: Any) -> Manifest:
    pool = examples.pool(**spec)
    pool["metadata"]["deletionTimestamp"] = examples.NOW
    return pool


def test_a_pool_in_use_refuses_to_go_and_names_its_users() -> None:
    """The finalizer stays, nothing is created or deleted, and the first sixteen users are named."""
    users = tuple(User(namespace="llm", name=f"chat-{number:02}") for number in range(20))
    found = plan(deleted(), users=users, **{k: v for k, v in running(examples.pool()).items() if k != "users"})
    assert (found.finalizer, found.apply, found.delete, found.actions) == (Finalizer.KEEP, (), (), ())
    message = examples.condition(found.status, "Ready")["message"]
    assert "llm/chat-15 and 4 more" in message
    assert [event.reason for event in found.events] == ["PoolInUse"]
    assert found.status["references"] == 20
    assert len(found.status["referencedBy"]) == 16


def test_a_pool_goes_in_order() -> None:
    """First the cache nodes; then, when the last of their pods is gone, the index; then the finalizer."""
    world = running(examples.pool())
    nodes = plan(deleted(), **world)
    assert [ref.kind for ref in nodes.delete] == ["DaemonSet"]
    assert nodes.finalizer == Finalizer.KEEP
    without_set = {ref: one for ref, one in world["children"].items() if ref.kind != "DaemonSet"}
    waiting = plan(deleted(), **{**world, "children": without_set})
    assert (waiting.delete, waiting.finalizer) == ((), Finalizer.KEEP)
    index = plan(deleted(), **{**world, "children": without_set, "pods": (index_pod(),)})
    assert [ref.kind for ref in index.delete] == ["StatefulSet"]
    gone = plan(deleted(), children={ref: one for ref, one in without_set.items() if ref.kind != "StatefulSet"})
    assert (gone.delete, gone.finalizer) == ((), Finalizer.DROP)


@pytest.mark.parametrize("users", [(), (User(namespace="llm", name="chat"),)])
def test_with_a_deletion_timestamp_nothing_is_created(users: tuple[User, ...]) -> None:
    """However empty the world is, a pool that is to go makes nothing."""
    assert plan(deleted(), users=users).apply == ()


def test_the_finalizer_is_there_only_while_the_pool_is_used() -> None:
    """Removing the operator leaves no unused pool stuck."""
    assert plan(examples.pool()).finalizer == Finalizer.DROP
    assert plan(examples.pool(), users=(User(namespace="llm", name="chat"),)).finalizer == Finalizer.KEEP


def test_children_that_are_going_are_not_deleted_twice() -> None:
    """What has a deletion timestamp is left to go."""
    live = examples.live(plan(examples.pool()).apply)
    set_ref = next(ref for ref in live if ref.kind == "DaemonSet")
    live[set_ref]["metadata"]["deletionTimestamp"] = examples.NOW
    assert plan(deleted(), children=live).delete == (Ref("apps/v1", "StatefulSet", "llm", "commons-index"),)


def test_a_sidecar_pool_is_ready_with_its_index_and_waits_for_engines() -> None:
    """It has no nodes of its own: as soon as the index serves, engines may come."""
    pool = examples.pool(placement="sidecar")
    assert statuses(plan(pool).status)["Ready"][0] == "False"
    found = plan(pool, pods=(index_pod(),))
    assert statuses(found.status)["Available"] == ("True", "WaitingForEngines")
    assert statuses(found.status)["Ready"][0] == "True"
    assert "privileged" not in examples.condition(found.status, "Accepted")["message"]


def test_a_machine_that_is_gone_is_told_and_waited_for_by_nobody() -> None:
    """Its pod stays Terminating for ever: the pool is ready with the rest, says which node is missing, and may be deleted."""
    pool = examples.pool()
    world = running(pool)
    dead = replace(world["pods"][1], ready=False, deleting=True, deleting_since="2026-11-23T05:50:00Z")
    world["pods"] = (world["pods"][0], dead, *world["pods"][2:])
    found = plan(pool, **world)
    ready = examples.condition(found.status, "Ready")
    assert (ready["status"], statuses(found.status)["Progressing"]) == ("True", ("False", "Complete"))
    assert "node-1" in ready["message"]
    pool["metadata"]["deletionTimestamp"] = examples.NOW
    assert plan(pool, pods=(dead,)).finalizer == Finalizer.DROP
    young = replace(dead, deleting_since=examples.NOW)
    assert plan(pool, pods=(young,)).finalizer == Finalizer.KEEP
