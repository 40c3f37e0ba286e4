"""What others may call says what it does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOM = Path(__file__).resolve().parents[2] / "operator" / "kvcommons_operator"


def silent(node: ast.Module | ast.ClassDef, place: str) -> Iterator[str]:
    """Public classes, functions and methods without a docstring; a protocol's one-line method is told by its class."""
    for part in node.body:
        if not isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or part.name.startswith("_"):
            continue
        if not ast.get_docstring(part) and part.body[0].lineno != part.lineno:
            yield f"{place}:{part.lineno} {part.name}"
        if isinstance(part, ast.ClassDef):
            yield from silent(part, place)


def test_everything_public_of_the_operator_has_a_docstring() -> None:
    """A reader of a call need not read the body."""
    found = []
    for file in sorted(ROOM.rglob("*.py")):
        found += list(silent(ast.parse(file.read_text()), str(file.relative_to(ROOM))))
    assert not found, "\n".join(found)
