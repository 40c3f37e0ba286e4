"""What a shared library asks of the machine that loads it: its architecture, libraries, and versions of their symbols."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MACHINES: Final = {62: "x86_64", 183: "aarch64"}
SHT_DYNAMIC, SHT_GNU_VERNEED = 6, 0x6FFFFFFE
DT_NEEDED = 1


@dataclass(frozen=True)
class Needs:
    """Of a 64-bit little-endian ELF file."""

    machine: str
    libraries: tuple[str, ...]
    versions: tuple[str, ...]  # GLIBC_2.34, GLIBCXX_3.4.30

    @property
    def glibc(self) -> str:
        """The least glibc that has every symbol version it asks for, such as "2.34"."""
        found = [match.group(1) for name in self.versions if (match := re.fullmatch(r"GLIBC_(2\.[\d.]+)", name))]
        return max(found, key=version_key, default="2.0")


def version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@dataclass(frozen=True)
class _Section:
    kind: int
    offset: int
    size: int
    link: int
    info: int


def needs_of(path: Path) -> Needs:
    """:raises ValueError: for what is no 64-bit little-endian ELF file."""
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    machine = struct.unpack_from("<H", data, 18)[0]
    start, size, count = (
        struct.unpack_from("<Q", data, 40)[0],
        *struct.unpack_from("<HH", data, 58),
    )
    sections = []
    for index in range(count):
        _, kind, _, _, offset, length, link, info = struct.unpack_from("<IIQQQQII", data, start + index * size)
        sections.append(_Section(kind, offset, length, link, info))
    libraries: list[str] = []
    versions: list[str] = []
    for section in sections:
        strings = sections[section.link].offset if section.link < len(sections) else 0
        if section.kind == SHT_DYNAMIC:
            libraries += _needed(data, section, strings)
        elif section.kind == SHT_GNU_VERNEED:
            versions += _verneed(data, section, strings)
    return Needs(MACHINES.get(machine, str(machine)), tuple(libraries), tuple(sorted(set(versions))))


def _text(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode("ascii")


def _needed(data: bytes, section: _Section, strings: int) -> list[str]:
    entries = struct.iter_unpack("<QQ", data[section.offset : section.offset + section.size])
    return [_text(data, strings + value) for tag, value in entries if tag == DT_NEEDED]


def _verneed(data: bytes, section: _Section, strings: int) -> list[str]:
    """Each library's record leads to the next, and to a list of versions."""
    found = []
    record = section.offset
    for _ in range(section.info):
        _, count, _, first, following = struct.unpack_from("<HHIII", data, record)
        version = record + first
        for _ in range(count):
            _, _, _, name, next_version = struct.unpack_from("<IHHII", data, version)
            found.append(_text(data, strings + name))
            version += next_version
        record += following
    return found
