"""A pool and a deployment of one name in one namespace: their children are not each other's."""

from __future__ import annotations

import operator_examples as examples
from kvcommons_operator.observed import Ref
from kvcommons_operator.plan import plan_deployment, plan_pool


def test_no_child_of_a_pool_is_one_of_a_deployment_of_its_name() -> None:
    """Two owners of one Secret would be refused by the API server, and one of the two would never be ready."""
    apis = frozenset(examples.OPTIONAL)
    watched = {"serviceMonitor": True, "prometheusRule": True}
    pool = examples.pool("chat", monitoring=watched)
    ofpool = {Ref.of(one) for one in plan_pool(pool, examples.pool_world(apis=apis)).apply}
    for ref in (None, {"name": "chat"}):
        ifd = examples.deployment("chat", poolRef=ref, monitoring=watched)
        made = plan_deployment(ifd, examples.world(pool=pool if ref else None, apis=apis)).apply
        assert made
        assert not ofpool & {Ref.of(one) for one in made}
