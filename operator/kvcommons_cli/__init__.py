"""The `kvcommons` command: finds the rooms' subcommands by entry points and starts rooms as processes."""

import argparse
import ast
import difflib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

GROUP = "kvcommons.commands"
MISUSED_STATUS = 2


def commands() -> dict[str, importlib.metadata.EntryPoint]:
    """Subcommands by name. A distribution beside this one may add its own."""
    return {point.name: point for point in sorted(importlib.metadata.entry_points(group=GROUP))}


def summary(point: importlib.metadata.EntryPoint) -> str:
    """First line of the module's docstring, read without running the module."""
    spec = importlib.util.find_spec(point.module)
    if spec is None or spec.origin is None:
        return "(not installed)"
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def start_room(module: str, arguments: Sequence[str]) -> NoReturn:
    """Become the room's process: signals and exit status are then the room's own, with nothing in between.

    -P keeps the folder the user stands in off the path of imports.
    """
    name = module.removesuffix(".__main__")
    os.execv(sys.executable, [sys.executable, "-P", "-m", name, *arguments])


def unknown(name: str, known: Iterable[str]) -> str:
    """What is said to a command that is none."""
    near = difflib.get_close_matches(name, list(known), n=3)
    near.sort(key=lambda one: sorted(one) != sorted(name))  # two letters that changed places are the commonest slip
    hint = f"did you mean `kvcommons {near[0]}`?" if near else "`kvcommons` alone lists them"
    return f"kvcommons: there is no command {name!r}; {hint}\n"


def _parser(found: dict[str, importlib.metadata.EntryPoint]) -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:10} {summary(point)}" for name, point in found.items())
    parser = argparse.ArgumentParser(
        prog="kvcommons",
        description="One commons of KV caches for all replicas of a cluster.",
        epilog=f"commands:\n{listing}\n\n`kvcommons COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("kvcommons"))
    parser.add_argument("command", metavar="COMMAND", nargs="?", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the command")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    found = commands()
    parser = _parser(found)
    chosen = parser.parse_args(argv)
    if chosen.command is None:
        parser.print_help(sys.stderr)
        return MISUSED_STATUS
    if chosen.command not in found:
        sys.stderr.write(unknown(chosen.command, found))
        return MISUSED_STATUS
    point = found[chosen.command]
    if point.module.split(".")[0] != __name__:
        start_room(point.module, chosen.arguments)
    run: Callable[[Sequence[str]], int] = point.load()
    return run(chosen.arguments)
