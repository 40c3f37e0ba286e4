"""The `kvcommons` command: finds the rooms' subcommands by entry points and starts rooms as processes."""

import argparse
import ast
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

GROUP = "kvcommons.commands"


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


def _parser(found: dict[str, importlib.metadata.EntryPoint]) -> argparse.ArgumentParser:
    listing = "\n".join(f"  {name:10} {summary(point)}" for name, point in found.items())
    parser = argparse.ArgumentParser(
        prog="kvcommons",
        description="One commons of KV caches for all replicas of a cluster.",
        epilog=f"commands:\n{listing}\n\n`kvcommons COMMAND --help` tells more.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("kvcommons"))
    parser.add_argument("command", metavar="COMMAND", choices=list(found), help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed on to the command")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    found = commands()
    chosen = _parser(found).parse_args(argv)
    point = found[chosen.command]
    if point.module.split(".")[0] != __name__:
        start_room(point.module, chosen.arguments)
    run: Callable[[Sequence[str]], int] = point.load()
    return run(chosen.arguments)
