"""Which pods are asked how they are, and when: the new and the unwell at once, the others at a bounded rate, nobody without need."""

from __future__ import annotations

import asyncio

import pytest
from kvcommons_operator import names
from kvcommons_operator.observed import NodeState, Pod
from kvcommons_operator.reconcile.nodes import Address
from kvcommons_operator.reconcile.poller import (
    INTERVAL_SECONDS,
    INTERVAL_SECONDS_MIN,
    Poller,
    Target,
    node_settled,
    node_shape,
    with_shares,
)
from kvcommons_operator.reconcile.resources import Id

POOL = Id(names.POOL_KIND, "llm", "commons")
PER_SECOND = 20


class World:
    """Nodes that answer what they are told to, and a clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.changed: list[Id] = []
        self.well: dict[str, bool] = {}
        self.pool_known = True
        self.held: asyncio.Event | None = None
        self.poller: Poller[NodeState] = Poller(
            lambda pod: pod.phase == "Running",
            lambda pod: Target(POOL, pod, pod.node, Address(pod.ip, "token")) if self.pool_known else None,
            self._ask,
            node_shape,
            node_settled,
            self.changed.append,
            PER_SECOND,
            clock=lambda: self.now,
        )

    async def _ask(self, target: Target) -> NodeState:
        self.asked.append(target.pod.uid)
        if self.held is not None:
            await self.held.wait()
        return NodeState(member=target.member, joined=self.well.get(target.pod.uid, True))

    def add(self, *uids: str) -> None:
        for uid in uids:
            self.poller.pod_changed(None, pod(uid))

    async def at(self, seconds: float) -> list[str]:
        """Who is asked in a round at that time."""
        self.now = seconds
        self.asked.clear()
        self.poller.tick()
        for _ in range(5):
            await asyncio.sleep(0)
        return list(self.asked)


def pod(uid: str, phase: str = "Running") -> Pod:
    return Pod(namespace="llm", name=f"node-{uid}", uid=uid, node=uid, ip="127.0.0.1", phase=phase)


@pytest.fixture
def world() -> World:
    return World()


async def test_a_thousand_new_nodes_are_known_within_seconds_and_then_left_alone(world: World) -> None:
    """Each is asked once, at ten times the rate of those that are well; those then share the ordinary rate."""
    world.add(*(f"u{number:03}" for number in range(1_000)))
    rounds = [await world.at(number / 2) for number in range(10)]
    assert [len(one) for one in rounds] == [PER_SECOND * 5] * 10
    assert len({uid for one in rounds for uid in one}) == 1_000
    assert len(world.changed) == 1_000
    assert await world.at(5.5) == []
    assert len(await world.at(INTERVAL_SECONDS + 10)) == PER_SECOND / 2


async def test_a_node_that_is_not_well_is_asked_again_soon_and_then_less_often(world: World) -> None:
    """Until it is: then whoever plans is told, and it is asked once an interval."""
    world.add("a")
    world.well["a"] = False
    assert await world.at(0.0) == ["a"]
    due = INTERVAL_SECONDS_MIN
    for pause in (4.0, 8.0):
        assert await world.at(due - 0.1) == []
        assert await world.at(due) == ["a"]
        due += pause
    assert world.changed == [POOL]
    world.well["a"] = True
    assert await world.at(due) == ["a"]
    assert world.changed == [POOL, POOL]
    assert await world.at(due + INTERVAL_SECONDS - 0.1) == []
    assert await world.at(due + INTERVAL_SECONDS) == ["a"]


async def test_one_that_was_told_to_do_something_is_asked_at_once_even_while_it_is_asked(world: World) -> None:
    """The answer that is under way may be older than what it was told."""
    world.add("a")
    await world.at(0.0)
    world.poller.urge("a")
    assert await world.at(1.0) == ["a"]
    world.held = asyncio.Event()
    world.poller.urge("a")
    assert await world.at(2.0) == ["a"]
    world.poller.urge("a")
    assert await world.at(3.0) == []
    world.held.set()
    assert await world.at(4.0) == []
    assert await world.at(5.0) == ["a"]


async def test_who_is_gone_or_replaced_is_not_asked(world: World) -> None:
    """And nothing of a former pod is believed of the one that has its name."""
    world.add("a", "b")
    await world.at(0.0)
    world.poller.pod_changed(pod("a"), None)
    world.poller.pod_changed(pod("b"), pod("c"))
    assert world.poller.state("a") is None
    assert world.poller.state("b") is None
    assert await world.at(100.0) == ["c"]
    world.poller.pod_changed(pod("c"), pod("c", "Failed"))
    assert await world.at(200.0) == []


async def test_a_pod_whose_pool_is_not_known_yet_is_asked_when_it_is(world: World) -> None:
    """Pods are listed before pools when an operator begins."""
    world.pool_known = False
    world.add("a")
    assert await world.at(0.0) == []
    world.pool_known = True
    assert await world.at(INTERVAL_SECONDS_MIN) == ["a"]


async def test_one_slow_node_keeps_no_other_waiting(world: World) -> None:
    """A round does not wait for the answers of the one before."""
    world.held = asyncio.Event()
    world.add("a")
    assert await world.at(0.0) == ["a"]
    world.add("b")
    assert await world.at(0.5) == ["b"]
    world.held.set()
    await world.at(1.0)
    assert {uid for uid in "ab" if world.poller.state(uid) is not None} == {"a", "b"}


def test_a_share_is_told_in_coarse_steps() -> None:
    """The first one is told; then only a move of ten points counts, however much the counters move."""
    first = with_shares(None, NodeState(member="a", hits=1, asked=2, used_bytes=1, arena_bytes=10))
    assert (first.hit_percent, first.used_percent) == (50, 10)
    near = with_shares(first, NodeState(member="a", hits=1_180, asked=2_000, used_bytes=1, arena_bytes=10))
    assert node_shape(near) == node_shape(first)
    far = with_shares(near, NodeState(member="a", hits=1_200, asked=2_000, used_bytes=1, arena_bytes=10))
    assert far.hit_percent == 60
    assert node_shape(far) != node_shape(first)
    assert with_shares(None, NodeState(member="a")).hit_percent is None
