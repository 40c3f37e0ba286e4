"""launch.py in an engine's image: says whether the connector loads, and starts the engine with it or without."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import payload_support
import pytest
from kvcommons_connector import launch

pytestmark = pytest.mark.timeout(payload_support.BUILD_SECONDS_MAX)
OURS = {"kv_connector": "KVCommonsConnector", "kv_connector_module_path": "kvcommons_connector.vllm"}
OTHER = {"kv_connector": "OffloadingConnector"}
BOTH = {"kv_connector": "MultiConnector", "kv_connector_extra_config": {"connectors": [OURS, OTHER]}}
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], os.environ.get('PYTHONPATH')]))"


def copy_of(place: Path, **changes: Any) -> Path:
    """A payload whose manifest says otherwise."""
    shutil.copytree(payload_support.payload(), place)
    path = place / "manifest.json"
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return place


def started(place: Path, *words: str, **environment: str) -> tuple[list[str], str | None, str]:
    """(arguments, PYTHONPATH, standard error) of a command that launch.py became."""
    command = [
        str(payload_support.PLAIN),
        str(place / "launch.py"),
        "--",
        str(payload_support.PLAIN),
        "-c",
        SHOW,
        *words,
    ]
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    arguments, path = json.loads(done.stdout)
    return arguments, path, done.stderr


def test_the_payload_loads_under_this_python() -> None:
    """The Python of the tests is one that the payload is for."""
    found = payload_support.check(str(payload_support.PLAIN), payload_support.payload())
    assert (found["loaded"], found["reason"]) == (True, "Loaded")
    assert found["glibc"]
    assert found["payload"] == payload_support.manifest()["version"]


def test_every_python_from_3_12_on_loads_the_stable_build() -> None:
    """One module serves all of them; those that are older are refused by name."""
    others = {version: python for version, python in payload_support.other_pythons().items() if version >= (3, 7)}
    if not {(3, 12), (3, 13)} & set(others):
        pytest.skip("no other Python is here: pyenv install 3.12")
    for version, python in others.items():
        found = payload_support.check(python, payload_support.payload())
        if version >= (3, 11):
            assert found["loaded"], (version, found)
        else:
            assert found["reason"] == "PythonNotSupported", (version, found)
            assert "CPython 3.11 and >=3.12" in found["message"]


def test_the_payload_comes_before_what_the_image_has(tmp_path: Path) -> None:
    """The image's own PYTHONPATH stays, behind the payload; the command's words are untouched."""
    arguments, path, said = started(payload_support.payload(), "--model", "m", PYTHONPATH=f"{tmp_path}:/image")
    assert arguments == ["--model", "m"]
    assert path == f"{payload_support.payload() / 'python'}:{tmp_path}:/image"
    assert not said


def test_where_it_does_not_load_the_engine_serves_without_it(tmp_path: Path) -> None:
    """The flag goes with its value, PYTHONPATH is the image's again, and the reason is in the log."""
    place = copy_of(tmp_path / "payload")
    for module in (place / "python" / "kvcommons_core").glob("_native*.so"):
        module.chmod(0o644)
        module.write_bytes(b"no library")
    words = ["--model", "m", "--kv-transfer-config", json.dumps(OURS), "--port", "8000"]
    arguments, path, said = started(place, *words, PYTHONPATH="/image")
    assert arguments == ["--model", "m", "--port", "8000"]
    assert path == "/image"
    assert "serving WITHOUT the commons, because NotLoadable" in said
    assert "invalid ELF header" in said or "file too short" in said


def test_a_native_module_that_ends_the_process_does_not_end_the_engine(tmp_path: Path) -> None:
    """A crash at import happens in a child; the engine starts without."""
    place = copy_of(tmp_path / "payload")
    for module in (place / "python" / "kvcommons_core").glob("_native*.so"):
        module.unlink()
    crash = place / "python" / "kvcommons_core" / "_native.py"
    crash.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    found = payload_support.check(str(payload_support.PLAIN), place)
    assert (found["reason"], found["loaded"]) == ("NativeCrashed", False)
    assert "SIGSEGV" in found["message"]
    assert started(place, "--kv-transfer-config", json.dumps(OURS))[0] == []


def test_another_processor_is_named(tmp_path: Path) -> None:
    """A payload of another architecture says so, not what the loader says."""
    place = copy_of(tmp_path / "payload", machine="riscv64")
    for module in (place / "python" / "kvcommons_core").glob("_native*.so"):
        module.unlink()
    found = payload_support.check(str(payload_support.PLAIN), place)
    assert found["reason"] == "WrongMachine"
    assert "riscv64" in found["message"]


def test_an_engine_that_lacks_what_the_connector_needs_is_not_given_it(tmp_path: Path) -> None:
    """A release without the modules that the connector imports serves without, instead of failing at start."""
    engine = tmp_path / "site" / "vllm"
    (engine / "v1").mkdir(parents=True)
    (engine / "__init__.py").touch()
    modules = {"vllm": ["vllm.v1", "vllm.v1.metrics.cache_hit_source"]}
    place = copy_of(tmp_path / "payload", engineModules=modules)
    found = payload_support.check(str(payload_support.PLAIN), place, PYTHONPATH=str(tmp_path / "site"))
    assert found["reason"] == "EngineNotSupported"
    assert "has no vllm.v1.metrics.cache_hit_source" in found["message"]


def test_a_payload_that_is_not_whole_is_told(tmp_path: Path) -> None:
    """A volume that was not filled leaves an engine that serves."""
    place = copy_of(tmp_path / "payload")
    (place / "manifest.json").unlink()
    assert payload_support.check(str(payload_support.PLAIN), place)["reason"] == "PayloadIncomplete"


def test_the_report_is_one_line_where_it_is_wanted(tmp_path: Path) -> None:
    """What the operator reads from the termination message is what standard output says."""
    report = tmp_path / "termination-log"
    command = [
        str(payload_support.PLAIN),
        str(payload_support.payload() / "launch.py"),
        "--check",
        "--report",
        str(report),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(report.read_text()) == json.loads(done.stdout)
    assert len(report.read_bytes()) <= launch.REPORT_BYTES_MAX


def test_a_report_that_is_too_long_stays_json() -> None:
    """A termination message holds so many bytes: texts are cut, and what is left says the same."""
    long = launch.verdict("NotLoadable", "\N{SNOWMAN}" * 2_000, {"glibc": "2" * 3_000}, {"version": "1"})
    line = launch.fitting(long, launch.REPORT_BYTES_MAX)
    assert len(line.encode()) <= launch.REPORT_BYTES_MAX
    told = json.loads(line)
    assert (told["loaded"], told["reason"], told["payload"]) == (False, "NotLoadable", "1")
    assert told["message"].startswith("\N{SNOWMAN}" * 100)
    short = launch.verdict("Loaded", "", {}, {})
    assert json.loads(launch.fitting(short, launch.REPORT_BYTES_MAX)) == short


def test_strict_refuses_to_start_without(tmp_path: Path) -> None:
    """Who asks for strictness gets no engine that quietly serves without."""
    place = copy_of(tmp_path / "payload")
    (place / "manifest.json").unlink()
    command = [str(payload_support.PLAIN), str(place / "launch.py"), "--strict", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "PayloadIncomplete" in done.stderr


def test_a_command_that_is_not_there_is_named() -> None:
    """The status is that of a shell for a missing command."""
    command = [str(payload_support.PLAIN), str(payload_support.payload() / "launch.py"), "--", "no-such-engine"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 127
    assert "no-such-engine could not be started" in done.stderr


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (["serve", "--kv-transfer-config", json.dumps(OURS), "-x"], ["serve", "-x"]),
        (["serve", f"--kv-transfer-config={json.dumps(OURS)}"], ["serve"]),
        (["serve", f"--kv_transfer_config={json.dumps(OURS)}"], ["serve"]),
        (["serve", "--kv-transfer-config.kv_role", "kv_both", "--port", "1"], ["serve", "--port", "1"]),
        (["serve", "--kv-transfer-config.kv_role=kv_both", "--port=1"], ["serve", "--port=1"]),
        (["serve", "--kv-transfer-config", json.dumps(OTHER)], ["serve", "--kv-transfer-config", json.dumps(OTHER)]),
        (["serve", "--kv-transfer-config"], ["serve"]),
        (["serve", "-c", "a=b", "--port", "8000"], ["serve", "-c", "a=b", "--port", "8000"]),
    ],
)
def test_only_our_connector_leaves_a_command(words: list[str], left: list[str]) -> None:
    """However the flag is written, it goes; another connector stays."""
    assert launch.without_commons(words) == left


def test_of_several_connectors_only_ours_leaves() -> None:
    """A MultiConnector keeps the others, and goes where none is left."""
    kept = launch.without_commons(["--kv-transfer-config", json.dumps(BOTH)])
    assert json.loads(kept[1])["kv_connector_extra_config"]["connectors"] == [OTHER]
    alone = {**BOTH, "kv_connector_extra_config": {"connectors": [OURS]}}
    assert launch.without_commons(["--kv-transfer-config", json.dumps(alone)]) == []


@pytest.mark.parametrize(
    ("head", "found"),
    [
        ("#!{python}\n", True),
        ("#!/usr/bin/env {name}\n", True),
        ("#!/bin/sh\n'''exec' \"{python}\" \"$0\" \"$@\"\n' '''\n", True),
        ("#!/bin/sh\nexec engine\n", False),
    ],
)
def test_the_engines_own_interpreter_is_the_one_that_is_asked(tmp_path: Path, head: str, found: bool) -> None:
    """A console script's first lines name its Python; what is not to be seen is the one that runs launch.py."""
    python = tmp_path / "bin" / "python3.99"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    script = tmp_path / "bin" / "engine"
    script.write_text(head.format(python=python, name=python.name) + "\n")
    script.chmod(0o755)
    path = f"{python.parent}:/usr/bin:/bin"
    assert launch.interpreter_of(["engine", "serve"], {"PATH": path}) == (str(python) if found else sys.executable)


def test_nothing_to_start_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command and without --check there is nothing to do."""
    assert launch.main([]) == 2
    assert "after `--`" in capsys.readouterr().err
