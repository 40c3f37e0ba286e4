"""Another size for cache nodes that live: memory first, then the arena; nothing is lost but where it is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_examples as examples
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kvcommons_operator import names
from kvcommons_operator.build.size import size_of
from kvcommons_operator.observed import Container, Manifest, NodeState, Pod
from kvcommons_operator.outcome import ActionKind, Plan, PodAction
from kvcommons_operator.plan import plan_pool
from kvcommons_operator.pod_memory import Memory, PodMemory, Refusal
from kvcommons_operator.rollout import Roll, Rules, roll_nodes
from kvcommons_operator.sizing import Size

MIB = 1 << 20
BESIDE = 512 * MIB
STEPS_MAX = 600
RUNNING = (Container(name="cache-node", running=True),)


def size(mib: int, shape: str = "shape") -> Size:
    memory = Memory(mib * MIB + BESIDE, mib * MIB + BESIDE)
    return Size(template_hash=f"of-{mib}", shape_hash=shape, arena_bytes=mib * MIB, memory=memory)


def node_pod(number: int, of: Size, **more: Any) -> Pod:
    marks = {names.TEMPLATE_HASH: of.template_hash, names.SHAPE_HASH: of.shape_hash}
    memory = PodMemory(asked=of.memory, given=of.memory)
    return examples.node_pod(number, "", **{"annotations": marks, "memory": memory, "containers": RUNNING, **more})


def state(number: int, of: Size, **more: Any) -> NodeState:
    return examples.node_state(number, **{"arena_bytes": of.arena_bytes, "used_bytes": 3 * MIB, **more})


def told_size(of: Size) -> str:
    return str(of.arena_bytes)


def look(pods: list[Pod], states: list[NodeState], wanted: Size, **rules: Any) -> Roll:
    nodes = {pod.uid: state for pod, state in zip(pods, states, strict=True)}
    return roll_nodes(pods, wanted.template_hash, nodes, Rules(**{"desired": len(pods), "size": wanted, **rules}))


def only(roll: Roll) -> PodAction:
    (action,) = roll.actions
    return action


SMALL, LARGE = size(100), size(300)
HELD: dict[str, Any] = {"fenced": True, "joined": False}


def test_a_larger_arena_gets_its_memory_first() -> None:
    """The node serves until the kubelet has given the memory; only then it is fenced, flushed and told."""
    pod, now = node_pod(0, SMALL), state(0, SMALL)
    step = only(look([pod], [now], LARGE))
    assert (step.kind, step.memory) == (ActionKind.RESIZE_POD, LARGE.memory)
    asked = replace(pod, memory=PodMemory(asked=LARGE.memory, given=SMALL.memory))
    assert look([asked], [now], LARGE).actions == ()
    full = replace(pod, memory=PodMemory(asked=LARGE.memory, given=LARGE.memory))
    assert only(look([full], [now], LARGE)).kind is ActionKind.FENCE
    held = replace(now, **HELD)
    assert only(look([full], [held], LARGE)).kind is ActionKind.FLUSH
    step = only(look([full], [replace(held, flushed=True)], LARGE))
    assert (step.kind, step.arena_bytes) == (ActionKind.RESIZE_ARENA, LARGE.arena_bytes)
    assert dict(step.annotations)[names.TEMPLATE_HASH] == LARGE.template_hash


def test_a_smaller_arena_gives_its_memory_back_afterwards() -> None:
    """Less memory before less arena would have the kernel end the node."""
    pod, held = node_pod(0, LARGE), state(0, LARGE, flushed=True, **HELD)
    assert only(look([pod], [held], SMALL)).kind is ActionKind.RESIZE_ARENA
    marks = {**pod.annotations, names.TEMPLATE_HASH: SMALL.template_hash, names.RESIZING: told_size(SMALL)}
    told = replace(pod, annotations=marks)
    assert look([told], [state(0, LARGE, reachable=False)], SMALL).actions == ()
    step = only(look([told], [state(0, SMALL)], SMALL))
    assert (step.kind, step.memory) == (ActionKind.RESIZE_POD, SMALL.memory)
    assert dict(step.annotations) == {names.RESIZING: None}


def test_only_a_size_is_changed_in_place() -> None:
    """What differs in anything else, or was made before there were shapes, has its pod replaced."""
    other = size(300, shape="another")
    pod, held = node_pod(0, SMALL), state(0, SMALL, flushed=True, **HELD)
    assert only(look([pod], [held], other)).kind is ActionKind.DELETE_POD
    older = replace(pod, annotations={names.TEMPLATE_HASH: SMALL.template_hash})
    assert only(look([older], [held], LARGE)).kind is ActionKind.DELETE_POD
    assert only(look([pod], [held], LARGE, size=None)).kind is ActionKind.DELETE_POD


def test_what_was_known_of_a_node_before_it_began_anew_lets_nobody_in_or_out() -> None:
    """It was held then; its pod is marked already, and its new life has not been heard of."""
    marks = {**node_pod(0, LARGE).annotations, names.RESIZING: told_size(LARGE)}
    pod = node_pod(0, LARGE, annotations=marks)
    late = state(0, SMALL, flushed=True, fenced_seconds=3_000.0, **HELD)
    roll = look([pod, node_pod(1, SMALL)], [late, state(1, SMALL)], LARGE)
    assert roll.actions == ()
    assert "no member of the index yet" in roll.waiting_for


def test_a_machine_without_room_keeps_its_node() -> None:
    """A new pod would find no room either: the roll stops and says the kubelet's words, and the node serves on."""
    words = "Node didn't have enough capacity: memory, requested: 9, capacity: 8"
    asked = PodMemory.parse(resized_pod("PodResizePending", "Infeasible", words), "cache-node")
    assert not asked.infeasible
    pod = node_pod(0, SMALL, memory=asked._replace(asked=LARGE.memory, given=SMALL.memory))
    roll = look([pod], [state(0, SMALL)], LARGE)
    assert (roll.actions, roll.stuck, roll.losing) == ((), words, "")
    smaller = size(50)
    assert only(look([pod], [state(0, SMALL)], smaller)).kind is ActionKind.RESIZE_POD


def test_what_a_kubelet_can_not_do_costs_the_content_and_that_is_told() -> None:
    """Its pod is replaced, fenced and flushed as ever; how much is lost and why is said with every step."""
    words = "static CPU manager policy"
    asked = PodMemory.parse(resized_pod("PodResizePending", "Infeasible", words), "cache-node")
    pod = node_pod(0, SMALL, memory=asked._replace(asked=LARGE.memory, given=SMALL.memory))
    roll = look([pod], [state(0, SMALL)], LARGE)
    assert only(roll).kind is ActionKind.FENCE
    assert "loses the 3 MiB" in roll.losing
    assert words in roll.losing
    roll = look([pod], [state(0, SMALL, flushed=True, **HELD)], LARGE)
    assert (only(roll).kind, bool(roll.losing)) == (ActionKind.DELETE_POD, True)


@pytest.mark.parametrize("final", [True, False])
def test_a_refusal_that_a_person_can_lift_costs_nothing(final: bool) -> None:
    """A quota or a role is waited for; what is impossible for this pod has it replaced."""
    refusals = {"pod-0": Refusal("exceeded quota", final=final)}
    roll = look([node_pod(0, SMALL)], [state(0, SMALL)], LARGE, unresizable=refusals)
    if final:
        assert only(roll).kind is ActionKind.FENCE
        assert "exceeded quota" in roll.losing
    else:
        assert (roll.actions, roll.stuck, roll.losing) == ((), "exceeded quota", "")


def test_a_node_that_kept_its_size_is_replaced_and_not_asked_for_ever() -> None:
    """It found no room for the new arena, and serves with the one before."""
    marks = {**node_pod(0, LARGE).annotations, names.RESIZING: told_size(LARGE)}
    pod = node_pod(0, LARGE, annotations=marks)
    step = only(look([pod], [state(0, SMALL)], LARGE))
    assert step.kind is ActionKind.ANNOTATE_POD
    marks = {name: value for name, value in {**marks, **dict(step.annotations)}.items() if value is not None}
    kept = replace(pod, annotations=marks)
    roll = look([kept], [state(0, SMALL)], LARGE)
    assert only(roll).kind is ActionKind.FENCE
    assert "found no room" in roll.losing
    assert only(look([kept], [state(0, SMALL)], SMALL)).kind is not ActionKind.FENCE


def test_a_pod_that_does_not_run_is_replaced_at_once() -> None:
    """A capacity that no node could hold is mended by the next one, in a new pod."""
    crashing = (Container(name="cache-node", waiting_reason="CrashLoopBackOff"),)
    broken = node_pod(0, LARGE, ready=False, containers=crashing)
    assert only(look([broken], [state(0, LARGE, reachable=False)], SMALL)).kind is ActionKind.DELETE_POD
    begins = node_pod(0, SMALL, ready=False)
    assert look([begins], [state(0, SMALL, reachable=False)], LARGE).actions == ()


def test_kernels_round_what_they_are_asked_for() -> None:
    """A limit that is no whole page comes as a little less, and is as good."""
    odd = Memory(1_000_000_001, 1_000_000_001)
    assert odd.is_as_good_as(Memory(odd.request_bytes, odd.limit_bytes // 4096 * 4096))
    assert not odd.is_as_good_as(Memory(odd.request_bytes, odd.limit_bytes - 8192))


def resized_pod(condition: str, reason: str, message: str) -> Manifest:
    told = {"type": condition, "status": "True", "reason": reason, "message": message}
    return {"metadata": {}, "status": {"conditions": [told]}}


# Pools ----------------------------------------------------------------------------------------------------------------


def template(**spec: Any) -> Manifest:
    found = examples.named(plan_pool(examples.pool(**spec), examples.pool_world()).apply, "DaemonSet")
    return dict(found["spec"]["template"])


def capacity(text: str, **more: Any) -> dict[str, Any]:
    return {"tiers": {"memory": {"capacity": text, **more}}}


def test_a_templates_shape_is_all_of_it_but_its_size() -> None:
    """Capacity and memory leave it as it is, everything else changes it."""
    marks = template()["metadata"]["annotations"]
    larger = template(**capacity("9Gi"))["metadata"]["annotations"]
    assert larger[names.SHAPE_HASH] == marks[names.SHAPE_HASH]
    assert larger[names.TEMPLATE_HASH] != marks[names.TEMPLATE_HASH]
    beside = template(resources={"limits": {"memory": "2Gi"}})["metadata"]["annotations"]
    assert beside[names.SHAPE_HASH] == marks[names.SHAPE_HASH]
    for spec in ({"logLevel": "debug"}, {"resources": {"limits": {"cpu": "9"}}}, capacity("8Gi", hugePages="2Mi")):
        assert template(**spec)["metadata"]["annotations"][names.SHAPE_HASH] != marks[names.SHAPE_HASH]


def test_a_size_is_what_the_container_is_told_and_given() -> None:
    """The arena of its environment, the memory of its resources; an arena of huge pages is the machine's and can't change."""
    found = size_of(template(**capacity("9Gi")))
    assert found is not None
    assert found.arena_bytes == 9 << 30
    assert found.memory.limit_bytes > 9 << 30
    assert size_of(template(**capacity("8Gi", hugePages="2Mi"))) is None


def resizing(unresizable: dict[str, Refusal] | None = None) -> Plan:
    """A pool whose capacity has been raised, and one node of the old one."""
    before = size_of(template())
    after = examples.pool(**capacity("9Gi"))
    assert before is not None
    seen = {"desiredNumberScheduled": 1, "currentNumberScheduled": 1, "observedGeneration": 1}
    live = examples.live(plan_pool(after, examples.pool_world()).apply, DaemonSet=seen)
    world = examples.pool_world(
        children=live,
        pods=(node_pod(0, before),),
        nodes={"pod-0": state(0, before)},
        unresizable=unresizable or {},
    )
    return plan_pool(after, world)


def test_a_pool_gives_its_nodes_the_capacity_that_it_now_says() -> None:
    """From the two templates alone, with what the resource says of memory beside the arena."""
    (action,) = resizing().actions
    assert action.kind is ActionKind.RESIZE_POD
    assert action.memory is not None
    assert action.memory.limit_bytes > 9 << 30


def test_what_a_change_costs_is_told_by_condition_and_event() -> None:
    """Whoever looks while it happens, or afterwards, learns what was lost and why."""
    plan = resizing({"pod-0": Refusal("Pod QOS Class may not change", final=True)})
    progressing = examples.condition(plan.status, "Progressing")
    assert (progressing["status"], progressing["reason"]) == ("True", "RollingNodes")
    assert "loses what it holds: Pod QOS Class may not change" in progressing["message"]
    (event,) = [event for event in plan.events if event.reason == "ContentLost"]
    assert event.type == "Warning"
    assert "cache node node-0 loses the 3 MiB" in event.message


# Any order ------------------------------------------------------------------------------------------------------------


class Machines:
    """Nodes, kubelets and an operator that is killed now and then; every one does what it should some time."""

    def __init__(self, count: int, begin: Size) -> None:
        self.pods = {number: node_pod(number, begin) for number in range(count)}
        self.states = {number: state(number, begin) for number in range(count)}
        self.wanted = begin
        self.begins: dict[int, int] = {}

    @property
    def away(self) -> int:
        return sum(not one.joined for one in self.states.values())

    def look(self) -> Roll:
        return look(list(self.pods.values()), list(self.states.values()), self.wanted)

    def obey(self, action: PodAction, *, killed: bool) -> None:
        """`killed`: the operator ends before it has written on the pod what it has done."""
        number = int(action.member.removeprefix("node-"))
        now = self.states[number]
        match action.kind:
            case ActionKind.FENCE:
                self.states[number] = replace(now, **HELD)
            case ActionKind.FLUSH:
                self.states[number] = replace(now, flushed=True)
            case ActionKind.UNFENCE:
                self.states[number] = replace(now, fenced=False, joined=True)
            case ActionKind.RESIZE_POD:
                self.resize_pod(number, action, killed=killed)
            case ActionKind.RESIZE_ARENA:
                self.resize_arena(number, action, killed=killed)
            case _:
                raise AssertionError(f"{action.kind} loses what the node holds")

    def resize_pod(self, number: int, action: PodAction, *, killed: bool) -> None:
        ends = dict(action.annotations) == {names.RESIZING: None}
        if not ends:
            self.mark(number, dict(action.annotations))
        if ends or not killed:
            pod = self.pods[number]
            self.pods[number] = replace(pod, memory=pod.memory._replace(asked=action.memory))
        if ends and not killed:
            self.mark(number, dict(action.annotations))

    def resize_arena(self, number: int, action: PodAction, *, killed: bool) -> None:
        pod, now = self.pods[number], self.states[number]
        assert pod.memory.given is not None
        assert pod.memory.given.limit_bytes >= action.arena_bytes + BESIDE
        self.mark(number, {names.RESIZING: str(action.arena_bytes)})
        if action.arena_bytes != now.arena_bytes:
            assert now.fenced
            self.begins[number] = action.arena_bytes
            self.states[number] = replace(now, reachable=False, joined=False)
        if not killed:
            self.mark(number, dict(action.annotations))

    def mark(self, number: int, more: dict[str, str | None]) -> None:
        marks = {**self.pods[number].annotations, **more}
        kept = {name: value for name, value in marks.items() if value is not None}
        self.pods[number] = replace(self.pods[number], annotations=kept)

    def happen(self, what: int) -> None:
        """Kubelets give memory, nodes begin anew: never less memory than the arena needs."""
        for number, pod in self.pods.items():
            if what > 0 and pod.memory.asked is not None:
                needs = self.begins.get(number, self.states[number].arena_bytes)
                assert pod.memory.asked.limit_bytes >= needs + BESIDE
                self.pods[number] = replace(pod, memory=pod.memory._replace(given=pod.memory.asked))
            if what > 1 and number in self.begins:
                arena = self.begins.pop(number)
                self.states[number] = replace(state(number, self.wanted), arena_bytes=arena)


@given(
    st.integers(1, 4),
    st.lists(st.sampled_from([50, 100, 300]), min_size=1, max_size=3),
    st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=12),
)
@example(2, [50, 300, 100], [(0, True), (0, False), (0, True), (2, False)])
def test_whatever_is_late_or_taken_back_no_node_is_lost(
    count: int, wishes: list[int], turns: list[tuple[int, bool]]
) -> None:
    """However slow kubelets and nodes are, whenever the operator is killed and the wish changes: no pod is deleted, one node at most is
    away, none has less memory than its arena needs, and in the end all are as wished, with nothing left over."""
    machines, later = Machines(count, SMALL), [size(mib) for mib in wishes]
    for step in range(STEPS_MAX):
        if later and step % 9 == 0:
            machines.wanted = later.pop(0)
        roll = machines.look()
        if roll.done and not later:
            break
        happens, killed = (2, False) if step % 5 == 4 else turns[step % len(turns)]
        for action in roll.actions:
            machines.obey(action, killed=killed)
        assert machines.away <= 1
        machines.happen(happens)
    assert machines.look().done
    for number, pod in machines.pods.items():
        assert machines.states[number].arena_bytes == machines.wanted.arena_bytes
        assert pod.memory == PodMemory(asked=machines.wanted.memory, given=pod.memory.given)
        assert names.RESIZING not in pod.annotations
