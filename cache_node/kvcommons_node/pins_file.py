"""The file that pins live in between two lives of a daemon: one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from kvcommons_core.limits import KEY_BYTES
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from kvcommons_node.api.models_pins import NAME_PATTERN
from kvcommons_node.pins import PINNED_KEYS_MAX, PINS_MAX, Pin

FILE_BYTES_MAX = PINNED_KEYS_MAX * KEY_BYTES * 2 + PINS_MAX * 1_024

logger = logging.getLogger(__name__)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    keys: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})*$")]
    bytes_pinned: int = Field(ge=0)
    created: float
    expires: float


def write(path: Path, pins: Iterable[Pin]) -> None:
    """By one rename, readable by the node's user alone. :raises OSError: if it can't be written."""
    scratch = path.with_suffix(".new")
    scratch.unlink(missing_ok=True)
    with open(scratch, "x", encoding="ascii", opener=_private) as file:
        for pin in pins:
            line = _Line(
                name=pin.name,
                fingerprint=pin.fingerprint.hex(),
                keys=pin.keys.hex(),
                bytes_pinned=pin.bytes_pinned,
                created=pin.created,
                expires=pin.expires,
            )
            file.write(line.model_dump_json() + "\n")
    scratch.replace(path)


def read(path: Path) -> list[Pin]:
    """What was written last; a line that is damaged is named in the log and left out."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            logger.warning("%s is larger than %d bytes: its pins are given up", path, FILE_BYTES_MAX)
            return []
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        logger.warning("%s: %s: its pins are given up", path, error.strerror)
        return []
    found: list[Pin] = []
    for number, line in enumerate(lines[:PINS_MAX], 1):
        try:
            one = _Line.model_validate(json.loads(line))
        except (ValueError, ValidationError, RecursionError):
            logger.warning("%s, line %d is no pin: it is left out", path, number)
            continue
        keys, fingerprint = bytes.fromhex(one.keys), bytes.fromhex(one.fingerprint)
        found.append(Pin(one.name, fingerprint, keys, one.bytes_pinned, one.created, one.expires))
    return found


def _private(name: str, flags: int) -> int:
    return os.open(name, flags, 0o600)
