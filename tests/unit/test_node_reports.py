"""What requests reused, and the stream of events: kept, bounded and told to whoever asks."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest
from kvcommons_core.misses import EXPLANATIONS, LOOKUP_FAILED, explained
from kvcommons_node.api.models_requests import RequestsQuery
from kvcommons_node.api.refusals import Refusal
from kvcommons_node.feed import WAITING_MAX, WATCHERS_MAX, Feed
from kvcommons_node.reports import REPORTS_MAX, Reports

CONNECTOR = Path(__file__).resolve().parents[2] / "connector" / "kvcommons_connector"


def report(request: str, reason: str = "", **tokens: int) -> str:
    counts = {"prompt_tokens": 10, "own_tokens": 0, "commons_tokens": 8, "computed_tokens": 2} | tokens
    return json.dumps({"request_id": request, "reason": reason, **counts})


def test_reports_come_newest_first_in_pages() -> None:
    """A page says where the next one begins, and each report is on exactly one."""
    now = [5.0]
    reports = Reports(lambda: now[0])
    for number in range(5):
        reports.hear(report(f"r{number}"))
    now[0] += 2
    first = reports.page(RequestsQuery(limit=2))
    second = reports.page(RequestsQuery(limit=2, before=first.next))
    third = reports.page(RequestsQuery(limit=2, before=second.next))
    assert [one.request_id for page in (first, second, third) for one in page.requests] == [
        "r4",
        "r3",
        "r2",
        "r1",
        "r0",
    ]
    assert (third.next, first.kept, first.requests[0].age_seconds) == (0, 5, 2.0)


def test_why_a_request_reused_less_is_told_in_words() -> None:
    """One request by its name, or those that missed; the reason comes with what to do about it."""
    reports = Reports()
    reports.hear(report("hit"))
    reports.hear(report("miss", "not_found", commons_tokens=0))
    (one,) = reports.page(RequestsQuery(request="miss")).requests
    assert (one.reason, one.commons_tokens, one.computed_tokens) == ("not_found", 0, 2)
    assert "evicted" in one.explanation
    assert [one.request_id for one in reports.page(RequestsQuery(missed=True)).requests] == ["miss"]
    assert reports.page(RequestsQuery(request="other")).requests == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"request_id": 7}', '{"reason": []}', "[" * 100_000])
def test_what_is_no_report_is_not_kept(text: str) -> None:
    """Engines are not trusted: what is malformed is left out, however it is."""
    reports = Reports()
    assert reports.hear(text) is None
    assert len(reports) == 0


def test_counts_out_of_range_are_nothing_and_names_are_cut() -> None:
    """A negative, huge or wrong count is 0, and no name fills the memory."""
    reports = Reports()
    heard = reports.hear(json.dumps({"request_id": "x" * 10_000, "own_tokens": -1, "prompt_tokens": 10**30}))
    assert heard is not None
    assert (heard["own_tokens"], heard["prompt_tokens"], len(str(heard["request_id"]))) == (0, 0, 256)


def test_only_the_last_reports_are_kept() -> None:
    """Memory is bounded: the oldest go."""
    reports = Reports()
    for number in range(REPORTS_MAX + 3):
        reports.hear(report(str(number)))
    assert len(reports) == REPORTS_MAX
    assert reports.page(RequestsQuery(request="2")).requests == []
    assert len(reports.page(RequestsQuery(request="3")).requests) == 1


def reasons_in(source: str) -> set[str]:
    """Words that are assigned to an attribute `reason` or `miss`, alone or in a tuple."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and any(
            isinstance(one, ast.Attribute) and one.attr in ("reason", "miss")
            for target in node.targets
            for one in ast.walk(target)
        ):
            constants = [one.value for one in ast.walk(node.value) if isinstance(one, ast.Constant)]
            found |= {one for one in constants if isinstance(one, str)}
    return found


def test_every_reason_that_the_connector_s_scheduler_gives_has_words_of_its_own() -> None:
    """A reason written there is explained by name; `lookup_` is the beginning of a status."""
    given = {
        reason for name in ("scheduler.py", "questions.py") for reason in reasons_in((CONNECTOR / name).read_text())
    }
    assert {"not_found", "partly_found", "node_away", "load_failed"} <= given
    assert given - {"lookup_"} <= EXPLANATIONS.keys()
    assert explained("lookup_busy") == LOOKUP_FAILED


async def test_a_follower_gets_what_it_asked_for_in_order() -> None:
    """Kinds that were not asked for are left out; closing ends the stream behind what was told."""
    feed = Feed()
    with feed.watch("freed, request") as watcher:
        feed.tell("committed", {"key": "1"})
        feed.tell("freed", {"key": "1"})
        feed.tell("request", {"request_id": "a"})
        feed.close()
        assert [word async for word in watcher.words(1.0)] == [
            ("freed", {"key": "1"}),
            ("request", {"request_id": "a"}),
        ]
    assert not feed.followed


async def test_a_slow_follower_is_told_how_much_it_lost() -> None:
    """Nobody waits for a follower: what finds no room is dropped, and counted for it behind what it still gets."""
    feed = Feed()
    with feed.watch("") as watcher:
        for number in range(WAITING_MAX + 7):
            feed.tell("committed", {"key": str(number)})
        feed.close()
        words = [word async for word in watcher.words(1.0)]
    kinds = [word[0] for word in words if word is not None]
    assert kinds == ["committed"] * WAITING_MAX + ["gap"]
    assert words[-1] == ("gap", {"lost": 7})


def test_followers_are_bounded_and_kinds_are_checked() -> None:
    """One follower too many and a misspelt kind are refused with the remedy."""
    feed = Feed()
    with pytest.raises(Refusal) as refused:
        feed.watch("comitted").__enter__()
    assert "committed" in refused.value.detail.remedy
    watchers = [feed.watch("") for _ in range(WATCHERS_MAX)]
    for one in watchers:
        one.__enter__()
    with pytest.raises(Refusal):
        feed.watch("").__enter__()
    for one in watchers:
        one.__exit__(None, None, None)
    assert not feed.followed
