"""Two real engines, each beside a node of its own with an arena of its own: what one has computed the other reads from the first one's node."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine.engine_client import Engine, connector
from engine.test_main_path import Prompt, same
from kvcommons_core import redis_server
from peer_nodes import know_each_other, make_secret, peer_nodes, published

REUSED_TOKENS = 1024


def test_a_document_prefilled_beside_one_node_is_answered_beside_another(
    tmp_path: Path, tiny: str, engine_of: Callable[..., Engine], reference: Engine, prompt: Callable[..., Prompt]
) -> None:
    """The same tokens as without any cache, all whole chunks reused, each of them over the network once, and nothing left behind."""
    with redis_server.running() as server, peer_nodes(tmp_path) as nodes:
        secret = make_secret(tmp_path)
        for node in nodes:
            node.start(server.url, secret, "--slab-bytes", "1MiB", "--verify-one-in", "1")
        know_each_other(nodes)
        one, two = nodes
        first, second = (
            engine_of({"model": tiny}, connector(socket=str(node.process.socket_path), fetch_ms_max=20_000))
            for node in nodes
        )
        document = [prompt(1100)]
        expected = reference.generate(document, max_tokens=8, logprobs=3)
        computed = first.generate(document, max_tokens=8, logprobs=3)
        first.call("settle")
        published(one)
        fetched = second.generate(document, max_tokens=8, logprobs=3)
        assert (computed[0]["cached"], fetched[0]["cached"]) == (0, REUSED_TOKENS)
        same(computed, expected)
        same(fetched, expected)
        second.call("settle")
        stats = two.stats()
        assert stats["peer_fetched"] == one.stats()["peer_server_sent"] > 0
        assert stats["slots_filling"] == stats["leases_copying"] == stats["slots_quarantined"] == 0
        first.close()
        second.close()
