"""Another size for the arena: what is taken down, how long it holds, and what is refused."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from kvcommons_core.settings import NodeSection, NodeSettings
from kvcommons_node import size
from kvcommons_node.api.models_size import ResizeRequest
from kvcommons_node.api.refusals import Refusal
from kvcommons_node.plan import make_plan
from node_fakes import FakeStart
from node_served import serve_in

MIB = 1 << 20


def asked(started: FakeStart, wanted: int) -> tuple[list[str], Any]:
    """What was done, and the answer or the refusal."""
    done: list[str] = []
    try:
        answer: Any = size.Sizing(started, lambda: done.append("anew")).resize(ResizeRequest(arena_bytes=wanted))
    except Refusal as refusal:
        answer = refusal
    return done, answer


def test_a_size_is_taken_down_and_the_node_begins_anew(tmp_path: Path) -> None:
    """In whole pages; it holds for as long as the configuration says what it said."""
    done, answer = asked(FakeStart(tmp_path), 96 * MIB + 5)
    assert (done, answer.arena_bytes, answer.before_bytes, answer.restarts) == (["anew"], 96 * MIB, 64 * MIB, True)
    assert size.wished(tmp_path, 64 * MIB) == 96 * MIB
    assert size.wished(tmp_path, 80 * MIB) == 80 * MIB
    size.forget(tmp_path)
    assert size.wished(tmp_path, 64 * MIB) == 64 * MIB


def test_the_size_that_it_has_changes_nothing(tmp_path: Path) -> None:
    """Nobody is disturbed by asking twice."""
    done, answer = asked(FakeStart(tmp_path), 64 * MIB)
    assert (done, answer.restarts) == ([], False)


@pytest.mark.parametrize(
    ("started", "wanted", "remedy"),
    [
        (FakeStart(Path("/x"), holder_socket=None), 96 * MIB, "set holder_socket"),
        (FakeStart(Path("/x"), huge_pages=True), 96 * MIB, "restart the node with the new size"),
        (FakeStart(Path("/x")), 1 << 43, "ask for less"),
    ],
)
def test_what_would_cost_the_content_is_refused(started: FakeStart, wanted: int, remedy: str) -> None:
    """Without a holder or with reserved huge pages it would begin empty, and too large it would not begin: the answer says what to do."""
    done, refusal = asked(started, wanted)
    assert done == []
    assert refusal.status == 409
    assert refusal.detail.remedy.startswith(remedy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"configured_bytes": 67108864}', '{"configured_bytes": 67108864, "arena_bytes": "x"}']
)
def test_a_torn_file_is_no_wish(tmp_path: Path, text: str) -> None:
    """The node starts as it is configured."""
    (tmp_path / size.FILE).write_text(text)
    assert size.wished(tmp_path, 64 * MIB) == 64 * MIB


def test_a_plan_follows_the_wish_and_gives_up_one_that_is_too_large(tmp_path: Path) -> None:
    """What the machine no longer has is told, and the node starts as configured."""
    node = NodeSection(state_dir=str(tmp_path), socket_path=str(tmp_path / "n"), control_port=0, arena_bytes=64 * MIB)
    size.wish(tmp_path, 64 * MIB, 128 * MIB)
    plan = make_plan(NodeSettings(node=node), "0", memory_bytes=1 << 30)
    assert (plan.arena_bytes, plan.configured_bytes, plan.pinned_bytes_max) == (128 * MIB, 64 * MIB, 32 * MIB)
    plan = make_plan(NodeSettings(node=node), "0", memory_bytes=350 * MIB)
    assert plan.arena_bytes == 64 * MIB
    assert plan.notes[0].startswith("the size that was asked for last is given up: ")
    assert size.wished(tmp_path, 64 * MIB) == 64 * MIB


async def test_the_control_api_takes_it() -> None:
    """POST /v1/resize answers what becomes of it, and names a field that is wrong."""
    async with AsyncExitStack() as stack:
        served = await serve_in(stack)
        status, answer = await served.post("/v1/resize", {"arena_bytes": 96 * MIB, "reason": "a test"})
        assert (status, answer) == (200, {"before_bytes": 64 * MIB, "arena_bytes": 96 * MIB, "restarts": True})
        status, answer = await served.post("/v1/resize", {"arena_bytes": 5})
        assert (status, answer["error"]["field"]) == (400, "arena_bytes")
