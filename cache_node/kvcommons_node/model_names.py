"""Which model a fingerprint's engines serve, as they say in their reports: so that people can name models, not digits.

Kept in a file between two lives of a daemon, because what is on a disk outlives the engines that stored it."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Final

FINGERPRINTS_MAX: Final = 1_024
NAMES_PER_FINGERPRINT_MAX: Final = 8
NAME_CHARACTERS_MAX: Final = 256
FILE_BYTES_MAX: Final = FINGERPRINTS_MAX * NAMES_PER_FINGERPRINT_MAX * (NAME_CHARACTERS_MAX * 6 + 80)

logger = logging.getLogger(__name__)


class ModelNames:
    """One per daemon. :param path: the file; None for none."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._names: dict[bytes, list[str]] = {}

    def hear(self, fingerprint: bytes, model: str) -> None:
        """An engine of this fingerprint serves this model. Past a limit nothing more is learnt."""
        if not fingerprint or not 0 < len(model) <= NAME_CHARACTERS_MAX:
            return
        if fingerprint not in self._names and len(self._names) >= FINGERPRINTS_MAX:
            return
        names = self._names.setdefault(fingerprint, [])
        if model not in names and len(names) < NAMES_PER_FINGERPRINT_MAX:
            names.append(model)
            self._write()

    def of(self, fingerprint: bytes) -> list[str]:
        return list(self._names.get(fingerprint, ()))

    def fingerprints(self, model: str) -> list[bytes]:
        """All that serve it: one model has several, by layout, precision and build."""
        return sorted(fingerprint for fingerprint, names in self._names.items() if model in names)

    def known(self) -> list[str]:
        return sorted({name for names in self._names.values() for name in names})

    def restore(self) -> None:
        """What the life before knew; a file that is damaged is named in the log and given up."""
        if self._path is None or not self._path.exists():
            return
        try:
            if self._path.stat().st_size > FILE_BYTES_MAX:
                raise ValueError(f"larger than {FILE_BYTES_MAX} bytes")
            found = {bytes.fromhex(name): list(map(str, models)) for name, models in self._read(self._path).items()}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            logger.warning("%s: %s: which models fingerprints are of is learnt anew", self._path, error)
            return
        for fingerprint, models in list(found.items())[:FINGERPRINTS_MAX]:
            self._names[fingerprint] = models[:NAMES_PER_FINGERPRINT_MAX]

    @staticmethod
    def _read(path: Path) -> dict[str, list[object]]:
        found: dict[str, list[object]] = json.loads(path.read_text())
        return found

    def _write(self) -> None:
        if self._path is None:
            return
        scratch = self._path.with_suffix(".new")
        try:
            scratch.write_text(json.dumps({one.hex(): names for one, names in self._names.items()}) + "\n")
            scratch.replace(self._path)
        except OSError as error:
            logger.warning("%s: %s: the names of models will not outlive this daemon", self._path, error.strerror)
