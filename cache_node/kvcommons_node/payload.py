"""Copy the connector's payload from the node's image to a volume that an engine's container mounts: `kvcommons-payload DIR`.

An init container's work: without privileges, from a read-only image, the same result however often it runs. The engine sees
the whole of one version or the whole of another: DIR/python, DIR/launch.py and DIR/manifest.json lead through DIR/current,
one link, which is replaced by one rename.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

SOURCE_VARIABLE: Final = "KVCOMMONS_PAYLOAD"
SOURCE_DEFAULT: Final = "/opt/kvcommons/payload"
MANIFEST: Final = "manifest.json"
CURRENT: Final = "current"
VERSION_PREFIX: Final = ".payload-"
FILES_MAX: Final = 1000
MANIFEST_BYTES_MAX: Final = 1 << 20
REFUSED_STATUS: Final = 2


class PayloadError(Exception):
    """The payload can't be copied; the message says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kvcommons-payload", description=__doc__.partition("\n")[0])
    parser.add_argument("destination", type=Path, help="an existing folder, such as the mount of an emptyDir")
    parser.add_argument(
        "--source",
        type=Path,
        default=Path(os.environ.get(SOURCE_VARIABLE, SOURCE_DEFAULT)),
        help="default: %(default)s",
    )
    chosen = parser.parse_args(arguments)
    try:
        digest, fresh = install(chosen.source, chosen.destination)
    except (PayloadError, OSError) as error:
        sys.stderr.write(f"kvcommons-payload: {error}\n")
        return REFUSED_STATUS
    sys.stdout.write(f"{chosen.destination}: payload {digest[:12]} {'installed' if fresh else 'was there already'}\n")
    return 0


def install(source: Path, destination: Path) -> tuple[str, bool]:
    """(digest of the manifest, whether anything had to be copied).

    :raises PayloadError: if the source is no whole payload, or the destination no folder."""
    files = read_manifest(source)
    digest = hashlib.sha256((source / MANIFEST).read_bytes()).hexdigest()
    if not destination.is_dir():
        raise PayloadError(f"{destination} is no folder; mount a volume there")
    version = destination / f"{VERSION_PREFIX}{digest[:16]}"
    present = current_of(destination) == version.name and not wrong_files(version, files)
    if not present:
        copy(source, version, files)
        point(destination / CURRENT, version.name)
    for name in ("python", "launch.py", MANIFEST):
        point(destination / name, f"{CURRENT}/{name}")
    remove_others(destination, version.name)
    return digest, not present


def read_manifest(source: Path) -> dict[str, str]:
    """Digests of the payload's files by their path in it."""
    path = source / MANIFEST
    try:
        if path.stat().st_size > MANIFEST_BYTES_MAX:
            raise PayloadError(f"{path} is over {MANIFEST_BYTES_MAX} bytes: no manifest of ours")
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except FileNotFoundError as error:
        raise PayloadError(
            f"no payload in {source}: build one with `make payload`, or name it with --source"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise PayloadError(f"{path} is no manifest: {error!r}; build the payload again") from error
    if not isinstance(files, dict) or not 0 < len(files) <= FILES_MAX or not all(map(is_inside, files)):
        raise PayloadError(f"{path} names no files, too many, or files outside of the payload; build it again")
    return files


def is_inside(name: str) -> bool:
    parts = Path(name).parts
    return bool(parts) and not Path(name).is_absolute() and ".." not in parts


def wrong_files(folder: Path, files: Mapping[str, str]) -> list[str]:
    """Files of the payload that are missing in a folder or not what its manifest says."""
    return [name for name, digest in files.items() if digest_of(folder / name) != digest]


def digest_of(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return ""


def copy(source: Path, version: Path, files: Mapping[str, str]) -> None:
    """Lay the files out under another name, prove them, then give them their name."""
    fresh = version.with_name(f"{version.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    for name in (*files, MANIFEST):
        (fresh / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, fresh / name)
        (fresh / name).chmod(0o444)  # the engine may run as another user than this container
    for folder in (fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
        folder.chmod(0o755)
    wrong = wrong_files(fresh, files)
    if wrong:
        shutil.rmtree(fresh)
        raise PayloadError(
            f"{source} is damaged: {', '.join(wrong[:3])} is not what its manifest says; pull the image again"
        )
    if version.exists():  # it was damaged, or its copy did not end
        shutil.rmtree(version)
    fresh.rename(version)


def current_of(destination: Path) -> str:
    link = destination / CURRENT
    return os.readlink(link) if link.is_symlink() else ""


def point(link: Path, target: str) -> None:
    """Make a relative link, or turn an existing one, by one rename."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def remove_others(destination: Path, kept: str) -> None:
    """Versions that nothing leads to any more. In a pod no engine runs while its init containers do."""
    for path in destination.glob(f"{VERSION_PREFIX}*"):
        if path.name != kept:
            shutil.rmtree(path)


if __name__ == "__main__":
    sys.exit(main())
