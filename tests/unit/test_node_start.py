"""What stands in the way of a start is told in one message with its remedy, and the process exits with 2."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from kvcommons_core.errors import ConfigurationError, StartRefusedError
from kvcommons_core.settings import NodeSection, NodeSettings
from kvcommons_node import preflight
from kvcommons_node.__main__ import check_native, main, read_settings
from kvcommons_node.plan import make_plan
from kvcommons_node.seam import Core

MIB = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: a Unix socket's may have 107 bytes."""
    with TemporaryDirectory(prefix="kvn-") as name:
        yield Path(name)


def settings(folder: Path, **changed: object) -> NodeSettings:
    values: dict[str, object] = {
        "socket_path": str(folder / "n.sock"),
        "state_dir": str(folder / "state"),
        "arena_bytes": 64 * MIB,
        "control_port": 0,
    }
    return NodeSettings(node=NodeSection.model_validate({**values, **changed}))


def test_a_capacity_over_the_memory_is_refused(folder: Path) -> None:
    """An arena that would leave the machine nothing is refused with the most that would do."""
    with pytest.raises(StartRefusedError, match="set it to at most 768MiB"):
        make_plan(settings(folder, arena_bytes=900 * MIB), "0", memory_bytes=1024 * MIB)


def test_the_memory_is_the_cgroup_s_where_that_is_less(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container the limit of its cgroup counts, not the machine's memory."""
    limit = folder / "memory.max"
    limit.write_text(f"{512 * MIB}\n")
    monkeypatch.setattr(preflight, "CGROUP_LIMIT_FILES", (folder / "absent", limit))
    assert preflight.machine_memory_bytes() == 512 * MIB


def test_a_socket_in_use_is_refused(folder: Path) -> None:
    """A second node on a socket that a first one serves is refused; it does not push the first one away."""
    with socket.socket(socket.AF_UNIX) as first:
        first.bind(str(folder / "n.sock"))
        first.listen()
        with pytest.raises(StartRefusedError, match="in use by a running node"):
            make_plan(settings(folder), "0")


def test_a_socket_left_by_a_dead_node_is_no_obstacle(folder: Path) -> None:
    """After a crash the socket's file is still there, with nobody behind it: the next start takes it over."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "n.sock"))
    assert make_plan(settings(folder), "0").socket_path == folder / "n.sock"


def test_a_file_in_the_socket_s_place_is_refused(folder: Path) -> None:
    """Something else at the socket's path is never removed by the node."""
    (folder / "n.sock").write_text("precious")
    with pytest.raises(StartRefusedError, match="is no socket"):
        make_plan(settings(folder), "0")
    assert (folder / "n.sock").read_text() == "precious"


def test_a_socket_path_that_is_too_long_is_refused(folder: Path) -> None:
    """The kernel's limit on socket paths is told before anything fails by it."""
    with pytest.raises(StartRefusedError, match="longer than"):
        make_plan(settings(folder, socket_path=str(folder / ("x" * 120))), "0")


def test_a_directory_that_cannot_be_made_is_refused(folder: Path) -> None:
    """A state directory below a file cannot exist; the message names the setting."""
    (folder / "file").write_text("")
    with pytest.raises(StartRefusedError, match="state_dir"):
        make_plan(settings(folder, state_dir=str(folder / "file" / "state")), "0")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"arena_bytes": 1 << 50}, "arena_bytes"),
        ({"slab_bytes": 128 * MIB}, "slab_bytes: 128MiB is over arena_bytes .64MiB.; leave it out"),
        ({"control_token_file": "/none"}, "control_token_file"),
        ({"namespace_secret_file": "/none"}, "namespace_secret_file"),
        ({"control_host": "192.0.2.1"}, "control_port: 192.0.2.1:0 cannot be used"),
    ],
)
def test_nothing_is_made_by_a_start_that_is_refused(folder: Path, changed: dict[str, object], told: str) -> None:
    """Whatever is in the way is told before the first directory or file is made."""
    with pytest.raises(StartRefusedError, match=told):
        make_plan(settings(folder, socket_path=str(folder / "run" / "n.sock"), **changed), "0")
    assert list(folder.iterdir()) == []


def test_a_port_in_use_is_refused_before_anything_is_made(folder: Path) -> None:
    """The control API's port is tried with the other checks, and the remedy names the way out."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartRefusedError, match=r"control_port: .* in use; set another one, or 0"):
            make_plan(settings(folder, control_port=other.getsockname()[1]), "0")
    assert list(folder.iterdir()) == []


def test_slabs_that_are_made_smaller_are_told(folder: Path) -> None:
    """A slab size that was asked for and is not followed is in the log; the default, which fits most arenas, is not."""
    assert make_plan(settings(folder), "0").notes == ()
    assert "slab_bytes: 32MiB is over an eighth" in make_plan(settings(folder, slab_bytes=32 * MIB), "0").notes[0]


def test_the_secret_is_made_once_and_kept_private(folder: Path) -> None:
    """The namespace secret is random, readable by its owner alone, and the same at the next start."""
    first = make_plan(settings(folder), "0").namespace_secret
    second = make_plan(settings(folder), "0").namespace_secret
    assert first == second
    assert len(first) == preflight.SECRET_BYTES
    assert stat.S_IMODE((folder / "state" / "namespace.secret").stat().st_mode) == 0o600


def test_a_given_secret_of_any_length_is_hashed_to_the_right_one(folder: Path) -> None:
    """A passphrase gives the same 32 bytes on every node, with or without the line's end."""
    file = folder / "secret"
    secrets = []
    for content in (b"a passphrase of the pool", b"a passphrase of the pool\n"):
        file.write_bytes(content)
        file.chmod(0o600)
        secrets.append(make_plan(settings(folder, namespace_secret_file=str(file)), "0").namespace_secret)
    assert secrets[0] == secrets[1]
    assert len(secrets[0]) == preflight.SECRET_BYTES


@pytest.mark.parametrize(("content", "mode", "words"), [(b"short", 0o600, "random ones"), (b"x" * 32, 0o644, "chmod")])
def test_a_weak_secret_is_refused(folder: Path, content: bytes, mode: int, words: str) -> None:
    """A secret that can be guessed or that others can read is refused."""
    file = folder / "secret"
    file.write_bytes(content)
    file.chmod(mode)
    with pytest.raises(StartRefusedError, match=words):
        make_plan(settings(folder, namespace_secret_file=str(file)), "0")


def test_a_short_token_is_refused(folder: Path) -> None:
    """A control token that could be guessed is refused."""
    file = folder / "token"
    file.write_text("hunter2")
    with pytest.raises(StartRefusedError, match="control_token_file"):
        make_plan(settings(folder, control_token_file=str(file)), "0")


def test_the_holder_s_socket_is_beside_the_node_s_unless_told_otherwise(folder: Path) -> None:
    """The node owns the holder that it starts, never one that somebody else runs."""
    own = make_plan(settings(folder), "0")
    external = make_plan(settings(folder, holder_socket=str(folder / "h")), "0")
    none = make_plan(settings(folder, holder_socket="none"), "0")
    assert (own.holder_socket, own.owns_holder) == (folder / "n.sock.hold", True)
    assert (external.holder_socket, external.owns_holder) == (folder / "h", False)
    assert (none.holder_socket, none.owns_holder) == (None, False)


def test_flags_win_over_the_environment_and_that_over_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One setting from three sources: the nearest to the command wins."""
    file = folder / "c.toml"
    file.write_text('[node]\narena_bytes = "1MiB"\nzone = "file"\nnode_id = "file"\n')
    monkeypatch.setenv("KVCOMMONS_NODE__ZONE", "environment")
    monkeypatch.setenv("KVCOMMONS_NODE__NODE_ID", "environment")
    node = read_settings(["--config", str(file), "--node-id", "flag"]).node
    assert (node.arena_bytes, node.zone, node.node_id) == (MIB, "environment", "flag")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--arena-byte", "1GiB"], "did you mean --arena-bytes"),
        (["--arena-bytes", "much"], "arena_bytes"),
        (["--config"], "give it a file"),
        (["start"], "settings are given as --NAME VALUE"),
    ],
)
def test_a_wrong_command_line_exits_with_two_and_one_message(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistake in the settings is one line on standard error, no traceback."""
    assert main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("kvcommons node: ")
    assert error.count("\n") == 1


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names each flag of the node and of the index."""
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in out for name in NodeSection.model_fields)
    assert "--index.url" in out


def test_an_unknown_environment_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt environment variable is an error, not a silent default."""
    monkeypatch.setenv("KVCOMMONS_NODE__ARENA", "1GiB")
    with pytest.raises(ConfigurationError, match="arena_bytes"):
        read_settings([])


def test_a_native_module_of_another_version_is_told_with_the_remedy() -> None:
    """A module that was built before this package had its calls is named as that: no traceback, and what to do."""

    class Old:
        def start(self) -> None: ...

    with pytest.raises(StartRefusedError, match=r"another version than this package \(it lacks .*places.*make build"):
        check_native(Old)
    check_native(Core)
