"""How a plan is carried out: what needs what comes after it, all else at once; a status is not written for every number that moves."""

from __future__ import annotations

import copy
from typing import Any

from fake_api import FakeApi, fake_api
from kvcommons_operator import names
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.events import Recorder
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.outcome import PodAction
from kvcommons_operator.reconcile.act import QUIET_SECONDS, Executor
from kvcommons_operator.reconcile.inventory import Inventory
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_operator.reconcile.waves import waves
from kvcommons_operator.reconcile.world import World

KEY = Id(names.DEPLOYMENT_KIND, "ns", "chat")


def test_pods_begin_with_what_they_refer_to_and_all_else_is_applied_at_once() -> None:
    """Accounts, Secrets, policies and Services first; bindings after the roles that they name; then workloads, then what scales them."""
    plan = [
        "Deployment",
        "RoleBinding",
        "Service",
        "HorizontalPodAutoscaler",
        "Secret",
        "Role",
        "NetworkPolicy",
        "DaemonSet",
    ]
    found = waves([{"kind": kind} for kind in plan])
    assert [[one["kind"] for one in wave] for wave in found] == [
        ["Service", "Secret", "Role", "NetworkPolicy"],
        ["RoleBinding"],
        ["Deployment", "DaemonSet"],
        ["HorizontalPodAutoscaler"],
    ]


async def test_numbers_wait_for_each_other_and_a_verdict_does_not() -> None:
    """What changes every moment is told every few seconds; that something is ready, or is not any more, at once."""
    async with fake_api() as (api, client):
        clock, resources = [100.0], Resources()
        executor = executor_of(client, resources, clock)
        status: dict[str, Any] = {
            "observedGeneration": 1,
            "conditions": [{"type": "Ready", "status": "False"}],
            "replicas": 0,
        }
        resources.put(names.DEPLOYMENT_KIND, {"metadata": {"name": "chat", "namespace": "ns", "uid": "u"}})
        assert await told(executor, resources, status) is None
        assert written(api) == 1
        clock[0] += 0.5
        assert await told(executor, resources, status | {"replicas": 1}) == QUIET_SECONDS - 0.5
        assert written(api) == 1
        well = copy.deepcopy(status) | {"conditions": [{"type": "Ready", "status": "True"}]}
        assert await told(executor, resources, well) is None
        assert written(api) == 2
        clock[0] += QUIET_SECONDS
        assert await told(executor, resources, well | {"replicas": 2}) is None
        assert written(api) == 3
        assert await told(executor, resources, well | {"replicas": 2}) is None
        assert written(api) == 3


async def told(executor: Executor, resources: Resources, status: dict[str, Any]) -> float | None:
    live = resources.get(KEY)
    assert live is not None
    return await executor.tell(KEY, live, status)


def written(api: FakeApi) -> int:
    return sum(method == "PATCH" and path.endswith("/status") for method, path, _ in api.asked)


def executor_of(client: KubeClient, resources: Resources, clock: list[float]) -> Executor:
    async def take(key: Id, action: PodAction) -> None:
        raise AssertionError("no pod is touched here")

    inventory = Inventory(lambda owner: None, lambda old, new: None)
    world = World(client, (), inventory, lambda: None)
    recorder, metrics = Recorder(client, "test"), OperatorMetrics()
    return Executor(client, world, inventory, resources, recorder, metrics, take, clock=lambda: clock[0])
