"""A resource whose deletion nobody heard of: it is not served on."""

from __future__ import annotations

from typing import Any, cast

import operator_examples as examples
from kvcommons_operator import names
from kvcommons_operator.kube.errors import NotFoundError
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.observed import Manifest
from kvcommons_operator.outcome import Plan
from kvcommons_operator.reconcile.act import Executor, Refused
from kvcommons_operator.reconcile.controller import Controller
from kvcommons_operator.reconcile.marks import Marks
from kvcommons_operator.reconcile.queue import WorkQueue
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_operator.reconcile.warnings import Warnings

CHAT = Id(names.DEPLOYMENT_KIND, "llm", "chat")
POOL = Id(names.POOL_KIND, "llm", "commons")


class Gone:
    """Carries everything out; the resource itself is not there."""

    def __init__(self) -> None:
        self.forgotten: list[Id] = []
        self.marks = Marks(cast(Any, None), Resources(), "")

    def forget(self, key: Id) -> None:
        self.forgotten.append(key)

    async def carry_out(self, key: Id, resource: Manifest, plan: Plan) -> list[Refused]:
        return []

    async def tell(self, key: Id, resource: Manifest, status: dict[str, Any]) -> None:
        raise NotFoundError(404, "NotFound", "no such deployment", "PATCH status")


class Planned(Controller):
    async def _plan(self, key: Id, resource: Manifest) -> Plan:
        return Plan(status={"conditions": []})


async def test_what_went_while_nobody_watched_is_forgotten() -> None:
    """Its status can't be written: it is not reconciled again and again, which would make its children again and again, and its pool
    hears that it has one user less."""
    resources, queue, gone = Resources(), WorkQueue[Id](interval_seconds_min=0.0), Gone()
    resources.put(POOL.kind, examples.pool())
    resources.put(CHAT.kind, examples.deployment())
    controller = Planned(
        cast(Any, None),
        resources,
        cast(Any, None),
        cast(Executor, gone),
        queue,
        OperatorMetrics(),
        Warnings(cast(Any, None), queue.add),
        namespaces=[None],
        workers=1,
        resync_seconds=600,
    )
    assert await controller.reconcile(CHAT) is None
    assert resources.get(CHAT) is None
    assert gone.forgotten == [CHAT]
    assert await queue.take() == POOL
    assert resources.users_of(POOL) == ()
