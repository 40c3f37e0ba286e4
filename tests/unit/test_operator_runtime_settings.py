"""The command line and settings of `kvcommons operator`."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from kvcommons_core.errors import ConfigurationError
from kvcommons_operator.build.secrets import ROOT_BYTES_MIN
from kvcommons_operator.main import REFUSED_STATUS, configure_logs, main, read_settings, term_of


def test_namespaces_come_from_flags_the_environment_and_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later sources win; --all-namespaces undoes what the environment says."""
    file = tmp_path / "operator.toml"
    file.write_text('[operator]\nnamespaces = ["from-file"]\nworkers = 3\n[node]\narena_bytes = 1\n')
    settings = read_settings(["--config", str(file)]).operator
    assert (settings.namespaces, settings.workers) == (("from-file",), 3)
    monkeypatch.setenv("KVCOMMONS_OPERATOR__NAMESPACES", "a,b")
    assert read_settings(["--config", str(file)]).operator.namespaces == ("a", "b")
    assert read_settings(["--namespace", "c", "--namespace=d"]).operator.namespaces == ("c", "d")
    assert read_settings(["--all-namespaces"]).operator.namespaces == ()
    assert read_settings(["--own-namespace", "system"]).operator.namespace == "system"


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--all-namespaces", "--namespace", "a"], "--all-namespaces"),
        (["--namespace"], "--namespace"),
        (["--wrokers", "3"], "--wrokers"),
        (["--namespaces", "Not/A/Name"], "operator"),
        (["extra"], "arguments"),
        (["--lease-seconds", "1"], "operator.lease_seconds"),
    ],
)
def test_what_is_wrong_is_named_with_the_remedy(words: list[str], field: str) -> None:
    """Field, value and what to do."""
    with pytest.raises(ConfigurationError, match=field):
        read_settings(words)


def test_help_says_each_flag_once(capsys: pytest.CaptureFixture[str]) -> None:
    """No flag stands there twice with two meanings."""
    assert main(["--help"]) == 0
    flags = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    assert "--namespace" in flags
    assert len(flags) == len(set(flags))


def test_a_refused_start_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    """2, and one line that says why."""
    assert main(["--workers", "none"]) == REFUSED_STATUS
    assert "operator.workers" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [3, 4, 15, 60, 600])
def test_every_allowed_lease_gives_a_sound_term(seconds: int) -> None:
    """A leader stops before anyone may take over."""
    assert term_of(seconds).renew_seconds_max < seconds


def test_logs_are_lines_or_objects() -> None:
    """As JSON every line parses and carries what was given beside the message."""
    stream = io.StringIO()
    before = logging.getLogger().handlers[:], logging.getLogger().level
    try:
        configure_logs("info", as_json=True, stream=stream)
        logging.getLogger("x").info("hello", extra={"port": 1})
    finally:
        logging.getLogger().handlers[:], level = before
        logging.getLogger().setLevel(level)
    told = json.loads(stream.getvalue())
    assert (told["message"], told["port"], told["level"]) == ("hello", 1, "info")


def test_help_names_every_setting() -> None:
    """`kvcommons operator --help` needs no cluster."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kvcommons_operator", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "--release" in done.stdout
    assert "--node-image" in done.stdout


def test_the_root_secret_has_a_least_length() -> None:
    """Less than 256 bits would make every derived secret guessable."""
    assert ROOT_BYTES_MIN >= 32
