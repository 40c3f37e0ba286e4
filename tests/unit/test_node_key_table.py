"""Numbers by 64-bit keys in arrays: a fixed size, and the oldest give way."""

from __future__ import annotations

import random

from kvcommons_node.key_table import WAYS, KeyTable


def test_a_key_keeps_its_row_until_others_push_it_out() -> None:
    """What is written beside it is found by it meanwhile; only who wrote after it can take its row."""
    table = KeyTable(2)
    rows = {key: table.place(key) for key in range(1, WAYS + 1)}
    assert sorted(row for row, _ in rows.values()) == list(range(WAYS))
    assert not any(known for _, known in rows.values())
    assert table.place(1) == (rows[1][0], True)
    assert table.place(9) == (rows[2][0], False)
    assert [table.find(key) is None for key in (1, 2, 3, 4, 9)] == [False, True, False, False, False]


def test_nearly_all_of_half_as_many_keys_as_rows_are_remembered() -> None:
    """Whatever came before them."""
    choose = random.Random(1)
    keys = [choose.getrandbits(64) | 1 for _ in range(40_000)]
    table = KeyTable(12)
    for key in keys:
        table.place(key)
    lately = keys[-(1 << 11) :]
    assert sum(table.find(key) is not None for key in lately) > 0.95 * len(lately)
    assert sum(table.find(key) is not None for key in keys) <= 1 << 12


def test_zero_is_no_key() -> None:
    """It would be found in every empty row."""
    assert KeyTable(4).find(0) is None
