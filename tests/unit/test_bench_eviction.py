"""The eviction benchmark: streams that are always the same, traces that are read with care, and figures of what was measured."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import pytest
from kvcommons_core import _native

from bench.eviction import POLICIES, STATIC, Cell, figures, measure, read, stream_of
from bench.eviction_traces import KINDS, make


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_made_by_its_seed(kind: str) -> None:
    """The same kind and seed give the same requests; another seed gives others."""
    assert make(kind, 1, 2_000) == make(kind, 1, 2_000)
    assert make(kind, 1, 2_000) != make(kind, 2, 2_000)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_stands_for_all_before_it(kind: str) -> None:
    """Equal numbers in a stream always follow the same number."""
    before: dict[int, int] = {}
    for request in make(kind, 7, 5_000):
        for parent, chunk in zip([-1, *request], request, strict=False):
            assert before.setdefault(chunk, parent) == parent


def test_no_policy_beats_the_one_that_knows_the_future() -> None:
    """In every cell Belady's hit rate bounds the others'."""
    stream = stream_of("chat", make("chat", 3, 8_000))
    for fraction in (0.01, 0.1, 0.5):
        cell = measure(stream, fraction)
        assert set(cell.points) == set(POLICIES)
        assert max(cell.points[name] for name in (*STATIC, "auto")) <= cell.points["belady"]


def test_traces_are_lists_or_objects_with_hash_ids(tmp_path: Path) -> None:
    """Both forms are read; anything else is an error that names file, line and remedy."""
    path = tmp_path / "trace.jsonl"
    path.write_text('[1, 2]\n{"timestamp": 0, "hash_ids": [1, 3]}\n')
    assert read(path) == [[1, 2], [1, 3]]
    path.write_text(json.dumps({"ids": [1]}))
    with pytest.raises(ValueError, match=r"trace\.jsonl:1: .*write \[1, 2"):
        read(path)


def test_replay_names_what_it_can_not_use() -> None:
    """An unknown policy and arrays of other widths are errors that name the argument and the remedy."""
    with pytest.raises(ValueError, match='policy is "fifo": pass lru'):
        _native.eviction_replay("fifo", array("I", [1]), array("Q", [1]), 1)
    with pytest.raises(ValueError, match="keys has items of 4 bytes: pass"):
        _native.eviction_replay("lru", array("I", [1]), array("I", [1]), 1)


def test_figures_tell_the_worst_cell() -> None:
    """What is reported is the largest loss of auto to the best of the static policies, and where it was."""
    points = {"lru": 50.0, "s3fifo": 40.0, "cost": 45.0, "auto": 49.5, "belady": 60.0}
    cells = [Cell("a", 10, points, 1), Cell("b", 20, {**points, "auto": 51.0}, 0)]
    told = figures(cells)
    assert told["worst_cell_below_best_static"] == pytest.approx(0.5)
    assert told["worst_cell"] == "a at 10 chunks"
    assert told["cells_over_limit"] == 1
