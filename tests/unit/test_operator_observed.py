"""What planners are given of what the operator may not read, and of what somebody asked the Events of."""

from __future__ import annotations

import operator_examples as examples
import pytest
from fake_api import Failure, FakeApi, fake_api
from kvcommons_operator import names
from kvcommons_operator.kube import kinds
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import UnavailableError
from kvcommons_operator.kube.watches import Change
from kvcommons_operator.reconcile.inventory import Inventory
from kvcommons_operator.reconcile.observe import Observer
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_operator.reconcile.world import World

GUEST = examples.deployment("chat", "team-a", poolRef={"name": "commons", "namespace": "llm"})
KEY = Id(names.DEPLOYMENT_KIND, "team-a", "chat")
BY_LABEL = {"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"llm": "yes"}}}}


def observer(client: KubeClient, inventory: Inventory) -> Observer:
    resources = Resources()
    resources.put(names.POOL_KIND, examples.pool(tenancy=BY_LABEL))
    resources.put(names.DEPLOYMENT_KIND, GUEST)
    world = World(client, (), inventory, lambda: None)
    said = {"engine-0": ("FailedMount: no",)}
    return Observer(
        client,
        examples.INSTALL,
        world,
        inventory,
        resources,
        lambda uid: None,
        lambda uid: None,
        lambda uid: said.get(uid, ()),
    )


def inventory() -> Inventory:
    return Inventory(lambda owner: None, lambda old, new: None)


async def test_labels_that_may_not_be_read_are_unknown_and_that_is_no_failure() -> None:
    """403 is an answer: the plan is made without them. What is away for a moment is asked for again."""
    async with fake_api() as (api, client):
        seen = observer(client, inventory())
        await _answer(api, {"llm": "yes"})
        api.failures.append(Failure(403))
        assert (await seen.deployment(KEY, GUEST)).namespace_labels is None
        assert (await seen.deployment(KEY, GUEST)).namespace_labels == {"llm": "yes"}
    async with fake_api() as (api, client):
        api.failures.extend(Failure(503) for _ in range(20))
        with pytest.raises(UnavailableError):
            await observer(client, inventory()).deployment(KEY, GUEST)


async def _answer(api: FakeApi, labels: dict[str, str]) -> None:
    api.put(kinds.NAMESPACE.path(), "team-a", metadata={"labels": labels})


async def test_pods_carry_what_their_events_say() -> None:
    """Only those that somebody asked about."""
    known = inventory()
    labels = {**examples.engine_pod(0).labels, names.DEPLOYMENT_NAMESPACE_LABEL: "team-a"}
    for number in range(2):
        pod = examples.engine_pod(number, namespace="team-a", labels=labels)
        known.pod_changed(Change(kinds.POD, ("team-a", pod.name), None, pod))
    async with fake_api() as (api, client):
        await _answer(api, {})
        pods = (await observer(client, known).deployment(KEY, GUEST)).pods
        assert {pod.uid: pod.warnings for pod in pods} == {"engine-0": ("FailedMount: no",), "engine-1": ()}
