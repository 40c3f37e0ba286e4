"""Print a script that completes commands and flags in a shell: bash, zsh or fish."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

HELP_SECONDS_MAX = 60.0
HELPS_AT_ONCE = 4
FAILED_STATUS = 1
EPILOG = """
Once, and again after an upgrade (it asks every command for its flags, which takes some seconds):

  bash:  kvcommons completion bash > ~/.local/share/bash-completion/completions/kvcommons
  zsh:   kvcommons completion zsh > "${fpath[1]}/_kvcommons"
  fish:  kvcommons completion fish > ~/.config/fish/completions/kvcommons.fish
"""
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9]*(?:[.-][a-z0-9]+)*")


@dataclass(frozen=True)
class Command:
    """What there is to complete of a subcommand."""

    name: str
    summary: str
    flags: tuple[str, ...]


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="kvcommons completion",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("shell", choices=sorted(SCRIPTS), help="whose script")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    shell = parser().parse_args(argv).shell
    from kvcommons_cli import commands, summary

    summaries = {name: summary(point) for name, point in commands().items()}
    try:
        sys.stdout.write(SCRIPTS[shell](gather(summaries)))
    except subprocess.SubprocessError as error:
        sys.stderr.write(f"kvcommons completion: {error}\n")
        return FAILED_STATUS
    return 0


def gather(summaries: Mapping[str, str]) -> list[Command]:
    """Every command with its flags, as its own --help tells them: so what is completed is what there is."""
    with ThreadPoolExecutor(HELPS_AT_ONCE) as pool:
        helps = list(pool.map(_help, summaries))
    return [Command(name, summaries[name], flags_in(text)) for name, text in zip(summaries, helps, strict=True)]


def flags_in(text: str) -> tuple[str, ...]:
    """Long flags that a help text names, each once."""
    return tuple(sorted({"--help", *_FLAG.findall(text)}))


def _help(name: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kvcommons_cli", name, "--help"],
        env={**os.environ, "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=HELP_SECONDS_MAX,
        check=False,
    )
    return done.stdout  # a room that is not installed has no flags to complete


def _bash(found: Sequence[Command]) -> str:
    cases = "\n".join(f"    {one.name}) flags='{' '.join(one.flags)}' ;;" for one in found)
    names = " ".join(one.name for one in found)
    return f"""# Completion of kvcommons for bash: save or source this.
_kvcommons() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" flags=''
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W '{names} --help --version' -- "$current"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$flags" -- "$current")) ;;
  esac
}}
complete -o default -F _kvcommons kvcommons
"""


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "'\\''")


def _zsh(found: Sequence[Command]) -> str:
    names = "\n".join(f"    '{one.name}:{_quoted(one.summary).replace(':', chr(92) + ':')}'" for one in found)
    cases = "\n".join(f"    {one.name}) flags=({' '.join(one.flags)}) ;;" for one in found)
    return f"""#compdef kvcommons
# Completion of kvcommons for zsh: source this after compinit, or save it as _kvcommons in a folder of $fpath.
_kvcommons() {{
  local -a commands flags
  commands=(
{names}
  )
  if (( CURRENT == 2 )); then
    _describe 'command' commands
    return
  fi
  case "$words[2]" in
{cases}
  esac
  if [[ "$words[CURRENT]" == -* ]]; then
    compadd -- $flags
  else
    _files
  fi
}}
if [[ "$funcstack[1]" == "_kvcommons" ]]; then
  _kvcommons "$@"
else
  compdef _kvcommons kvcommons
fi
"""


def _fish(found: Sequence[Command]) -> str:
    lines = ["# Completion of kvcommons for fish: save this in ~/.config/fish/completions/kvcommons.fish"]
    for one in found:
        summary = one.summary.replace("\\", "\\\\").replace("'", "\\'")
        lines.append(f"complete -c kvcommons -f -n __fish_use_subcommand -a {one.name} -d '{summary}'")
    for one in found:
        seen = f"-n '__fish_seen_subcommand_from {one.name}'"
        lines += [f"complete -c kvcommons {seen} -l {flag.removeprefix('--')}" for flag in one.flags]
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
