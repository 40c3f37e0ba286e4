"""Fingerprints for people: which the node knows, who uses them, and which one a few digits mean."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from kvcommons_node.api.models import ENGINES_SHOWN_MAX, FINGERPRINTS_SHOWN_MAX, EngineProcess, FingerprintAnswer
from kvcommons_node.api.refusals import fingerprint_unclear
from kvcommons_node.seam import KnownFingerprint

DIGITS = 64
NAMED_MAX = 5


def process_name(pid: int, proc: Path = Path("/proc")) -> str:
    """What a process calls itself; empty where it is not visible from here (another pid namespace) or has ended."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
        title = words[0].decode(errors="replace").strip()
        # A title that a process gave itself says more than the interpreter's path.
        return title if "/" not in title and title else (proc / str(pid) / "comm").read_text().strip()
    except OSError:
        return ""


def listing(
    known: Iterable[KnownFingerprint],
    name_of: Callable[[int], str] = process_name,
    models_of: Callable[[bytes], list[str]] = lambda _: [],
) -> list[FingerprintAnswer]:
    """Those with chunks or sessions, the largest first."""
    shown = sorted((one for one in known if one[1] or one[2] or one[3]), key=lambda one: (-one[2], one[0]))
    return [
        FingerprintAnswer(
            fingerprint=fingerprint.hex(),
            models=models_of(fingerprint),
            chunks=chunks,
            used_bytes=used_bytes,
            engines=[EngineProcess(pid=pid, name=name_of(pid)) for pid in pids[:ENGINES_SHOWN_MAX]],
        )
        for fingerprint, chunks, used_bytes, pids in shown[:FINGERPRINTS_SHOWN_MAX]
    ]


def resolve(digits: str, known: Iterable[KnownFingerprint]) -> bytes:
    """The one that begins so; all 64 digits need not be known to the node.

    :raises Refusal: if none does, or several do."""
    wanted = digits.lower()
    if len(wanted) == DIGITS:
        return bytes.fromhex(wanted)
    found = sorted({one[0] for one in known if one[0].hex().startswith(wanted)})
    if len(found) != 1:
        raise fingerprint_unclear(digits, [one.hex()[: len(digits) + 8] for one in found[:NAMED_MAX]])
    return found[0]
