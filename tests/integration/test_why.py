"""`kvcommons why` over a pool at work: what the router expected of a request, what it reused, and why not more, chunk by chunk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from index_support import RawClient
from kvcommons_cli import why
from kvcommons_core.index.schema import Names
from kvcommons_core.settings import IndexSettings
from node_clients import post
from node_process import until
from observed_run import CHUNKS, TOKENS, Run, pool_at_work
from peer_nodes import FINGERPRINT, chain


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Two nodes that have memory alone, engines that report, and a router."""
    with pool_at_work(tmp_path_factory.mktemp("why"), disks=False) as run:
        yield run


def asked(pool: Run, request_id: str, capsys: pytest.CaptureFixture[str], node: int = 0) -> dict[str, Any]:
    """What the command says as JSON, of one request; the router has heard its report by then."""
    words = ["--url", f"http://127.0.0.1:{pool.nodes[node].process.port}", "--router", f"http://127.0.0.1:{pool.port}"]
    answer: dict[str, Any] = {}

    def told() -> bool:
        assert why.main([request_id, *words, "-o", "json"]) == 0
        answer.update(json.loads(capsys.readouterr().out))
        return bool(answer["requests"]) and answer["router"]["reported"] is not None

    until(told, "both have heard of it")
    return answer


def missed(answer: dict[str, Any]) -> list[tuple[int, int, str]]:
    return [(run["first"], run["last"], run["why"]) for run in answer["requests"][0]["missed"]]


def served_by(answer: dict[str, Any]) -> int:
    return ["one", "two"].index(answer["router"]["node"])


def test_a_new_text_was_never_stored_and_the_next_request_reuses_it(
    pool: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """The router expected nothing of the first, and of the second what was then reused; whichever node is asked knows."""
    first = asked(pool, pool.chat(1)[1], capsys)
    assert missed(first) == [(0, CHUNKS - 1, "never_stored")]
    assert sum(first["router"]["predicted_tokens"].values()) == 0
    later: list[dict[str, Any]] = []

    def expected() -> bool:
        later.append(asked(pool, pool.chat(1)[1], capsys, node=1))
        return bool(sum(later[-1]["router"]["predicted_tokens"].values()))

    until(expected, "the index knows of it")
    second = later[-1]
    assert missed(second) == []
    assert second["requests"][0]["commons_tokens"] == TOKENS
    assert second["router"]["reported"]["commons_tokens"] == TOKENS


def test_what_was_evicted_is_told_with_when_and_how_old(pool: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Its node made room for others between the two requests; the table says it in words, and that the index was wrong."""
    node = pool.nodes[served_by(asked(pool, pool.chat(2)[1], capsys))]
    for number in range(40):
        node.store(chain(1_000 + number, CHUNKS))
    again = pool.chat(2)[1]
    answer = asked(pool, again, capsys)
    (run,) = answer["requests"][0]["missed"]
    assert (run["first"], run["last"], run["why"]) == (0, CHUNKS - 1, "evicted")
    assert run["seconds_before"] >= 0
    assert run["lived_seconds"] > 0
    words = ["--url", f"http://127.0.0.1:{node.process.port}", "--router", f"http://127.0.0.1:{pool.port}"]
    assert why.main([again, *words]) == 0
    shown = capsys.readouterr().out
    assert "made room for others" in shown
    assert "fewer than expected" in shown


def test_what_was_cleared_is_told_apart(pool: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A call removed it, not the lack of room."""
    node = pool.nodes[served_by(asked(pool, pool.chat(3)[1], capsys))]
    keys = chain(3, CHUNKS)
    shown = [keys[at : at + 32].hex() for at in range(0, len(keys), 32)]
    post(node.process, "/v1/clear", {"fingerprint": FINGERPRINT.hex(), "keys": shown})
    assert missed(asked(pool, pool.chat(3)[1], capsys)) == [(0, CHUNKS - 1, "cleared")]


def test_what_a_killed_node_held_is_told_with_its_name(pool: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """The index still names it when it is asked for, here for longer than the 3 s of its lease; the engines of the other node compute."""
    one, two = pool.nodes
    index = two.process.stats()["index"]
    names = Names(IndexSettings().prefix)
    two.store(chain(4, CHUNKS))
    with RawClient(pool.redis) as redis:
        until(lambda: redis("EXISTS", names.holders(chain(4, CHUNKS)[-32:-24])) == 1, "it is published")
        pool.engines[1].failing = True
        two.process.kill()
        assert redis("PEXPIRE", names.lease(index["slot"]), 60_000) == 1
    answer = asked(pool, pool.chat(4)[1], capsys)
    assert answer["router"]["node"] == one.name
    (run,) = answer["requests"][0]["missed"]
    assert (run["why"], run["peers"]) == ("node_gone", [two.name])


def test_who_asks_for_a_request_that_nobody_knows_is_told_so(pool: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """With a status that scripts see, and words for people."""
    words = ["--url", f"http://127.0.0.1:{pool.nodes[0].process.port}", "--router", f"http://127.0.0.1:{pool.port}"]
    assert why.main(["nobody", *words]) == 1
    assert "no such request" in capsys.readouterr().err
