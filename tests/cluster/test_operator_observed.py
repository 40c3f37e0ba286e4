"""What a real Prometheus makes of an operator at work: its dashboard shows something, and its conditions are those of the resources."""

from __future__ import annotations

import json
from pathlib import Path

from node_process import until
from observed_queries import queries
from operator_process import DEPLOYMENTS_OWN, POOLS, Operators, Place, deployment, pool
from prometheus_server import page, prometheus_in, promtool

SILENT = {"From a pod's end to its fence", "Fences"}
"""Nothing is fenced where no pod runs."""


def test_the_operators_dashboard_shows_something(place: Place, operators: Operators, tmp_path: Path) -> None:
    """Every query but those of fences returns a number while a pool and a deployment are made; what is deleted leaves no condition."""
    operator = operators.start().ready()
    labels = {"namespace": "kvcommons-system", "service": "operator", "pod": "operator-0"}
    with prometheus_in(tmp_path) as prometheus:
        address = f"127.0.0.1:{operator.port}"
        prometheus.start([(address, labels)])
        until(lambda: bool(prometheus.query("up == 1")), "the operator is scraped")
        place.apply(pool(), deployment())
        asked = [(title, query) for title, query in queries("operator") if title not in SILENT]
        assert len(asked) > 10
        turn = 0

        def silent() -> list[tuple[str, str]]:
            nonlocal turn
            turn += 1
            place.merge(DEPLOYMENTS_OWN, "chat", {"metadata": {"annotations": {"turn": str(turn)}}})
            return [one for one in asked if not prometheus.query(one[1])]

        until(lambda: not silent(), json.dumps([title for title, _ in silent()]))
        (found,) = prometheus.query(
            'kvcommons_operator_condition{kind="KVCachePool",condition="Accepted",status="True"}'
        )
        assert (found[0]["resource"], found[0]["resource_namespace"]) == ("pool", place.namespace)
        assert promtool("check", "metrics", given=page(address)) == ""
        place.delete(DEPLOYMENTS_OWN, "chat")
        place.delete(POOLS, "pool")
        until(lambda: not prometheus.query('kvcommons_operator_condition{resource="pool"}'), "the pool is forgotten")
