"""Steps on single pods at the wire: what the API server and a cache node are asked for, in which order, and what a refusal becomes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import operator_examples as examples
import pytest
from control_stand_in import ControlStandIn
from fake_api import Failure, FakeApi, fake_api
from kvcommons_operator import names
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.outcome import ActionKind, PodAction
from kvcommons_operator.pod_memory import Memory
from kvcommons_operator.reconcile.fence import Fencer
from kvcommons_operator.reconcile.nodes import NodeClient
from kvcommons_operator.reconcile.resources import Id
from kvcommons_operator.reconcile.steps import AGAIN_SECONDS, FINAL_SECONDS, Steps

KEY = Id(names.POOL_KIND, "llm", "commons")
ADDRESS = "127.94.72.1"
POD = "/api/v1/namespaces/llm/pods/commons-node-0"
RESIZED: Any = {"memory": Memory(2 << 30, 3 << 30), "annotations": ((names.RESIZING, "true"),)}
RETURNED: Any = {"memory": Memory(1 << 30, 1 << 30), "annotations": ((names.RESIZING, None),)}
ARENA: Any = {"arena_bytes": 2 << 30, "annotations": ((names.TEMPLATE_HASH, "new"),)}


@pytest.fixture
def node() -> Iterator[ControlStandIn]:
    made = ControlStandIn(ADDRESS, "node-0").start()
    yield made
    made.stop()


class Work:
    """Steps of one cache node, with a clock that stands still."""

    def __init__(self, client: KubeClient, nodes: NodeClient) -> None:
        self.now, self.urged = 100.0, list[str]()
        pod = replace(examples.node_pod(0, "old"), ip=ADDRESS)
        self.steps = Steps(
            client,
            nodes,
            Fencer(nodes, OperatorMetrics(), lambda pod: ()),
            cache_nodes=lambda key: ((pod,), "token"),
            urge=self.urged.append,
            clock=lambda: self.now,
        )

    async def take(self, kind: ActionKind, **more: Any) -> None:
        action = PodAction(kind=kind, namespace="llm", pod="commons-node-0", uid="pod-0", member="node-0", **more)
        await self.steps.take(KEY, action)

    @property
    def refusal(self) -> tuple[str, bool] | None:
        return self.steps.refusal("pod-0")


async def worked(*steps: tuple[ActionKind, dict[str, Any]], failures: tuple[Failure, ...] = ()) -> tuple[FakeApi, Work]:
    nodes = NodeClient()
    try:
        async with fake_api() as (api, client):
            work = Work(client, nodes)
            api.failures.extend(failures)
            for kind, more in steps:
                await work.take(kind, **more)
            return api, work
    finally:
        await nodes.close()


def paths(api: FakeApi) -> list[str]:
    return [path.removeprefix(POD) for _, path, _ in api.asked]


async def test_a_pod_is_marked_before_its_memory_grows_and_until_it_is_given_back() -> None:
    """Whoever comes after an operator that was killed in between sees that something was begun."""
    api, work = await worked((ActionKind.RESIZE_POD, RESIZED), (ActionKind.RESIZE_POD, RETURNED))
    assert paths(api) == ["", "/resize", "/resize", ""]
    assert api.bodies[1] == {
        "metadata": {"uid": "pod-0"},
        "spec": {
            "containers": [
                {
                    "name": "cache-node",
                    "resources": {"requests": {"memory": str(2 << 30)}, "limits": {"memory": str(3 << 30)}},
                }
            ]
        },
    }
    assert [api.bodies[at]["metadata"]["annotations"] for at in (0, 3)] == [
        {names.RESIZING: "true"},
        {names.RESIZING: None},
    ]
    assert work.refusal is None


@pytest.mark.parametrize(("status", "final"), [(404, True), (422, True), (403, False)])
async def test_what_refuses_more_memory_is_remembered_for_a_while(status: int, final: bool) -> None:
    """An old server and an impossible wish for as long as a node may drain; what a person can lift is tried again soon."""
    body = {"message": "no"}
    _, work = await worked((ActionKind.RESIZE_POD, RESIZED), failures=(Failure(200), Failure(status, body=body)))
    assert work.refusal is not None
    assert work.refusal[1] is final
    work.now += FINAL_SECONDS if final else AGAIN_SECONDS
    assert work.refusal is None


async def test_memory_that_is_not_taken_back_is_kept() -> None:
    """It costs nothing but memory: no node is replaced for it, and nobody asks for ever."""
    failures = (Failure(422, body={"message": "memory limits cannot be decreased"}),)
    api, work = await worked((ActionKind.RESIZE_POD, RETURNED), failures=failures)
    assert paths(api) == ["/resize", ""]
    assert work.refusal is None


async def test_a_node_is_told_and_then_its_pod_is_marked(node: ControlStandIn) -> None:
    """First with what it is told, then that it will do it: whoever dies in between asks again, which changes nothing."""
    api, work = await worked((ActionKind.RESIZE_ARENA, ARENA), (ActionKind.RESIZE_ARENA, ARENA))
    assert node.arena_bytes == 2 << 30
    assert [one.body["arena_bytes"] for one in node.asked] == [2 << 30] * 2
    told, agreed = {names.RESIZING: str(2 << 30)}, {names.TEMPLATE_HASH: "new"}
    assert [body["metadata"]["annotations"] for body in api.bodies] == [told, agreed] * 2
    assert work.urged == ["pod-0", "pod-0"]


async def test_a_node_that_does_not_do_it_is_not_marked(node: ControlStandIn) -> None:
    """Busy, it is asked again; what it refuses, it refuses for good."""
    node.answers = False
    api, work = await worked((ActionKind.RESIZE_ARENA, ARENA))
    assert (paths(api), work.refusal) == ([""], None)
    node.refuses = "the arena is of reserved huge pages"
    api, work = await worked((ActionKind.RESIZE_ARENA, ARENA))
    assert paths(api) == [""]
    assert work.refusal == ("the arena is of reserved huge pages", True)
