"""A request's hints for eviction: read with care, packed as the protocol says, and never a reason to fail."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import pytest
from kvcommons_connector import hints
from kvcommons_connector.hints import packed_hints


@pytest.fixture(autouse=True)
def _nothing_named_yet() -> None:
    hints._named.clear()


def said(values: Mapping[str, object]) -> int:
    return packed_hints({"kvcommons": {"v": 1, **values}})


def test_hints_are_packed_as_the_protocol_has_them() -> None:
    """Bit 0 one_shot, bit 1 session_end, a byte of priority, sixteen bits of seconds."""
    assert said({"one_shot": True}) == 1
    assert said({"session_end": True}) == 2
    assert said({"priority": -4}) == 0xFC00
    assert said({"ttl_s": 600, "one_shot": False}) == 600 << 16
    assert said({"one_shot": True, "session_end": True, "priority": 4, "ttl_s": 65_535}) == 0xFFFF_0403


@pytest.mark.parametrize(
    "params", [None, 7, {}, {"kvcommons": 1}, {"kvcommons": {"one_shot": True}}, {"one_shot": True}]
)
def test_requests_without_hints_say_nothing(params: object) -> None:
    """What is not ours, or of another version, is left alone."""
    assert packed_hints(params) == 0


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("one_shot", 1, "true or false"),
        ("session_end", "yes", "true or false"),
        ("priority", 5, "a whole number of -4 to 4"),
        ("priority", True, "a whole number of -4 to 4"),
        ("ttl_s", 0, "a whole number of 1 to 65535"),
        ("ttl_s", 1.5, "a whole number of 1 to 65535"),
    ],
)
def test_a_bad_hint_is_named_once_and_the_others_hold(
    name: str, value: object, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names field, value and remedy at the first time; the request goes on with its other hints."""
    good = {"ttl_s": 60} if name != "ttl_s" else {"one_shot": True}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert said({name: value, **good}) == said(good)
    assert len(caplog.records) == 1
    assert f"kv_transfer_params.kvcommons.{name} is {value!r}: ignored; give {remedy}" in caplog.text
