"""The benchmark of the time to first token: neighbours in time are compared, and only at equal reuse and equal answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from bench import ttft
from bench.ttft import BLOCK_TOKENS, Engine, measure, ratio_of_pairs


class ScriptedEngine:
    """Answers at once. `shared`: texts that any engine has seen; as an engine it finds them by their whole length."""

    def __init__(self, shared: set[tuple[int, ...]], *, loses: int = 0) -> None:
        self.shared, self.loses = shared, loses
        self.own: set[tuple[int, ...]] = set()
        self.asked: list[str] = []

    def ask(self, ids: Sequence[int]) -> tuple[float, list[int], int]:
        text = tuple(ids)
        kind = "native" if text in self.own else "commons" if text in self.shared else "cold"
        self.own.add(text)
        self.shared.add(text)
        if len(text) > BLOCK_TOKENS:
            self.asked.append(kind)
        reused = 0 if kind == "cold" else len(text) - BLOCK_TOKENS - (self.loses if kind == "commons" else 0)
        return {"cold": 900.0, "commons": 11.0, "native": 10.0}[kind], [sum(text) % 7], reused

    def forget(self) -> None:
        self.own.clear()


def pair_of(loses: int = 0) -> tuple[ScriptedEngine, ScriptedEngine]:
    shared: set[tuple[int, ...]] = set()
    return ScriptedEngine(shared), ScriptedEngine(shared, loses=loses)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ttft, "SETTLE_SECONDS", 0.0)


def test_commons_and_native_are_asked_in_turns_of_an_engine_that_has_forgotten() -> None:
    """Each prompt is computed once by the first engine; the second never computes one."""
    first, second = pair_of()
    times = measure(cast(Engine, first), cast(Engine, second), [256, 512], rounds=2, pairs=3)
    assert times[512] == {"cold": [900.0] * 2, "commons": [11.0] * 6, "native": [10.0] * 6}
    assert set(first.asked) == {"cold"}
    assert second.asked[-24:] == ["commons", "native"] * 12
    assert ratio_of_pairs(times[512]["commons"], times[512]["native"]) == 1.1


def test_less_reuse_than_is_possible_is_an_error_and_no_figure() -> None:
    """A hit that leaves more to compute would be compared with one that leaves less."""
    first, second = pair_of(loses=BLOCK_TOKENS)
    with pytest.raises(RuntimeError, match=r"commons, 512: .* with 384 reused"):
        measure(cast(Engine, first), cast(Engine, second), [512], rounds=1, pairs=1)


def test_the_ratio_is_that_of_neighbours_and_not_of_medians() -> None:
    """A machine that is twice as slow for some minutes does not change it."""
    assert ratio_of_pairs([10.0, 20.0, 22.0, 11.0], [10.0, 20.0, 20.0, 10.0]) == 1.05
