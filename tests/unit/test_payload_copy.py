"""`kvcommons-payload`: an init container's copy of the payload to a volume."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from kvcommons_node import payload


def make_source(folder: Path, version: str = "1") -> Path:
    """A payload of two files."""
    files = {"launch.py": f"print({version})\n", "python/kvcommons_core/keys.py": f"VERSION = {version}\n"}
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    (folder / "manifest.json").write_text(json.dumps({"version": version, "files": digests}))
    return folder


def test_what_is_copied_is_what_the_manifest_says(tmp_path: Path) -> None:
    """Files come under their names, readable by any user and writable by none."""
    target = tmp_path / "volume"
    target.mkdir()
    digest, fresh = payload.install(make_source(tmp_path / "source"), target)
    assert fresh
    assert (target / "python" / "kvcommons_core" / "keys.py").read_text() == "VERSION = 1\n"
    assert (target / "launch.py").stat().st_mode & 0o777 == 0o444
    assert hashlib.sha256((target / "manifest.json").read_bytes()).hexdigest() == digest


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    """A restarted init container finds its work done, and leaves files that may be in use alone."""
    source, target = make_source(tmp_path / "source"), tmp_path / "volume"
    target.mkdir()
    payload.install(source, target)
    before = (target / "launch.py").stat()
    _, fresh = payload.install(source, target)
    assert not fresh
    assert (target / "launch.py").stat().st_ino == before.st_ino


def test_another_version_replaces_the_whole(tmp_path: Path) -> None:
    """After an upgrade of the node's image nothing of the old payload is left."""
    target = tmp_path / "volume"
    target.mkdir()
    payload.install(make_source(tmp_path / "old"), target)
    payload.install(make_source(tmp_path / "new", "2"), target)
    assert (target / "python" / "kvcommons_core" / "keys.py").read_text() == "VERSION = 2\n"
    assert len([path for path in target.iterdir() if path.is_dir() and not path.is_symlink()]) == 1


def test_a_copy_that_was_damaged_is_made_again(tmp_path: Path) -> None:
    """A file that is not what its manifest says is not taken for the work of a former run."""
    source, target = make_source(tmp_path / "source"), tmp_path / "volume"
    target.mkdir()
    payload.install(source, target)
    (target / "launch.py").chmod(0o644)
    (target / "launch.py").write_text("damaged")
    _, fresh = payload.install(source, target)
    assert fresh
    assert (target / "launch.py").read_text() == "print(1)\n"


def test_a_run_that_was_ended_in_the_middle_is_finished_by_the_next(tmp_path: Path) -> None:
    """What a killed init container left is replaced, and cleared away."""
    source, target = make_source(tmp_path / "source"), tmp_path / "volume"
    digest = hashlib.sha256((source / "manifest.json").read_bytes()).hexdigest()
    half = target / f"{payload.VERSION_PREFIX}{digest[:16]}"
    half.mkdir(parents=True)
    (half / "launch.py").write_text("half")
    (target / f"{half.name}.77").mkdir()
    payload.install(source, target)
    assert (target / "launch.py").read_text() == "print(1)\n"
    assert not (target / f"{half.name}.77").exists()


def test_a_damaged_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An image whose files do not match its manifest gives engines nothing."""
    source, target = make_source(tmp_path / "source"), tmp_path / "volume"
    target.mkdir()
    (source / "launch.py").write_text("other")
    assert payload.main([str(target), "--source", str(source)]) == payload.REFUSED_STATUS
    assert "launch.py is not what its manifest says" in capsys.readouterr().err
    assert not (target / "launch.py").exists()


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (None, "build one with `make payload`"),
        ("{", "is no manifest"),
        ('{"files": {}}', "names no files"),
        ('{"files": {"../../etc/passwd": "0"}}', "outside of the payload"),
        ('{"files": {"/etc/passwd": "0"}}', "outside of the payload"),
    ],
)
def test_what_is_no_payload_is_refused_with_the_remedy(tmp_path: Path, manifest: str | None, said: str) -> None:
    """A folder without a sound manifest is not copied, and its files can lead nowhere else."""
    source = tmp_path / "source"
    source.mkdir()
    if manifest is not None:
        (source / "manifest.json").write_text(manifest)
    with pytest.raises(payload.PayloadError, match=said):
        payload.install(source, tmp_path)


def test_a_destination_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    """A mount that is missing is named."""
    with pytest.raises(payload.PayloadError, match="mount a volume there"):
        payload.install(make_source(tmp_path / "source"), tmp_path / "nowhere")


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for the container's log; 0 both times."""
    target = tmp_path / "volume"
    target.mkdir()
    words = [str(target), "--source", str(make_source(tmp_path / "source"))]
    assert payload.main(words) == 0
    assert payload.main(words) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("installed")
    assert second.endswith("was there already")
