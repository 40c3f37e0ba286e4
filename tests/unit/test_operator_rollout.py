"""The roll of cache nodes, one at a time, and who goes first when there are to be fewer engines."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import operator_examples as examples
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_operator import names
from kvcommons_operator.observed import Container, NodeState, Pod
from kvcommons_operator.outcome import ActionKind
from kvcommons_operator.rollout import Roll, Rules, Warmth, deletion_costs, followed, roll_nodes

OLD, NEW = "old", "new"
NODES_MAX = 6
STEPS_MAX = 400


def look(pods: list[Pod], states: list[NodeState], **rules: Any) -> Roll:
    nodes = {pod.uid: state for pod, state in zip(pods, states, strict=True)}
    return roll_nodes(pods, NEW, nodes, Rules(**{"desired": len(pods), **rules}))


def kinds(roll: Roll) -> list[tuple[ActionKind, str]]:
    return [(action.kind, action.member) for action in roll.actions]


def test_a_node_is_fenced_then_flushed_then_its_pod_is_deleted() -> None:
    """Each look gives the next step of one node, and nothing of the other."""
    pods = [examples.node_pod(number, OLD) for number in range(2)]
    states = [examples.node_state(number) for number in range(2)]
    assert kinds(look(pods, states)) == [(ActionKind.FENCE, "node-0")]
    states[0] = replace(states[0], fenced=True, joined=False)
    assert kinds(look(pods, states)) == [(ActionKind.FLUSH, "node-0")]
    states[0] = replace(states[0], flushed=True)
    assert kinds(look(pods, states)) == [(ActionKind.DELETE_POD, "node-0")]


def test_the_next_node_waits_until_the_last_is_back() -> None:
    """While a pod is going, is missing, is not ready or is still fenced, no other is touched."""
    outdated, fresh = examples.node_pod(1, OLD), examples.node_pod(0, NEW)
    states = [examples.node_state(0), examples.node_state(1)]
    going = replace(examples.node_pod(0, OLD), deleting=True)
    assert look([going, outdated], states).actions == ()
    assert look([outdated], states[1:], desired=2).actions == ()
    assert look([replace(fresh, ready=False), outdated], states).actions == ()
    held = look([fresh, outdated], [replace(states[0], fenced=True), states[1]])
    assert kinds(held) == [(ActionKind.UNFENCE, "node-0")]
    assert kinds(look([fresh, outdated], states)) == [(ActionKind.FENCE, "node-1")]


def test_a_node_that_does_not_come_back_stops_the_roll() -> None:
    """What keeps the new pod from starting is named, and no further node is risked."""
    waiting = Container(name="cache-node", waiting_reason="ImagePullBackOff", waiting_message="no such image")
    broken = examples.node_pod(0, NEW, ready=False, containers=(waiting,))
    roll = look([broken, examples.node_pod(1, OLD)], [examples.node_state(0, reachable=False), examples.node_state(1)])
    assert roll.actions == ()
    assert "no such image" in roll.stuck
    assert roll.requeue_seconds is not None


def test_a_broken_node_goes_first_when_the_wish_has_changed_again() -> None:
    """The remedy reaches the node that the last change broke before it reaches any that serves."""
    broken = examples.node_pod(1, OLD, ready=False)
    pods = [examples.node_pod(0, OLD), broken, examples.node_pod(2, OLD)]
    states = [examples.node_state(number) for number in range(3)]
    assert kinds(look(pods, states)) == [(ActionKind.DELETE_POD, "node-1")]


def test_a_node_that_does_not_answer_is_replaced_only_after_it_was_asked_in_vain_for_a_while() -> None:
    """One lost answer is no proof: a ready node is given up after three in ten seconds. One that is not ready serves nobody anyway."""
    pods = [examples.node_pod(0, OLD)]
    silent = examples.node_state(0, reachable=False, unanswered=1)
    roll = look(pods, [silent])
    assert (roll.actions, roll.waiting_for) == ((), "cache node node-0, which does not answer")
    assert look(pods, [replace(silent, unanswered=5, unanswered_seconds=9.0)]).actions == ()
    assert look(pods, [replace(silent, unanswered=2, unanswered_seconds=60.0)]).actions == ()
    given_up = replace(silent, unanswered=3, unanswered_seconds=10.0)
    assert kinds(look(pods, [given_up])) == [(ActionKind.DELETE_POD, "node-0")]
    dead = [replace(pods[0], ready=False)]
    assert kinds(roll_nodes(dead, NEW, {}, Rules(desired=1))) == [(ActionKind.DELETE_POD, "node-0")]


def test_answers_that_do_not_come_are_counted_with_their_time() -> None:
    """From the first of them on; one that comes begins anew."""
    well, silent = examples.node_state(0), examples.node_state(0, reachable=False)
    first = followed(well, silent, 30.0)
    assert (first.unanswered, first.unanswered_seconds) == (1, 0.0)
    second = followed(first, silent, 2.0)
    third = followed(second, silent, 4.0)
    assert (third.unanswered, third.unanswered_seconds) == (3, 6.0)
    assert followed(third, well, 8.0).unanswered == 0
    assert followed(None, silent, 0.0).unanswered == 1


def test_a_flush_has_an_end() -> None:
    """A node whose memory can't be written down is replaced all the same, once it has had its time."""
    pods = [examples.node_pod(0, OLD)]
    state = examples.node_state(0, fenced=True, joined=False)
    held = followed(followed(state, state, 9.0), state, 2.0)
    assert held.fenced_seconds == 11.0
    assert kinds(look(pods, [held], flush_seconds_max=12.0)) == [(ActionKind.FLUSH, "node-0")]
    assert kinds(look(pods, [held], flush_seconds_max=11.0)) == [(ActionKind.DELETE_POD, "node-0")]


def test_a_node_whose_change_is_taken_back_is_let_in_again() -> None:
    """Held for a template that nobody wants any more, it would be out of the index for ever; nothing else happens before it is back.
    One that can't be let in again, since it is too old to know how, is replaced."""
    pods = [examples.node_pod(0, NEW), examples.node_pod(1, OLD)]
    held = examples.node_state(0, fenced=True, joined=False)
    assert kinds(look(pods, [held, examples.node_state(1)])) == [(ActionKind.UNFENCE, "node-0")]
    late = replace(held, fenced_seconds=31.0)
    assert kinds(look(pods, [late, examples.node_state(1)])) == [(ActionKind.DELETE_POD, "node-0")]
    assert kinds(look(pods[:1], [held], rolling=False)) == [(ActionKind.UNFENCE, "node-0")]


def test_a_node_that_is_left_to_the_user_is_not_held() -> None:
    """With a strategy that became OnDelete in the middle of a roll, the node that was begun goes on serving as it is."""
    pods, held = [examples.node_pod(0, OLD)], examples.node_state(0, fenced=True, joined=False)
    assert look(pods, [held], rolling=False).actions == ()
    roll = look(pods, [held], rolling=False, release_outdated=True)
    assert kinds(roll) == [(ActionKind.UNFENCE, "node-0")]


def test_the_next_node_waits_until_the_last_is_a_member_again() -> None:
    """A pod that is ready and not yet in the index is not back; one that does not answer the operator stops the roll, with why."""
    pods = [examples.node_pod(0, NEW), examples.node_pod(1, OLD)]
    roll = look(pods, [examples.node_state(0, joined=False), examples.node_state(1)])
    assert (roll.actions, roll.stuck) == ((), "")
    assert "no member of the index yet" in roll.waiting_for
    silent = examples.node_state(0, reachable=False, unanswered=3, unanswered_seconds=14.0)
    roll = look(pods, [silent, examples.node_state(1)])
    assert roll.actions == ()
    assert "NetworkPolicies" in roll.stuck
    assert look(pods[:1], [silent]).done


def test_a_machine_that_is_gone_with_its_pod_holds_no_roll_up() -> None:
    """Kubernetes keeps the pod of a dead machine for ever: past its time nobody waits for it, and the others are rolled."""
    dead = replace(examples.node_pod(0, OLD), deleting=True, ready=False, deleting_since="2026-11-23T05:59:20Z")
    pods, states = [dead, examples.node_pod(1, OLD)], [examples.node_state(0), examples.node_state(1)]
    early = look(pods, states, now="2026-11-23T05:59:50Z")
    assert (early.actions, early.lost) == ((), ())
    late = look(pods, states, now=examples.NOW)
    assert (kinds(late), late.lost) == ([(ActionKind.FENCE, "node-1")], ("node-0",))
    assert look([dead, examples.node_pod(1, NEW)], states, now=examples.NOW).done


def test_nothing_goes_before_all_nodes_were_asked() -> None:
    """A new leader does not know yet which node its predecessor has fenced: another one beside it would be a second one away, and
    unfenced at that."""
    pods = [examples.node_pod(number, OLD) for number in range(2)]
    states = {pods[1].uid: examples.node_state(1, fenced=True, flushed=True)}
    roll = roll_nodes(pods, NEW, states, Rules(desired=2))
    assert (roll.actions, roll.done) == ((), False)
    assert roll.requeue_seconds is not None
    asked = states | {pods[0].uid: examples.node_state(0)}
    assert kinds(roll_nodes(pods, NEW, asked, Rules(desired=2))) == [(ActionKind.DELETE_POD, "node-1")]


def test_a_node_that_was_begun_is_finished_first() -> None:
    """A new operator leader goes on with the node that its predecessor has fenced."""
    pods = [examples.node_pod(number, OLD) for number in range(3)]
    states = [examples.node_state(number, fenced=number == 2, flushed=True) for number in range(3)]
    assert kinds(look(pods, states)) == [(ActionKind.DELETE_POD, "node-2")]


def test_on_delete_touches_nothing() -> None:
    """With updateStrategy OnDelete what is outdated is counted and left to the user."""
    roll = look([examples.node_pod(0, OLD)], [examples.node_state(0)], rolling=False)
    assert (roll.outdated, roll.actions, roll.done) == (1, (), False)


def test_a_finished_roll_asks_for_nothing() -> None:
    """With every node as wished there is no step and no reason to look again soon."""
    roll = look([examples.node_pod(0, NEW)], [examples.node_state(0)])
    assert (roll.done, roll.actions, roll.requeue_seconds) == (True, (), None)


class Cluster:
    """Nodes that do what they are told, some of them late; counts how many are away by our doing."""

    def __init__(self, size: int) -> None:
        self.pods = {number: examples.node_pod(number, OLD) for number in range(size)}
        self.states = {number: examples.node_state(number) for number in range(size)}
        self.steps: list[tuple[ActionKind, str]] = []
        self.lives = 0

    @property
    def away(self) -> int:
        serving = [n for n, pod in self.pods.items() if pod.ready and not pod.deleting and not self.states[n].fenced]
        return len(self.states) - len(serving)

    def look(self) -> Roll:
        nodes = {pod.uid: self.states[number] for number, pod in self.pods.items()}
        return roll_nodes(list(self.pods.values()), NEW, nodes, Rules(desired=len(self.states)))

    def obey(self, roll: Roll) -> None:
        for action in roll.actions:
            self.steps.append((action.kind, action.member))
            number = int(action.member.removeprefix("node-"))
            match action.kind:
                case ActionKind.FENCE:
                    self.states[number] = replace(self.states[number], fenced=True, joined=False)
                case ActionKind.FLUSH:
                    self.states[number] = replace(self.states[number], flushed=True)
                case _:
                    self.pods[number] = replace(self.pods[number], deleting=True, ready=False)

    def happen(self, what: int) -> None:
        """Something that the kubelet does sooner or later: a pod is gone, made again, or ready."""
        for number in list(self.states):
            pod = self.pods.get(number)
            if pod is not None and pod.deleting and what > 0:
                del self.pods[number]
            elif pod is None and what > 1:
                self.lives += 1
                made = examples.node_pod(number, NEW, ready=False)
                self.pods[number] = replace(made, uid=f"life-{self.lives}")
                self.states[number] = examples.node_state(number, reachable=False)
            elif pod is not None and not pod.ready and what > 2:
                self.pods[number] = replace(pod, ready=True)
                self.states[number] = examples.node_state(number)


@given(st.integers(1, NODES_MAX), st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_whatever_is_late_never_two_nodes_are_away_and_all_are_rolled(size: int, delays: list[int]) -> None:
    """However slowly pods go and come, one node at most is away, each is fenced and flushed before it goes, and the roll ends."""
    cluster = Cluster(size)
    for step in range(STEPS_MAX):
        roll = cluster.look()
        if roll.done:
            break
        cluster.obey(roll)
        assert cluster.away <= 1
        cluster.happen(3 if step % 7 == 6 else delays[step % len(delays)])
        assert cluster.away <= 1
    assert cluster.look().done
    order = [ActionKind.FENCE, ActionKind.FLUSH, ActionKind.DELETE_POD]
    assert cluster.steps == [(kind, f"node-{number}") for number in range(size) for kind in order]


def costs_of(pods: list[Pod], warmth: dict[str, Warmth]) -> dict[str, int]:
    """What is written on pods, by name."""
    return {
        action.pod: int(dict(action.annotations)[names.DELETION_COST] or "") for action in deletion_costs(pods, warmth)
    }


def test_the_coldest_engine_is_the_first_to_go() -> None:
    """The cost of deletion tells what would be lost with a cache: what was reused before what is there."""
    pods = [examples.engine_pod(n) for n in range(4)]
    warmth = {
        "chat-engine-0": Warmth(hits=1000, chunks=10),
        "chat-engine-1": Warmth(hits=2, chunks=2**40),
        "chat-engine-2": Warmth(hits=2),
    }
    costs = costs_of(pods, warmth)
    assert sorted(costs, key=costs.__getitem__) == [f"chat-engine-{n}" for n in (3, 2, 1, 0)]
    assert 0 <= min(costs.values()) < max(costs.values()) < 2**31


def test_costs_are_written_only_when_their_magnitude_changes() -> None:
    """Counts that grow a little cost no request, and neither does what happens to other engines."""
    costs = costs_of(pods := [examples.engine_pod(n) for n in range(3)], {pod.name: Warmth(hits=70) for pod in pods})
    marked = [
        examples.engine_pod(n, annotations={names.DELETION_COST: str(costs[f"chat-engine-{n}"])}) for n in range(3)
    ]
    assert costs_of(marked, {pod.name: Warmth(hits=70 + 20 * n) for n, pod in enumerate(marked)}) == {}
    more = [examples.engine_pod(9, ready=False), *marked, examples.engine_pod(8)]
    warmth = {pod.name: Warmth(hits=70) for pod in marked}
    assert costs_of(more, warmth) == {"chat-engine-8": 0}
    assert list(costs_of(marked, {**warmth, "chat-engine-0": Warmth(hits=10**6)})) == ["chat-engine-0"]


def test_a_single_engine_has_no_cost() -> None:
    """With one engine there is nothing to choose, and nothing is written."""
    assert deletion_costs([examples.engine_pod(0)], {}) == ()
