"""Two custom resources, and a model is served with its KV shared: real chart, real kubelets, real engines, in both placements."""

from __future__ import annotations

import random

from kube_served import ENGINES, Served

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


def test_chats_are_spread_over_the_engines(served: Served) -> None:
    """Texts without a common beginning do not all go to one engine."""
    before = served.requests_served()
    router = served.router()
    for number in range(8):
        router.chat(f"{number} is a number. Say it.", tokens=4)
    after = served.requests_served()
    assert sum(after[name] - before[name] for name in after) == 8
    assert all(after[name] > before[name] for name in after)
