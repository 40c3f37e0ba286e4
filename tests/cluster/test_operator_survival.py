"""What an operator lives through: restarts of the API server, expired versions, its own absence, and its own next version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from operator_process import DAEMON_SETS, DEPLOYMENTS, DEPLOYMENTS_OWN, Operators, Place, deployment, pool

NEXT_VERSION = """\
import importlib.metadata

_version = importlib.metadata.version
importlib.metadata.version = lambda name: "99.0.0" if name == "kvcommons" else _version(name)
"""


def shrink_grace(place: Place) -> None:
    """Somebody's hand in a child."""
    place.merge(DEPLOYMENTS, "chat-engine", {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}})


def grace(workload: dict[str, Any]) -> int:
    return int(workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"])


def test_a_restart_of_the_api_server_and_expired_versions_lose_nothing(operators: Operators, place: Place) -> None:
    """Watches go on, or list anew where their version has been compacted away: drift afterwards is seen, new resources are made."""
    operator = operators.start(lease_seconds=60).ready()
    place.apply(pool(), deployment())
    place.have(DEPLOYMENTS, "chat-engine")
    pid = operator.process.pid
    place.apiserver.stop_apiserver()
    place.apiserver.start_apiserver()
    place.apply(deployment("other", pool_name=None))
    place.apiserver.expire()
    shrink_grace(place)
    place.until(DEPLOYMENTS, "chat-engine", lambda it: grace(it) != 1, "is repaired", 90)
    place.have(DEPLOYMENTS, "other-engine")
    place.apply(deployment("third", pool_name=None))
    place.until(DEPLOYMENTS, "third-engine", lambda it: it, "is made", 90)
    assert (operator.process.alive, operator.process.pid) == (True, pid)


def test_drift_of_the_time_without_an_operator_is_put_back(operators: Operators, place: Place) -> None:
    """A new operator knows nothing of what the former one did, and writes everything once."""
    first = operators.start("first").ready()
    place.apply(pool(), deployment())
    place.have(DAEMON_SETS, "pool-node")
    place.have(DEPLOYMENTS, "chat-engine")
    first.stop()
    shrink_grace(place)
    place.delete(DAEMON_SETS, "pool-node")
    operators.start("second").ready()
    place.until(DEPLOYMENTS, "chat-engine", lambda it: grace(it) != 1, "is repaired")
    place.have(DAEMON_SETS, "pool-node")


def test_an_upgrade_of_the_operator_restarts_no_engine(operators: Operators, place: Place, tmp_path: Path) -> None:
    """Another version with other images changes routers and cache nodes; the engines' Deployments stay as they are until asked."""
    first = operators.start("first", node_image="node:1", router_image="router:1").ready()
    place.apply(pool(), deployment())
    place.have(DEPLOYMENTS, "chat-router")
    before = place.have(DEPLOYMENTS, "chat-engine")
    first.stop()
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(NEXT_VERSION)
    operators.start("second", python_path=str(site), node_image="node:99", router_image="router:99").ready()
    place.until(DEPLOYMENTS, "chat-router", lambda it: "router:99" in str(it), "has the new image")
    place.until(DAEMON_SETS, "pool-node", lambda it: "node:99" in str(it), "has the new image")
    after = place.have(DEPLOYMENTS, "chat-engine")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert "node:1" in str(after["spec"])
    place.merge(DEPLOYMENTS_OWN, "chat", {"spec": {"engine": {"args": ["--max-model-len", "64"]}}})
    place.until(DEPLOYMENTS, "chat-engine", lambda it: "node:99" in str(it["spec"]), "follows with its next change")
