"""Shell completion: what is offered is what the commands take."""

from __future__ import annotations

import subprocess

import kvcommons_cli
import pytest
from kvcommons_cli import completion
from kvcommons_cli.completion import Command, flags_in

FOUND = [
    Command("node", "Run a node: it's one", ("--arena-bytes", "--help")),
    Command("status", "Show pools", ("--context", "--help", "--kubeconfig")),
]


def offered(*words: str) -> list[str]:
    """What bash offers for the last word."""
    line = " ".join(f"'{word}'" for word in ("kvcommons", *words))
    asked = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _kvcommons; printf "%s\\n" "${{COMPREPLY[@]}}"'
    script = completion.SCRIPTS["bash"](FOUND) + asked
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("st",), ["status"]),
        (("",), ["node", "status", "--help", "--version"]),
        (("status", "--k"), ["--kubeconfig"]),
        (("node", "--arena-bytes", "1", "--a"), ["--arena-bytes"]),
        (("node", "/etc"), []),
        (("unknown", "--"), []),
    ],
)
def test_bash_offers_commands_then_their_flags(words: tuple[str, ...], expected: list[str]) -> None:
    """First the commands; behind one its own flags; else nothing, so that the shell offers files."""
    assert offered(*words) == expected


def test_every_shell_s_script_has_all_commands_and_flags() -> None:
    """What a shell is told is the same in each of the three, with quotes that do not end early."""
    for shell, script in completion.SCRIPTS.items():
        text = script(FOUND)
        for word in ("node", "status", "arena-bytes", "kubeconfig"):
            assert word in text, shell
    assert r"it'\''s one" in completion.SCRIPTS["zsh"](FOUND)
    assert r"it\'s one" in completion.SCRIPTS["fish"](FOUND)


def test_flags_are_read_from_a_help_text() -> None:
    """Long flags with dots and dashes, each once; not what only looks like one."""
    text = "usage: x [--index.url URL] --arena-bytes 2GiB\n  --arena-bytes  size --\n  a--b ---c --token-file=F"
    assert flags_in(text) == ("--arena-bytes", "--help", "--index.url", "--token-file")


def test_the_printed_script_knows_what_the_commands_take(capsys: pytest.CaptureFixture[str]) -> None:
    """The script is made of the commands' own help: a flag of the node and one of this command are in it."""
    assert completion.main(["bash"]) == 0
    text = capsys.readouterr().out
    for name in kvcommons_cli.commands():
        assert f"    {name}) flags=" in text
    assert "--arena-bytes" in text
    assert "--kubeconfig" in text
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """Three shells, and their names in the refusal."""
    with pytest.raises(SystemExit) as ended:
        completion.main(["tcsh"])
    assert ended.value.code == 2
    assert "bash" in capsys.readouterr().err
