"""The `kvcommons` command: lists what entry points offer, and becomes the process of a room."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import kvcommons_cli
import pytest


def kvcommons(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "kvcommons_cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)


def test_help_lists_each_command_with_the_first_line_of_its_module(tmp_path: Path) -> None:
    """What a command is for is read from its module, which is not run for it."""
    done = kvcommons("--help", folder=tmp_path)
    assert done.returncode == 0
    for name, point in kvcommons_cli.commands().items():
        assert f"{name:10} {kvcommons_cli.summary(point)}" in done.stdout
    assert "not installed" not in done.stdout


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("stauts", "did you mean `kvcommons status`?"),
        ("nodde", "there is no command 'nodde'; did you mean `kvcommons node`?"),
        ("state", "did you mean `kvcommons stat"),
        ("xyzzy", "`kvcommons` alone lists them"),
    ],
)
def test_an_unknown_command_is_refused_with_the_nearest_one(typed: str, told: str, tmp_path: Path) -> None:
    """A typo ends with status 2 and one line that says what was probably meant."""
    done = kvcommons(typed, folder=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_a_command_the_list_is_shown(tmp_path: Path) -> None:
    """`kvcommons` alone says what there is, and that nothing was done, by status 2."""
    done = kvcommons(folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    for name, point in kvcommons_cli.commands().items():
        assert f"{name:10} {kvcommons_cli.summary(point)}" in done.stderr


def test_a_room_s_command_becomes_the_room_s_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """exec, not a child: a signal to the command is a signal to the room; no folder of the user's is imported from."""
    ran: list[list[str]] = []

    def execv(path: str, arguments: list[str]) -> None:
        assert path == sys.executable
        ran.append(arguments)
        raise SystemExit(0)

    monkeypatch.setattr("os.execv", execv)
    with pytest.raises(SystemExit):
        kvcommons_cli.main(["node", "--socket", "x"])
    assert ran == [[sys.executable, "-P", "-m", "kvcommons_node", "--socket", "x"]]


def test_a_room_tells_its_own_options(tmp_path: Path) -> None:
    """`kvcommons node --help` is the node's help, from a folder that holds a module of a standard name."""
    (tmp_path / "operator.py").write_text("raise SystemExit('shadowed')")
    script = Path(sys.executable).with_name("kvcommons")
    done = subprocess.run(
        [str(script), "node", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert "shadowed" not in done.stderr
    assert "usage:" in done.stdout


def test_the_version_is_the_distribution_s(tmp_path: Path) -> None:
    """There is one version, that of the one distribution."""
    assert kvcommons("--version", folder=tmp_path).stdout.strip() == importlib.metadata.version("kvcommons")
