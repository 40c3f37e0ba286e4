"""Whose publications are void, decided from two looks at a pod; and how nodes are asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvcommons_core.members import engine_member
from kvcommons_operator import names
from kvcommons_operator.observed import Container, Pod
from kvcommons_operator.reconcile.fence import addresses, members_of, why
from kvcommons_operator.reconcile.nodes import Address, index_reachable, parse_stats


def pod(component: str = names.ENGINE, restarts: int = 0, **more: object) -> Pod:
    given: dict[str, object] = {
        "namespace": "llm",
        "name": "chat-0",
        "uid": "u1",
        "node": "machine-1",
        "ip": "10.0.0.1",
        "phase": "Running",
        "labels": {names.COMPONENT: component},
        "containers": (Container(name="engine", restarts=restarts),),
    }
    return Pod(**{**given, **more})  # type: ignore[arg-type]  # fields by name


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (None, pod(), ""),
        (pod(), None, "pod deleted"),
        (pod(), pod(uid="u2"), "pod replaced"),
        (pod(), pod(restarts=1), "container engine restarted"),
        (pod(), pod(phase="Failed"), "pod failed"),
        (pod(phase="Failed"), pod(phase="Failed"), ""),
        (pod(restarts=3), pod(restarts=3), ""),
        (pod(), pod(deleting=True), ""),
        (pod(containers=()), pod(restarts=2), ""),
    ],
)
def test_what_ends_an_incarnation(old: Pod | None, new: Pod | None, reason: str) -> None:
    """Deletion, replacement, failure and a restart do; being told to go, or being seen for the first time, does not."""
    assert why(old, new) == reason


def test_members_are_named_as_they_name_themselves() -> None:
    """A node of a DaemonSet for its machine, an engine for its pod, its ranks by number; a router is no member."""
    assert members_of(pod(names.CACHE_NODE)) == ("machine-1",)
    assert members_of(pod()) == ("chat-0", engine_member("chat-0"))
    ranked = pod(annotations={names.DATA_PARALLEL: "2"})
    assert members_of(ranked) == ("chat-0", engine_member("chat-0-dp0"), engine_member("chat-0-dp1"))
    assert members_of(pod(annotations={names.DATA_PARALLEL: "many"})) == members_of(pod())
    assert members_of(pod(names.ROUTER)) == ()


def test_only_live_nodes_are_asked() -> None:
    """Not the pod that is fenced, nor one without an address, nor one that is going."""
    asked = pod(names.CACHE_NODE, uid="u2", ip="10.0.0.2")
    pods = [
        pod(),
        asked,
        replace(asked, uid="u3", deleting=True),
        replace(asked, uid="u4", ip=""),
        pod(names.ROUTER, uid="u5"),
    ]
    assert addresses(pods, "token", without=pod()) == [Address("10.0.0.2", "token")]
    assert Address("fd00::1", "").url == "http://[fd00::1]:9470"


def test_a_node_says_what_the_planners_need() -> None:
    """Fields that an older node does not know count as nothing; a held node is no member."""
    stats = {"node_id": "n", "index": {"state": "connected", "pending": 3}, "core": {"chunks": 7, "hit_chunks": 5}}
    state = parse_stats(stats)
    assert (state.member, state.joined, state.fenced, state.flushed, state.chunks, state.hits) == (
        "n",
        True,
        False,
        False,
        7,
        5,
    )
    held = parse_stats({"node_id": "n", "index": {"state": "disconnected", "held": True}})
    assert (held.joined, held.fenced, held.flushed) == (False, True, True)
    assert index_reachable({"a": state, "b": held}) is True
    assert index_reachable({"b": held}) is None
    assert parse_stats({}).arena_bytes == 0
