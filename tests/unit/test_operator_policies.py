"""NetworkPolicies reach every pod that the operator makes of an engine."""

from __future__ import annotations

from typing import Any

import operator_examples as examples
from kvcommons_operator.plan import plan_deployment


def test_followers_of_a_spread_replica_are_reached_by_their_mates_alone() -> None:
    """They hold the model as the first pod does, and what they say to each other has no password."""
    spread = examples.deployment(poolRef=None, engine={"tensorParallelSize": 4, "nodesPerReplica": 2})
    made = plan_deployment(spread, examples.world(apis=frozenset(examples.OPTIONAL), pool=None)).apply
    replicas = next(one for one in made if one["kind"] == "LeaderWorkerSet")
    policies = [one["spec"] for one in made if one["kind"] == "NetworkPolicy"]
    for part in ("leaderTemplate", "workerTemplate"):
        labels = replicas["spec"]["leaderWorkerTemplate"][part]["metadata"]["labels"]
        covering = [one for one in policies if selects(one["podSelector"], labels)]
        assert len(covering) == 1, part
    (followers,) = [one for one in policies if selects(one["podSelector"], labels)]
    (rule,) = followers["ingress"]
    assert all(selects(peer["podSelector"], labels) and "namespaceSelector" not in peer for peer in rule["from"])


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector of labels alone means these."""
    return all(labels.get(key) == value for key, value in selector["matchLabels"].items())
