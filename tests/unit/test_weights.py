"""What a model's weights are: their content, read once, or the commit of an untouched hub snapshot."""

import hashlib
import os
from pathlib import Path

import pytest
from kvcommons_core import limits, weights
from kvcommons_core.errors import IdentityError
from kvcommons_core.weights import default_cache_dir, lora_digest, model_weights, snapshot_revision, weights_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LONG_AGO = 1_000_000_000


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def make_model(folder: Path, **files: bytes) -> Path:
    """A model whose files are as old as files usually are."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ({"model.safetensors": b"weights", "config.json": b"{}"} | files).items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return folder


def test_two_copies_of_one_model_are_one(tmp_path: Path, cache: Path) -> None:
    """Neither the folder's name nor the files' dates are identity."""
    one, two = make_model(tmp_path / "a"), make_model(tmp_path / "b")
    os.utime(two / "config.json", (LONG_AGO + 9, LONG_AGO + 9))
    assert weights_digest(one, cache_dir=cache) == weights_digest(two, cache_dir=cache)


@pytest.mark.parametrize(
    "change",
    [
        {"model.safetensors": b"weightz"},
        {"config.json": b"{ }"},
        {"model-2.safetensors": b""},
        {"quantize_config.json": b"{}"},
        {"preprocessor_config.json": b"{}"},
        {"modeling.py": b"pass"},
        {"sub__extra.bin": b"1"},
    ],
)
def test_any_change_of_content_is_another_model(tmp_path: Path, cache: Path, change: dict[str, bytes]) -> None:
    """Weights, configuration, code and files in subfolders count."""
    assert weights_digest(make_model(tmp_path / "a"), cache_dir=cache) != weights_digest(
        make_model(tmp_path / "b", **change), cache_dir=cache
    )


def test_moving_bytes_between_files_is_another_model(tmp_path: Path, cache: Path) -> None:
    """Files are hashed one by one, so that two splits of the same bytes differ."""
    one = make_model(tmp_path / "a", **{"model.safetensors": b"ab", "x.bin": b"c"})
    two = make_model(tmp_path / "b", **{"model.safetensors": b"a", "x.bin": b"bc"})
    assert weights_digest(one, cache_dir=cache) != weights_digest(two, cache_dir=cache)


def test_what_does_not_change_kv_does_not_change_the_digest(tmp_path: Path, cache: Path) -> None:
    """A README, the tokenizer or a chat template make no other model: keys are made of token ids."""
    plain = make_model(tmp_path / "a")
    dressed = make_model(tmp_path / "b", **{"README.md": b"x", "tokenizer.json": b"y", ".git__x.bin": b"z"})
    assert weights_digest(plain, cache_dir=cache) == weights_digest(dressed, cache_dir=cache)


def test_a_second_start_reads_no_weights(tmp_path: Path, cache: Path) -> None:
    """What was hashed is remembered by its inode, size and times: a remembered digest is believed without opening the file."""
    model = make_model(tmp_path / "a")
    first = weights_digest(model, cache_dir=cache)
    entries = sorted((cache / "weights").glob("*.json"))
    assert len(entries) == 2
    for entry in entries:
        entry.write_text(entry.read_text().replace('"sha256": "', '"sha256": "' + "00" * 32 + '", "was": "'))
    assert weights_digest(model, cache_dir=cache) != first


def test_a_file_replaced_under_its_name_is_read_again(tmp_path: Path, cache: Path) -> None:
    """Other bytes of the same length under the same modification time do not pass for the old ones."""
    model = make_model(tmp_path / "a")
    first = weights_digest(model, cache_dir=cache)
    (model / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(model / "model.safetensors", (LONG_AGO, LONG_AGO))
    assert weights_digest(model, cache_dir=cache) != first


def test_a_file_still_warm_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    """A file written a moment ago may change within the tick of its timestamp, so its digest is not kept."""
    model = make_model(tmp_path / "a")
    os.utime(model / "model.safetensors")
    weights_digest(model, cache_dir=cache)
    assert len(list((cache / "weights").glob("*.json"))) == 1


def test_a_torn_or_unwritable_memory_costs_a_read_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    """Broken entries are as if never seen; a cache folder that can't be made is no error."""
    model = make_model(tmp_path / "a")
    first = weights_digest(model, cache_dir=cache)
    for entry in (cache / "weights").glob("*.json"):
        entry.write_text("{")
    assert weights_digest(model, cache_dir=cache) == first
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert weights_digest(model, cache_dir=blocked) == first


def test_a_file_is_read_once_a_process_where_nothing_can_be_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter's digest is asked for with each request, in the scheduler of the engine."""
    model = make_model(tmp_path / "a")
    for file in model.iterdir():
        os.utime(file, (1, 1))
    blocked = tmp_path / "file"
    blocked.write_text("")
    first = weights_digest(model, cache_dir=blocked)
    monkeypatch.setattr(weights, "_hash_file", lambda path: pytest.fail(f"{path} was read again"))
    assert weights_digest(model, cache_dir=blocked) == first


def test_a_single_file_is_a_model_whatever_its_name(tmp_path: Path, cache: Path) -> None:
    """A GGUF file given by path is its content."""
    one, two = tmp_path / "a.gguf", tmp_path / "b.gguf"
    one.write_bytes(b"gguf")
    two.write_bytes(b"gguf")
    assert weights_digest(one, cache_dir=cache) == weights_digest(two, cache_dir=cache)


def test_names_and_empty_folders_are_refused(tmp_path: Path, cache: Path) -> None:
    """A hub's name, a folder without weights and one with too many files each say what to do."""
    with pytest.raises(IdentityError, match="a name is not identity"):
        model_weights("org/model", cache_dir=cache)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(IdentityError, match="no weight file"):
        weights_digest(tmp_path, cache_dir=cache)


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Somebody's home folder is no model: the walk is bounded."""
    monkeypatch.setattr(limits, "WEIGHT_FILES_MAX", 1)
    with pytest.raises(IdentityError, match="more than 1 weight files"):
        weights_digest(make_model(tmp_path / "a"), cache_dir=cache)


def make_snapshot(tmp_path: Path) -> Path:
    """A hub's cache as its client lays it out: a snapshot of links into blobs."""
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / COMMIT
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for name in ("model.safetensors", "config.json"):
        blob = repository / "blobs" / hashlib.sha256(name.encode()).hexdigest()
        blob.write_text(name)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


def test_an_untouched_hub_snapshot_is_its_commit(tmp_path: Path, cache: Path) -> None:
    """A snapshot's commit is immutable: no weights need to be read."""
    assert model_weights(make_snapshot(tmp_path), cache_dir=cache) == f"revision:{COMMIT}"
    assert not cache.exists()


def test_a_snapshot_with_a_changed_file_is_its_content(tmp_path: Path, cache: Path) -> None:
    """Once a file in it is no link into the blobs any more, the commit says nothing."""
    snapshot = make_snapshot(tmp_path)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text("{}")
    assert snapshot_revision(snapshot) is None
    assert model_weights(snapshot, cache_dir=cache).startswith("sha256:")


def test_a_folder_merely_named_like_a_commit_is_its_content(tmp_path: Path, cache: Path) -> None:
    """Forty hex digits alone prove nothing."""
    assert model_weights(make_model(tmp_path / COMMIT), cache_dir=cache).startswith("sha256:")


def test_an_adapter_reloaded_under_its_old_name_is_another_adapter(tmp_path: Path, cache: Path) -> None:
    """LoRA adapters are known by content."""
    adapter = make_model(tmp_path / "lora", **{"adapter_model.safetensors": b"1", "adapter_config.json": b"{}"})
    before = lora_digest(adapter, cache_dir=cache)
    (adapter / "adapter_model.safetensors").write_bytes(b"2")
    assert lora_digest(adapter, cache_dir=cache) != before


def test_the_memory_lies_where_the_user_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own variable first, then the desktop's, then the home folder."""
    monkeypatch.setenv("KVCOMMONS_CACHE_DIR", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert default_cache_dir() == Path("/a")
    monkeypatch.delenv("KVCOMMONS_CACHE_DIR")
    assert default_cache_dir() == Path("/b/kvcommons")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "kvcommons"
