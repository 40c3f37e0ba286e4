"""Two custom resources, and a model is served with its KV shared: real chart, real kubelets, real engines, in both placements."""

from __future__ import annotations

import random
from functools import partial

import pytest
from kube_chart import NAMESPACE, RELEASE, Helm
from kube_cluster import condition
from kube_process import wait_for
from kube_served import API, ENGINES, MODEL, NAME, POOL, Served
from kvcommons_operator.pod_memory import PodMemory

WORDS = ("cache", "node", "router", "prefix", "token", "engine", "index", "memory", "chunk", "lease", "arena", "shard")


def long_prompt(seed: str, words: int = 700) -> str:
    """A text of several chunks that nothing else begins with."""
    source = random.Random(seed)
    return f"{seed}: " + " ".join(source.choice(WORDS) for _ in range(words)) + ". What was this about?"


def test_engines_run_on_different_nodes_with_the_connector(served: Served) -> None:
    """Both engines are Ready, each on a node of its own, and the deployment says that the connector is loaded."""
    engines = served.ready_engines()
    assert len({pod["spec"]["nodeName"] for pod in engines}) == ENGINES
    assert served.condition("ConnectorLoaded") == "True"
    assert served.condition("Available") == "True"


def test_a_prefix_is_reused_from_the_commons_with_the_same_tokens(served: Served) -> None:
    """After the engines have forgotten, the same chat comes from the node's memory, token for token as it was computed."""
    router, prompt = served.router(), long_prompt(f"reuse {served.placement}")
    cold = router.chat(prompt)
    assert cold.prompt_tokens > 600
    assert cold.cached_tokens == 0, "nobody has computed this before"
    served.reset_engines()
    warm = router.chat(prompt)
    assert warm.cached_tokens >= 512
    assert warm.tokens == cold.tokens


DOCUMENTS = 4
"""Tried at most: on a machine that does much else a node may not hear in time who has a document, and then it is computed, as it should be."""


def test_a_document_prefilled_on_one_node_is_answered_on_the_other(served: Served) -> None:
    """What the engine of one node has computed comes to the other node's engine over the network, from the first node's memory,
    and whether it does or not, token for token; both nodes' pods run under the runtime's default seccomp profile."""
    one, two = served.ready_engines()
    reused = 0
    for number in range(DOCUMENTS):
        prompt = long_prompt(f"over the network {served.placement} {number}")
        cold = served.engine(one).chat(prompt)
        assert cold.cached_tokens == 0, "nobody has computed this before"
        served.reset_engines()
        assert served.engine(one).chat(prompt).cached_tokens >= 512, "its node has it, and has told the index"
        before = served.fetched_from_peers(two)
        warm = served.engine(two).chat(prompt)
        assert warm.tokens == cold.tokens
        reused = warm.cached_tokens
        if reused >= 512:
            assert served.fetched_from_peers(two) > before
            break
    assert reused >= 512
    for pod in (served.node_pod(one), served.node_pod(two)):
        assert pod["spec"]["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"


def test_chats_are_spread_over_the_engines(served: Served) -> None:
    """Texts without a common beginning do not all go to one engine."""
    before = served.requests_served()
    router = served.router()
    for number in range(8):
        router.chat(f"{number} is a number. Say it.", tokens=4)
    after = served.requests_served()
    assert sum(after[name] - before[name] for name in after) == 8
    assert all(after[name] > before[name] for name in after)


@pytest.mark.parametrize("served", ["perNode"], indirect=True)
def test_a_cache_node_that_was_replaced_answers_from_its_disk(served: Served) -> None:
    """With the pod goes its memory. The new one finds the disk as it was left: engines attach to it, and the same chat is answered from
    there, token for token; the pool says how its disks are."""
    engine, prompt = served.ready_engines()[0], long_prompt("kept on the disk")
    machine, client = engine["spec"]["nodeName"], served.engine(engine)
    cold = client.chat(prompt)
    wait_for(lambda: served.node_metric(machine, "kvcommons_node_tier_shards") > 0, "something on the disk", 30.0)
    wait_for(lambda: served.node_metric(machine, "kvcommons_node_tier_waiting") == 0, "all of it written", 30.0)
    old = served.cache_node(machine)["metadata"]["name"]
    served.cluster.kubectl("delete", "pod", old, "-n", served.namespace, "--wait")
    wait_for(partial(is_attached, served, machine), "the engine at the new cache node", 120.0, every=0.2)
    served.reset_engines()
    warm = client.chat(prompt)
    assert warm.cached_tokens >= 512
    assert warm.tokens == cold.tokens
    assert served.node_metric(machine, "kvcommons_node_promoted_chunks_total") > 0
    wait_for(lambda: tiers_are_well(served), "TiersHealthy", 60.0, every=0.5)


@pytest.mark.parametrize("served", ["perNode"], indirect=True)
def test_another_capacity_keeps_the_cache_nodes_and_what_they_hold(served: Served) -> None:
    """More memory, then less than at first: the same pods on the same machines, whose kubelets give and take the memory, and the same chat
    is answered from there, token for token, and not from the disk behind."""
    engine, prompt = served.ready_engines()[0], long_prompt("kept in memory")
    machine, client = engine["spec"]["nodeName"], served.engine(engine)
    cold = client.chat(prompt)
    before = {pod["metadata"]["uid"] for pod in served.pods("cache-node")}
    for mib in (640, 448):
        change = {"spec": {"tiers": {"memory": {"capacity": f"{mib}Mi"}}}}
        path = f"{API}/{served.namespace}/kvcachepools/{POOL}"
        served.cluster.request("PATCH", path, change, "application/merge-patch+json")
        wait_for(partial(all_have, served, mib << 20), f"{mib} MiB on all cache nodes", 120.0, every=0.3)
        wait_for(partial(is_attached, served, machine), "the engine attached again", 30.0, every=0.3)
        served.reset_engines()
        warm = client.chat(prompt)
        assert warm.cached_tokens >= 512
        assert warm.tokens == cold.tokens
        assert served.node_metric(machine, "kvcommons_node_promoted_chunks_total") == 0
    assert {pod["metadata"]["uid"] for pod in served.pods("cache-node")} == before


def all_have(served: Served, arena_bytes: int) -> bool:
    """Every cache node has such an arena, its container the memory for it, and the pool says that this was all."""
    pool, pods = served.object("kvcachepools", POOL), served.pods("cache-node")
    progressing = next(one for one in pool["status"]["conditions"] if one["type"] == "Progressing")
    told = pool["metadata"]["generation"] == progressing["observedGeneration"] and progressing["reason"] == "Complete"
    return told and all(
        PodMemory.parse(pod, "cache-node").given == PodMemory.parse(pod, "cache-node").asked
        and served.node_metric(pod["spec"]["nodeName"], "kvcommons_node_capacity_bytes") == arena_bytes
        for pod in pods
    )


def is_attached(served: Served, machine: str) -> bool:
    """A new cache node is ready there, and an engine has opened a session with it."""
    try:
        pod = served.cache_node(machine)
    except KeyError:
        return False
    return condition(pod, "Ready") == "True" and served.node_metric(machine, "kvcommons_node_sessions") > 0


def tiers_are_well(served: Served) -> bool:
    pool = served.object("kvcachepools", POOL)
    told = {tier["type"]: tier["serving"] for tier in pool["status"].get("tiers", ())}
    return condition(pool, "TiersHealthy") == "True" and told == {"disk": len(served.cluster.nodes)}


@pytest.mark.parametrize("served", ["perNode"], indirect=True)
def test_helm_test_sends_a_request_through_the_router(served: Served, installed: Helm) -> None:
    """`helm test` asks the operator through its Service, by a pod under `restricted`; with a deployment's address in the chart's values
    it says what the model has answered."""
    address = served.object()["status"]["url"]
    assert f"//{NAME}.{served.namespace}" in address
    assert "router: none was named" in helm_test(installed)
    installed.install({"test": {"url": address, "model": MODEL}})
    try:
        said = helm_test(installed)
    finally:
        installed.install({})
    assert 'router: "' in said, said


def helm_test(installed: Helm) -> str:
    said = installed.run("test", RELEASE, "-n", NAMESPACE, "--timeout", "150s", "--logs")
    assert "Succeeded" in said
    return said
