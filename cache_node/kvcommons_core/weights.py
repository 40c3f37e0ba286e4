"""What a model's weights are, by content: SHA-256 over every weight file, or the commit of a hub snapshot that is a link into its blobs.

Digests of files are remembered by (device, inode, size, mtime, ctime), so that a second start reads no weights. Standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from kvcommons_core import limits
from kvcommons_core.errors import IdentityError

WEIGHT_SUFFIXES: Final = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth", ".npz", ".py"})
CONFIG_NAMES: Final = frozenset(
    {
        "config.json",
        "params.json",
        "quantize_config.json",
        "quantization_config.json",
        "hf_quant_config.json",
        "adapter_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
    }
)
REMEMBERED_MAX: Final = 4_096
SETTLED_SECONDS: Final = 2.0  # a file written this recently may change again within one tick of its timestamp
_SNAPSHOT = re.compile(r"^[0-9a-f]{40}$")
_DOMAIN: Final = b"kvcommons/weights/1\0"


def model_weights(model: str | Path, *, cache_dir: Path | None = None) -> str:
    """The `weights` field of a ModelIdentity: "revision:<commit>" for an untouched hub snapshot, else "sha256:<digest>".

    :raises IdentityError: if `model` is a name and not a file or folder on this machine.
    """
    path = Path(model)
    if not path.exists():
        raise IdentityError(
            "model",
            str(model),
            "a name is not identity: give the folder or file that was loaded (a hub snapshot's folder will do)",
        )
    revision = snapshot_revision(path)
    return f"revision:{revision}" if revision else f"sha256:{weights_digest(path, cache_dir=cache_dir).hex()}"


def snapshot_revision(model_dir: Path) -> str | None:
    """The commit of a hub snapshot whose weight files all still are links to content-addressed blobs; None for anything else."""
    if not (_SNAPSHOT.match(model_dir.name) and model_dir.parent.name == "snapshots" and model_dir.is_dir()):
        return None
    blobs = model_dir.parent.parent / "blobs"
    for path in _weight_files(model_dir):
        if not path.is_symlink() or path.resolve().parent != blobs.resolve():
            return None
    return model_dir.name


def weights_digest(model: Path, *, cache_dir: Path | None = None) -> bytes:
    """SHA-256 over (relative name, SHA-256 of content) of every weight and configuration file, sorted by name.

    :raises IdentityError: if there is none, too many, or one changes while it is read.
    """
    root = model if model.is_dir() else model.parent
    files = sorted(_weight_files(model) if model.is_dir() else [model], key=lambda p: p.relative_to(root).as_posix())
    if not any(path.suffix in WEIGHT_SUFFIXES - {".py"} for path in files):
        raise IdentityError(
            "model", str(model), f"no weight file ({', '.join(sorted(WEIGHT_SUFFIXES - {'.py'}))}) is in it"
        )
    cache = _DigestCache(cache_dir or default_cache_dir())
    with ThreadPoolExecutor(max_workers=min(limits.WEIGHT_READERS_MAX, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(cache.digest, files))
    total = hashlib.sha256(_DOMAIN)
    for path, digest in zip(files, digests, strict=True):
        name = path.relative_to(root).as_posix().encode("utf-8", "surrogateescape") if model.is_dir() else b"model"
        total.update(len(name).to_bytes(4, "little") + name + digest)
    return total.digest()


def lora_digest(adapter_dir: Path, *, cache_dir: Path | None = None) -> bytes:
    """The digest of a LoRA adapter's content: a new adapter under an old name is another adapter."""
    return weights_digest(adapter_dir, cache_dir=cache_dir)


def default_cache_dir() -> Path:
    """Where digests are remembered: $KVCOMMONS_CACHE_DIR, else $XDG_CACHE_HOME/kvcommons, else ~/.cache/kvcommons."""
    explicit = os.environ.get("KVCOMMONS_CACHE_DIR")
    if explicit:
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "kvcommons"


def _weight_files(model_dir: Path) -> list[Path]:
    found: list[Path] = []
    for path in _walk(model_dir):
        if path.suffix in WEIGHT_SUFFIXES or path.name in CONFIG_NAMES:
            found.append(path)
            if len(found) > limits.WEIGHT_FILES_MAX:
                raise IdentityError(
                    "model",
                    str(model_dir),
                    f"more than {limits.WEIGHT_FILES_MAX} weight files: give one model's folder",
                )
    return found


def _walk(model_dir: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(model_dir):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__pycache__")
        for name in names:
            yield Path(folder, name)


class _DigestCache:
    """One small file a digest, named by what makes the weight file unmistakable. Losing it costs one more read, so failures to write
    are not errors."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "weights"

    def digest(self, path: Path) -> bytes:
        before = path.stat()
        entry = self._folder / f"{_stat_name(before)}.json"
        known = _read_entry(entry) or _in_process.get(entry)
        if known is not None:
            return known
        digest = _hash_file(path)
        after = path.stat()
        if _stat_name(before) != _stat_name(after):
            raise IdentityError(
                "model", str(path), "it changed while it was read: let the download finish, then start again"
            )
        if time.time() - after.st_mtime > SETTLED_SECONDS:
            _keep(entry, digest)
            self._remember(entry, path, digest)
        return digest

    def _remember(self, entry: Path, path: Path, digest: bytes) -> None:
        scratch = entry.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            scratch.write_text(json.dumps({"path": str(path), "sha256": digest.hex()}))
            scratch.replace(entry)
        except OSError:  # a read-only or full home: the next start reads the weights again
            return


_in_process: dict[Path, bytes] = {}  # an adapter is asked for with each request, also where no folder can be written


def _keep(entry: Path, digest: bytes) -> None:
    if len(_in_process) >= REMEMBERED_MAX:
        _in_process.clear()
    _in_process[entry] = digest


def _stat_name(stat: os.stat_result) -> str:
    return f"{stat.st_dev:x}-{stat.st_ino:x}-{stat.st_size:x}-{stat.st_mtime_ns:x}-{stat.st_ctime_ns:x}"


def _read_entry(entry: Path) -> bytes | None:
    try:
        digest = bytes.fromhex(json.loads(entry.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):  # absent or torn: as if never seen
        return None
    return digest if len(digest) == limits.KEY_BYTES else None


def _hash_file(path: Path) -> bytes:
    sha = hashlib.sha256()
    buffer = bytearray(limits.WEIGHT_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            sha.update(view[:size])
    return sha.digest()
