"""Names, parameters and identities of the codecs that make KV smaller (docs/codecs.md). Pure: the bytes are `_native`'s work.

What a lossy codec gives back is not what the engine computed, so it lives under a fingerprint of its own: a chunk that
was encoded with loss never answers an exact lookup. Who wants both asks for both.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Final

from kvcommons_core.errors import ConfigurationError

CODEC_VERSION: Final = 1
"""Of what the ids mean: it is in every payload's header and in every lossy identity."""
GROUP_DEFAULT: Final = 32
GROUP_MIN: Final = 8
GROUP_MAX: Final = 256
_DOMAIN: Final = b"kvcommons.lossy.v1"


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec of the registry."""

    name: str
    id: int
    """In payload headers and in a tier's extents; 0 there means the engine's own bytes."""
    lossy: bool
    grouped: bool = False
    """It has the parameter `group`: elements that share a scale."""


CODECS: Final = (
    Codec("fp8-e4m3", 1, lossy=True),
    Codec("int8", 2, lossy=True),
    Codec("int4", 3, lossy=True, grouped=True),
    Codec("k16v8", 4, lossy=True),
    Codec("lossless", 5, lossy=False),
)


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """A codec with its parameters: what a payload's header holds and what a lossy identity is derived from."""

    codec: Codec
    group: int = 0

    def __str__(self) -> str:
        return f"{self.codec.name}:group={self.group}" if self.codec.grouped else self.codec.name


def parse_codec(text: str) -> CodecSpec:
    """ "int8", or "int4:group=64"; a group that is not given is 32. Raises ConfigurationError."""
    name, colon, parameters = text.partition(":")
    codec = next((known for known in CODECS if known.name == name), None)
    if codec is None:
        raise ConfigurationError("codec", text, f"choose of {', '.join(known.name for known in CODECS)}")
    if not codec.grouped:
        if colon:
            raise ConfigurationError("codec", text, f"{name} has no parameters")
        return CodecSpec(codec)
    group = GROUP_DEFAULT
    if colon:
        key, _, value = parameters.partition("=")
        if key != "group" or not value.isascii() or not value.isdigit() or len(value) > 4:
            raise ConfigurationError("codec", text, f'write "{name}:group={GROUP_DEFAULT}"')
        group = int(value)
    if not GROUP_MIN <= group <= GROUP_MAX or group & (group - 1):
        raise ConfigurationError("codec", text, f"give a group that is a power of two in {GROUP_MIN}..{GROUP_MAX}")
    return CodecSpec(codec, group)


def lossy_fingerprint(fingerprint: bytes, spec: CodecSpec) -> bytes:
    """The fingerprint under which what ``spec`` gives back is kept; 32 bytes in and out.

    SHA-256("kvcommons.lossy.v1", fingerprint, codec id u16, codec version u16, group u32), little-endian. Namespace roots
    and token keys follow from it as from any other. A lossless codec changes no identity: the fingerprint itself.
    """
    if len(fingerprint) != 32:
        raise ConfigurationError("fingerprint", fingerprint.hex(), "pass a whole SHA-256 digest, 32 bytes")
    if not spec.codec.lossy:
        return fingerprint
    return hashlib.sha256(
        _DOMAIN + fingerprint + struct.pack("<HHI", spec.codec.id, CODEC_VERSION, spec.group)
    ).digest()
