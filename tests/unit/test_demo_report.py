"""How the demo judges what it saw, and how it tells it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_cli import demo_report
from kvcommons_cli.demo_report import Row, reusable_tokens
from kvcommons_cli.demo_texts import CHAT_OPENING, HARBOUR, ISLAND, handbook

WARM = Row(
    scenario="a document",
    step="second question",
    replica="replica-b",
    expected="commons",
    prompt_tokens=2_700,
    reusable_tokens=2_560,
    own_tokens=0,
    commons_tokens=2_560,
    computed_tokens=140,
    ttft_seconds=0.5,
    cold_ttft_seconds=8.0,
    text="Yes.",
    reference_text="Yes.",
)


def test_a_warm_answer_from_the_commons_is_as_promised() -> None:
    """All chunks reused, the same words, a fraction of the time: nothing to complain of."""
    assert WARM.failures() == []
    assert (WARM.reuse_ratio, WARM.warm_over_cold) == (1.0, 0.0625)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"text": "No."}, "the text differs"),
        ({"commons_tokens": 2_048}, "80 % were reused from the commons"),
        ({"commons_tokens": 0, "own_tokens": 2_560}, "0 % were reused from the commons"),
        ({"reusable_tokens": 0, "commons_tokens": 0}, "0 % were reused from the commons"),
        ({"ttft_seconds": 3.3}, "first token after 0.41 of the cold time"),
        ({"expected": "reused", "commons_tokens": 0}, "0 % were reused at all"),
        ({"expected": "reused", "ttft_seconds": 3.3}, "first token after 0.41 of the cold time"),
    ],
)
def test_what_is_not_as_promised_is_a_failure(changed: dict[str, object], told: str) -> None:
    """Another text, too little reuse, reuse from the wrong place, and a slow first token are each told."""
    row = replace(WARM, **changed)  # type: ignore[arg-type]  # one field of Row at a time
    (failure,) = row.failures()
    assert told in failure
    assert "a document, second question" in failure
    assert row.verdict.startswith("NOT OK: expected ")


@pytest.mark.parametrize(
    "changed",
    [
        {"expected": "reused", "own_tokens": 2_560, "commons_tokens": 0},
        {"expected": "reused", "own_tokens": 1_280, "commons_tokens": 1_280},
        {"expected": "cold", "commons_tokens": 0, "ttft_seconds": 8.0},
        {"expected": "served", "commons_tokens": 0, "ttft_seconds": 9.0},
        {"commons_tokens": 2_304},
    ],
)
def test_what_was_not_promised_is_no_failure(changed: dict[str, object]) -> None:
    """A cold request, one with the node dead, and reuse from either cache where either would do."""
    assert replace(WARM, **changed).failures() == []  # type: ignore[arg-type]  # one or two fields of Row


def test_each_row_of_the_table_ends_with_its_verdict() -> None:
    """A reader sees at the row itself whether it is as promised, and else what was expected."""
    late, lost = replace(WARM, ttft_seconds=3.3), replace(WARM, commons_tokens=0)
    ends = [line.rpartition("  ")[2] for line in demo_report.table([WARM, late, lost]).splitlines()]
    assert ends[0] == "verdict"
    assert ends[-3:] == ["ok", "NOT OK: expected at most 0.4 of cold", "NOT OK: expected 90 % from the commons"]


def test_a_different_text_fails_even_a_cold_answer() -> None:
    """Wrong words are never excused."""
    assert len(replace(WARM, expected="served", text="No.").failures()) == 1


@pytest.mark.parametrize(
    ("prompt", "earlier", "tokens"),
    [
        (range(600), [], 0),
        (range(600), [range(600)], 512),
        (range(600), [[*range(300), 7]], 256),
        (range(600), [range(100), range(520)], 512),
        (range(512), [range(512)], 256),
        ([1, *range(600)], [range(600)], 0),
    ],
)
def test_whole_chunks_of_the_longest_earlier_prefix_can_be_reused(
    prompt: range, earlier: list[range], tokens: int
) -> None:
    """Only whole chunks count, and never all of a prompt: an engine computes its last block anew."""
    assert reusable_tokens(list(prompt), [list(one) for one in earlier]) == tokens


@given(st.lists(st.integers(0, 3), max_size=1_200), st.lists(st.lists(st.integers(0, 3), max_size=1_200), max_size=3))
def test_what_can_be_reused_is_whole_chunks_below_the_prompt(prompt: list[int], earlier: list[list[int]]) -> None:
    """For any prompts the result is a multiple of a chunk, below the prompt's length, and a true prefix of one of them."""
    tokens = reusable_tokens(prompt, earlier)
    assert tokens % demo_report.CHUNK_TOKENS == 0
    assert tokens == 0 or tokens < len(prompt)
    assert tokens == 0 or any(one[:tokens] == prompt[:tokens] for one in earlier)


def test_the_report_and_the_table_tell_the_same() -> None:
    """Each row stands in both; a failure makes the report not ok and the table say DIFFERS."""
    rows = [WARM, replace(WARM, step="third", text="No.")]
    found = demo_report.failures(rows, ["the node did not adopt"])
    document = demo_report.document(rows, found, {"total_seconds": 3})
    assert document["ok"] is False
    assert document["failures"] == found
    assert found[0] == "the node did not adopt"
    table = demo_report.table(rows)
    assert next(line for line in table.splitlines() if "DIFFERS" in line).startswith("third")
    assert "100 %" in table
    assert "0.06" in table
    assert demo_report.document([WARM], [], {})["ok"] is True


def test_the_texts_are_long_different_and_always_the_same() -> None:
    """The demo's texts are made from a seed: no two share a beginning, and each is made the same again."""
    assert handbook("T", 7, 3, 4) == handbook("T", 7, 3, 4)
    texts = [HARBOUR.text, ISLAND.text, CHAT_OPENING.text]
    assert len({text[:80] for text in texts}) == 3
    assert min(len(HARBOUR.text), len(ISLAND.text)) > 8_000
