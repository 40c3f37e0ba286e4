"""Style is a test: what a formatter and a linter do not see, in every file of the repository."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TREES = ("operator", "cache_node", "connector", "csrc", "tests", "bench", "docs", "charts", "crds", ".ci")
TEXT = {".py", ".pyi", ".h", ".cpp", ".cu", ".md", ".toml", ".txt", ".yaml", ".json", ".cmake", ".lua", ""}
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 80

# What is longer, and why it stays in one piece.
LONG_MODULES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
# Tests that let a time pass, and why: nothing in them waits for a condition by it.
DELAYS = {"csrc/tests/client_restart_test.cpp": "kills a node after a random delay: where in its work is the point"}

# A file may speak of the project and of nothing of the machine that it was written on.
FORBIDDEN = {
    r"(?<![\w.])/work/": "a path of one machine",
    r"(?<![\w.])/root/": "a path of one machine",
    r"(?<![\w./])shared/": "a folder that is not in the repository",
    r"\bshell=True\b": "a shell between us and a command",
    r"(?i)\b(fixme|xxx):": "an unfinished thing; finish it or open an issue",
}


def files() -> Iterator[Path]:
    """Every text of the repository but what is made (build trees are ignored by git and lie elsewhere)."""
    yield from (path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXT and path.name != ".git")
    for tree in TREES:
        for path in (ROOT / tree).rglob("*"):
            if path.is_file() and path.suffix in TEXT and "__pycache__" not in path.parts:
                yield path


def texts() -> Iterator[tuple[str, str]]:
    """(path in the repository, its text) of each file but this one, which must name what it forbids."""
    for path in files():
        if path == Path(__file__).resolve():
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_file_says_what_none_may_say(pattern: str) -> None:
    """Paths of a machine, shells and unfinished things are in no file."""
    found = [
        f"{name}:{number}: {FORBIDDEN[pattern]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if re.search(pattern, line)
    ]
    assert not found


def test_no_module_is_too_long() -> None:
    """A module over the limit is listed with its reason; one that shrank leaves the list."""
    sources = {name: text for name, text in texts() if name.endswith((".py", ".h", ".cpp", ".cu"))}
    long = {name for name, text in sources.items() if text.count("\n") > MODULE_LINES_MAX}
    assert long == set(LONG_MODULES)


def test_no_function_is_too_long() -> None:
    """The same for functions of Python."""
    long = {
        f"{name}:{node.name}"
        for name, text in texts()
        if name.endswith(".py")
        for node in functions(ast.parse(text))
        if (node.end_lineno or 0) - node.lineno >= FUNCTION_LINES_MAX
    }
    assert long == set(LONG_FUNCTIONS)


def sleeps(name: str, text: str) -> Iterator[int]:
    """Lines that wait for a time: calls in Python (what a child process is told to do is its own affair), words in C++."""
    if name.endswith(".py"):
        calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
        yield from (call.lineno for call in calls if ast.unparse(call.func) in ("time.sleep", "sleep"))
    else:
        lines = enumerate(text.splitlines(), 1)
        yield from (number for number, line in lines if re.search(r"\b(sleep_for|sleep_until|usleep)\(", line))


def test_no_test_sleeps() -> None:
    """A test waits for a condition, never for a time."""
    tests = [(name, text) for name, text in texts() if name.startswith(("tests/", "csrc/tests/"))]
    assert {name for name, text in tests if list(sleeps(name, text))} == set(DELAYS)


def test_every_test_says_the_behaviour_that_it_proves() -> None:
    """A test has a docstring: a whole sentence."""
    silent = [
        f"{name}:{node.name}"
        for name, text in texts()
        if name.startswith("tests/") and name.endswith(".py")
        for node in functions(ast.parse(text))
        if node.name.startswith("test_") and not (ast.get_docstring(node) or "").strip().endswith((".", "!", "?"))
    ]
    assert not silent
