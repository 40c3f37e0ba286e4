"""Two nodes and a Redis: what an engine of one has computed is read by an engine of the other, over the network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from kvcommons_core import redis_server
from kvcommons_core.limits import KEY_BYTES
from node_process import until
from peer_nodes import (
    FINGERPRINT,
    PeerNode,
    chain,
    know_each_other,
    make_certificate,
    make_secret,
    peer_nodes,
    published,
)


def moved(at: PeerNode, **more: object) -> dict[str, Any]:
    """A move of the first chain to the other node, done."""
    keys = [chain(1)[at : at + KEY_BYTES].hex() for at in range(0, len(chain(1)), KEY_BYTES)]
    status, answer = at.process.post("/v1/move", {"fingerprint": FINGERPRINT.hex(), "keys": keys, **more})
    assert status == 200, answer
    found: dict[str, Any] = {}

    def over() -> bool:
        found.update(at.process.get(f"/v1/jobs?job={answer['job']['job']}")[1]["jobs"][0])
        return found["state"] in ("done", "failed")

    until(over, "the job is over")
    return found


def test_a_move_to_another_node_leaves_the_chunks_there_alone(folder: Path) -> None:
    """Where no engine has ever been: fetched and verified there, then gone here; byte for byte; a copy stays, and a node that was
    killed costs nothing."""
    with redis_server.running() as server, peer_nodes(folder) as (one, two):
        secret = make_secret(folder)
        for node in (one, two):
            node.start(server.url, secret, "--address", f"127.0.0.1:{node.process.port}")
        know_each_other([one, two])
        one.store(chain(1))
        copied = moved(one, node="two", keep=True)
        assert copied["result"] == {"chunks": 4, "were_there": 0, "removed_from_source": 0}, copied
        assert (two.stats()["chunks"], one.stats()["chunks"]) == (4, 4)
        assert moved(one, node="two")["result"] == {"chunks": 4, "were_there": 4, "removed_from_source": 4}
        assert one.stats()["chunks"] == 0
        assert two.read(chain(1)) == 4
        assert moved(two, node="one")["result"]["removed_from_source"] == 4
        assert (two.stats()["chunks"], one.read(chain(1))) == (0, 4)
        two.process.kill()
        lost = moved(one, node="two")
        assert (lost["state"], one.stats()["chunks"]) == ("failed", 4)


def is_written(node: PeerNode, chunks: int) -> bool:
    return node.stats()["tier_written"] == chunks


def test_what_one_node_holds_is_a_hit_on_the_other(folder: Path) -> None:
    """Byte for byte, found by the index; what nobody holds is no hit, nor is another model's chunk; counters say whose it was."""
    with redis_server.running() as server, peer_nodes(folder) as (one, two):
        secret = make_secret(folder)
        for node in (one, two):
            node.start(server.url, secret)
        know_each_other([one, two])
        one.store(chain(1))
        published(one)
        assert two.read(chain(1) + chain(2)) == 4
        assert two.read(chain(3)) == 0
        assert two.read(chain(1)[:64], bytes(32)) == 0
        stats = two.stats()
        assert (stats["peer_fetched"], stats["tier_promoted_chunks"]) == (4, 4)
        assert stats["slots_filling"] == stats["slots_quarantined"] == 0
        assert one.stats()["peer_server_sent"] == 4
        ((name, health, _, counters),) = (
            (tier["name"], tier["health"], tier["detail"], tier["counters"]) for tier in two.process.stats()["tiers"]
        )
        assert (name, health, counters["shards"]) == ("peer", "serving", 0)


def test_a_node_that_was_killed_costs_a_miss_and_nothing_else(folder: Path) -> None:
    """The other one computes, serves on, and says in its stats and readiness whom it does not ask now."""
    with redis_server.running() as server, peer_nodes(folder) as (one, two):
        secret = make_secret(folder)
        for node in (one, two):
            node.start(server.url, secret)
        know_each_other([one, two])
        one.store(chain(1))
        published(one)
        one.process.kill()
        assert two.read(chain(1)) == 0
        two.store(chain(1))
        assert two.read(chain(1)) == 4


def test_a_node_of_another_pool_gets_nothing(folder: Path) -> None:
    """Who does not know the secret is refused before anything is said, and told so in words."""
    with redis_server.running() as server, peer_nodes(folder) as (one, two):
        one.start(server.url, make_secret(folder, "ours"))
        two.start(server.url, make_secret(folder, "theirs"))
        know_each_other([one, two])
        one.store(chain(1))
        published(one)
        assert two.read(chain(1)) == 0
        assert one.stats()["peer_server_sent"] == 0
        assert "namespace_secret_file" in two.process.get("/readyz")[1]["reason"]


def test_with_tls_only_a_node_with_a_certificate_of_the_pool_is_let_in(folder: Path) -> None:
    """What comes over TLS is counted apart; who knows the secret and has another authority's certificate, or none, gets nothing. Files that
    are renewed are those of the next connection, without a restart."""
    with (
        redis_server.running() as server,
        peer_nodes(folder, ("one", "two", "other", "plain")) as (one, two, other, plain),
    ):
        secret, ours = make_secret(folder), make_certificate(folder, "ours")
        one.start(server.url, secret, **ours)
        two.start(server.url, secret, **ours)
        other.start(server.url, secret, **make_certificate(folder, "theirs"))
        plain.start(server.url, secret)
        know_each_other([one, two, other, plain])
        one.store(chain(1))
        published(one)
        assert (other.read(chain(1)), plain.read(chain(1))) == (0, 0)
        assert one.stats()["peer_server_sent_bytes"] == 0
        assert two.read(chain(1)) == 4
        stats = one.stats()
        assert stats["peer_server_sent_bytes_tls"] == stats["peer_server_sent_bytes"] > 0
        for suffix in ("crt", "key"):
            (folder / f"theirs.{suffix}").write_bytes((folder / f"ours.{suffix}").read_bytes())
        until(lambda: other.read(chain(1)) == 4, "a renewed certificate opens the door")


def test_what_a_node_has_only_on_its_disk_reaches_another(folder: Path) -> None:
    """The owner brings it into its memory first, and is asked again meanwhile."""
    with redis_server.running() as server, peer_nodes(folder) as (one, two):
        (folder / "disk").mkdir()
        disk = {"type": "disk", "paths": [str(folder / "disk")], "capacity_bytes": 64 << 20, "segment_bytes": 4 << 20}
        secret = make_secret(folder)
        one.start(server.url, secret, "--tiers", json.dumps([disk | {"buffered": True}]))
        two.start(server.url, secret)
        know_each_other([one, two])
        for number in range(40):
            one.store(chain(number))
            until(partial(is_written, one, 4 * (number + 1)), "it is on the disk")
        assert one.stats()["evicted"] > 0
        published(one)
        assert two.read(chain(0)) == 4
        assert one.stats()["tier_promoted_chunks"] == 4
