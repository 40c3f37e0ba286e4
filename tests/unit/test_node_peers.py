"""A node's peers, the Python side: what settings refuse, whom the index names, and what is counted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from kvcommons_core.errors import ConfigurationError
from kvcommons_core.index.schema import Member, MemberInfo, MemberKind
from kvcommons_core.settings import NodeSettings, load_settings
from kvcommons_node.api.models import IndexStatus, PeerStatus
from kvcommons_node.metrics import NodeMetrics
from kvcommons_node.peers import nodes_of
from kvcommons_node.plan import peers_of


def settings_of(**peers: Any) -> NodeSettings:
    return load_settings(NodeSettings, environ={"KVCOMMONS_NODE__PEERS": json.dumps(peers)})


@pytest.mark.parametrize(
    ("peers", "words"),
    [
        ({"listen": "9471"}, "HOST:PORT"),
        ({"listen": "a-name:9471"}, "no IP address"),
        ({"listen": "0.0.0.0:9471"}, "advertise"),
        ({"listen": "127.0.0.1:9471", "tls_ca_file": "ca.pem"}, "all three"),
        ({"listen": "127.0.0.1:9471", "sockets_per_peer": 0}, "at least 1"),
        ({"listen": "127.0.0.1:9471", "advertise": "elsewhere"}, "HOST:PORT"),
    ],
)
def test_settings_of_peers_that_cannot_work_are_refused(peers: dict[str, Any], words: str) -> None:
    """The message says what to give instead."""
    with pytest.raises(ConfigurationError, match=words):
        settings_of(**peers)


def test_the_core_gets_the_peers_settings_by_its_own_names() -> None:
    """Address and port apart; IPv6 without its brackets; none of it without peers."""
    node = settings_of(listen="[::]:9471", advertise="node-7:9471").node
    told = peers_of(node.peers)
    assert (told["host"], told["port"], told["replicas_max"]) == ("::", 9471, 2)
    assert node.peers is not None
    assert node.peers.advertised == "node-7:9471"
    assert peers_of(None) == {}


def test_peers_are_the_other_living_nodes_that_answer() -> None:
    """Neither this node itself, nor an engine, nor one without an address, nor one whose address is none."""

    def member(slot: int, name: str, peer: str, kind: MemberKind = MemberKind.NODE) -> Member:
        info = MemberInfo(name=name, kind=kind, address=f"{name}:9470", peer=peer)
        return Member(slot=slot, epoch=slot, used=0, incarnation="i", seen=0, info=info)

    members = [
        member(1, "own", "10.0.0.1:9471"),
        member(2, "other", "10.0.0.2:9471"),
        member(3, "silent", ""),
        member(4, "odd", "nowhere"),
        member(5, "engine", "10.0.0.5:9471", MemberKind.ENGINE),
    ]
    found = nodes_of({one.slot: one for one in members}, "own")
    assert [(one.slot, host, port) for one, host, port in found] == [(2, "10.0.0.2", 9471)]


def test_bytes_and_hits_are_counted_by_peer() -> None:
    """A peer that was never used has no series; a node without peers has no family of theirs."""
    zero = {"fetched": 0, "fetched_bytes": 0, "failures": 0, "connects": 0, "bytes_per_second": 0}
    used = zero | {"fetched": 3, "fetched_bytes": 300, "connects": 1}
    peers = [
        PeerStatus(name="busy", address="10.0.0.2:9471", usable=True, counters=used),
        PeerStatus(name="idle", address="10.0.0.3:9471", usable=True, counters=zero),
    ]
    names = [
        "questions",
        "located",
        "nowhere",
        "unanswered",
        "skipped_slow",
        "fetched",
        "gone",
        "failed",
        "fetched_bytes",
        "peers",
        "open_links",
        "server_sent_bytes",
        "server_taken_bytes",
        "server_sent_bytes_zero_copy",
        "server_sent_bytes_tls",
        "server_denied",
        "server_bad_frames",
        "server_refused",
        "server_gone",
        "server_missing",
        "server_connections",
    ]
    stats = {f"peer_{name}": number for number, name in enumerate(names)} | {"tokens_per_second": 900}

    def text(counters: dict[str, int]) -> str:
        metrics = NodeMetrics(lambda: counters, lambda: IndexStatus(state="off", detail=""), tuple, lambda: peers)
        return metrics.render()[0].decode()

    shown = text(stats)
    assert 'kvcommons_node_fetched_bytes_total{peer="busy"} 300.0' in shown
    assert 'kvcommons_node_fetched_shards_total{peer="busy"} 3.0' in shown
    assert 'peer="idle"' not in shown
    assert 'kvcommons_node_peer_questions_total{outcome="located"} 1.0' in shown
    assert "kvcommons_node_prefill_tokens_per_second 900.0" in shown
    assert "kvcommons_node_peer" not in text({})
