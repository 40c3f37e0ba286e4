"""The operator on a simulated cluster: how fast it converges, what it asks when idle, and what it weighs.

    python -m bench.operator [--nodes 1000] [--pools 10] [--deployments 200] [--twice] [--no-floor] [--idle-seconds 60] [--profile FILE]

Real API server, controllers and scheduler, machines played by kwok. `converge_s` runs from the first resource that is applied until every
pool has all its cache nodes ready and every deployment its engines and routers, and all say Ready. The cluster's own controllers
and scheduler are in that time. `idle_requests_s` is what the API server's audit log says of the operator afterwards; `rss_mb` is the most that it
ever held. `floor_s` is what the cluster takes for the same objects without an operator (operator_floor.py), on the same cores in the same
run. `--twice` says it all of a second cluster with twice the nodes as well (`*_2x`).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from kube_process import wait_for
from kvcommons_operator.kube.events import CONTROLLER
from operator_process import Operator

from bench.common import report
from bench.operator_floor import EVERY_SECONDS, Waiting, floor_seconds, items, made_by_operator
from bench.operator_world import POOL_LABEL, Sampler, World, asked, cpu_seconds, requests, say, world

LIMITS = {"converge_s": 60, "idle_requests_s": 2, "rss_mb": 250}
SAMPLED = Path(__file__).resolve().parents[1] / "operator_sampled.py"
CONVERGE_SECONDS_MAX = 420.0
SETTLE_SECONDS_MAX = 120.0
SAID_MAX = 12
GROUP = "/apis/kvcommons.io/v1alpha1"
PLURALS = {"KVCachePool": "kvcachepools", "InferenceDeployment": "inferencedeployments"}
Document = dict[str, Any]


def pool(number: int) -> Document:
    spec = {
        "placement": "perNode",
        "tiers": {"memory": {"capacity": "1Gi"}},
        "nodeSelector": {POOL_LABEL: f"pool-{number}"},
    }
    return resource("KVCachePool", f"pool-{number}", number, spec)


def deployment(number: int, pools: int) -> Document:
    place = number % pools
    spec = {
        "model": {"name": f"model-{number}", "source": {"local": {"path": "/model"}}},
        "engine": {"image": "vllm:0.32.0"},
        "poolRef": {"name": f"pool-{place}"},
        "podTemplate": {"nodeSelector": {POOL_LABEL: f"pool-{place}"}},
    }
    return resource("InferenceDeployment", f"chat-{number:03}", place, spec)


def resource(kind: str, name: str, place: int, spec: Document) -> Document:
    metadata = {"name": name, "namespace": f"bench-{place}"}
    return {"apiVersion": "kvcommons.io/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def place(item: Document) -> str:
    return f"{GROUP}/namespaces/{item['metadata']['namespace']}/{PLURALS[item['kind']]}"


def post(client: Any, item: Document) -> None:
    client.request("POST", place(item), item)


def ready(item: Document) -> bool:
    told = (item.get("status") or {}).get("conditions") or []
    return any(one["type"] == "Ready" and one["status"] == "True" for one in told)


def words(item: Document) -> str:
    """What it says of itself."""
    told = (item.get("status") or {}).get("conditions") or []
    return "; ".join(
        f"{one['type']}: {one['message'][:100]}" for one in told if one["type"] in ("Ready", "Progressing")
    )


class Progress:
    """What is not there yet, in the operator's own words. Everything must be ready at once in the end: all of it is looked at once more."""

    def __init__(self, made: World, operator: Operator, nodes_per_pool: int) -> None:
        self._made = made
        self._operator = operator
        self._nodes = nodes_per_pool
        self._said = 0.0
        self._waiting = Waiting(made.client)
        for item in made.applied:
            self._waiting.add(f"{place(item)}/{item['metadata']['name']}", self._holds)

    def done(self) -> bool:
        assert self._operator.process.alive, f"the operator has ended:\n{self._operator.log[-2_000:]}"
        if not self._waiting.done():
            if time.monotonic() - self._said > 5:
                self._said = time.monotonic()
                say(f"{len(self._waiting)} to go; {self._waiting.at['metadata']['name']}: {words(self._waiting.at)}")
            return False
        found = [
            item
            for plural in PLURALS.values()
            for item in self._made.client.request("GET", f"{GROUP}/{plural}")["items"]
        ]
        return len(found) == len(self._made.applied) and all(map(self._holds, found))

    def _holds(self, item: Document) -> bool:
        status = item.get("status") or {}
        if not ready(item):
            return False
        if "nodes" in status:
            nodes = status["nodes"]
            return bool(nodes.get("desired") == nodes.get("ready") == nodes.get("updated") == self._nodes)
        router = status.get("router") or {}
        return bool(status.get("readyReplicas") == 1 and router.get("readyReplicas") == router.get("replicas") == 2)


def cpu(made: World, operator: Operator) -> dict[str, float]:
    """CPU seconds of every part so far; `bench` is what fills the cluster and asks how far it is."""
    own = time.process_time()
    return {"operator": cpu_seconds(operator.process.pid), **made.cpu_seconds(), "bench": own}


def measure(
    made: World, operator: Operator, nodes_per_pool: int, begun: float, before: dict[str, float], idle_seconds: float
) -> Document:
    sampler, pid = Sampler(operator.process.pid), operator.process.pid
    wait_for(
        Progress(made, operator, nodes_per_pool).done,
        "everything has converged",
        CONVERGE_SECONDS_MAX,
        every=EVERY_SECONDS,
    )
    converge = time.monotonic() - begun
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in cpu(made, operator).items()}
    say(f"CPU seconds: {', '.join(f'{name} {seconds:.1f}' for name, seconds in spent.items())}")
    say(f"converged in {converge:.1f} s, {asked(made)} requests, {sampler.peak_mb:.0f} MB at most")
    say("; ".join(f"{count} {what}" for what, count in requests(made)))
    say(f"Events: {'; '.join(f'{count} {what}' for what, count in told(made))}")
    settle(made)
    asked_before, busy, started = asked(made), cpu_seconds(pid), time.monotonic()
    pause(idle_seconds)
    seconds = time.monotonic() - started
    return {
        "converge_s": converge,
        "operator_cpu_s": spent["operator"],
        "apiserver_cpu_s": spent["kube-apiserver"],
        "cluster_cpu_s": sum(spent.values()) - spent["operator"],
        "idle_requests_s": (asked(made) - asked_before) / seconds,
        "idle_cpu_share": (cpu_seconds(pid) - busy) / seconds,
        "rss_mb": sampler.peak_mb,
        "rss_idle_mb": sampler.rss_mb,
    }


def told(made: World) -> list[tuple[str, int]]:
    """The operator's Events: kind, reason and the beginning of what was said, the most frequent first."""
    found: Counter[str] = Counter()
    for event in items(made, "events.k8s.io/v1", "events", ""):
        if event.get("reportingController") == CONTROLLER:
            found[f"{event['regarding']['kind']} {event['reason']} ({event['note'][:40]})"] += 1
    return found.most_common(SAID_MAX)


def settle(made: World) -> None:
    """Until ten seconds have brought few requests, or it does not come to that."""
    last, deadline = asked(made), time.monotonic() + SETTLE_SECONDS_MAX
    while time.monotonic() < deadline:
        pause(10)
        now = asked(made)
        if now - last < 20:
            return
        last = now


def pause(seconds: float) -> None:
    time.sleep(seconds)


def furnished(made: World, nodes: int, pools: int) -> None:
    """Machines, and the namespaces that pools and deployments are to be in."""
    made.add_nodes(range(nodes), pools)
    for place in range(pools):
        made.server.create_namespace(f"bench-{place}")
        accounts = f"/api/v1/namespaces/bench-{place}/serviceaccounts"
        made.server.request("POST", accounts, {"metadata": {"name": "default"}})


def run(given: argparse.Namespace, nodes: int) -> Document:
    """All figures of a cluster of so many machines."""
    with world() as made:
        furnished(made, nodes, given.pools)
        made.server.create_namespace("kvcommons-system")
        figures = with_operator(made, given, nodes)
        objects = [] if given.no_floor else made_by_operator(made)
    if objects:
        with world() as made:
            furnished(made, nodes, given.pools)
            figures["floor_s"] = floor_seconds(made, objects)
    return figures


def with_operator(made: World, given: argparse.Namespace, nodes: int) -> Document:
    operator = Operator(
        made.server, made.folder, kubeconfig=made.operator_kubeconfig, lease_seconds=15, log_level="info"
    )
    if given.profile:
        operator.process.command[2:] = [str(SAMPLED), given.profile]
    operator.start()
    try:
        operator.ready()
        begun, before = time.monotonic(), cpu(made, operator)
        made.applied = [pool(number) for number in range(given.pools)]
        made.each(post, made.applied)
        deployments = [deployment(number, given.pools) for number in range(given.deployments)]
        made.applied += deployments
        made.each(post, deployments)
        say(f"applied in {time.monotonic() - begun:.1f} s")
        return measure(made, operator, nodes // given.pools, begun, before, given.idle_seconds)
    finally:
        operator.stop()
        say(operator.log[-2_000:])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.operator", description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=1_000)
    parser.add_argument("--pools", type=int, default=10)
    parser.add_argument("--deployments", type=int, default=200)
    parser.add_argument("--idle-seconds", type=float, default=60)
    parser.add_argument("--twice", action="store_true", help="the same again in a cluster of twice the nodes")
    parser.add_argument("--no-floor", action="store_true", help="leave out what the cluster takes without an operator")
    parser.add_argument("--profile", default="", help="where to write what the operator spent its processor time on")
    given = parser.parse_args()
    figures = run(given, given.nodes)
    if given.twice:
        figures |= {f"{name}_2x": value for name, value in run(given, 2 * given.nodes).items()}
    ratios = {name: figures[name] / limit for name, limit in LIMITS.items()}
    report("operator", figures, LIMITS, ratios)
    return 0 if all(ratio <= 1 for ratio in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
