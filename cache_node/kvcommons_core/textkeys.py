"""Text keys: hints for routing, made from a request's text without a tokenizer.

The canonical text of a request is a byte string in which two requests share a prefix exactly as far as their prompts do. Frames open with
the byte 0xFF, which UTF-8 never contains, and a tag, so no text can imitate a boundary; no length stands before a text, because a longer
text must still share the beginning. Keys chain over whole steps of 2,048 bytes:

    key i = XXH3-64(step i, seed = key i-1);  key -1 = XXH3-64(model, lora, tenant, salt; each with its length, u32 little-endian)

Frames (a chat: head, then each message; a completion: the prompt alone):

    FF 't' JSON of tools     FF 'k' JSON of what else changes the template     FF 'r' role     FF 'c' text     FF 'p' next part of a content
    FF 'j' JSON of what stands where none of these was expected
    FF 'i' 16 bytes XXH3-128 of an image's, sound's or file's URL or data      FF 'x' JSON of the message's other fields
    FF 'P' prompt            FF 'T' token ids, u32 little-endian, ended by FF FF FF FF           FF 'E' end
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, cast

import orjson
import xxhash

from kvcommons_core import limits

try:
    from kvcommons_core import _native
except ImportError:  # a pure wheel (operator, router): the reference below serves
    HAVE_NATIVE = False
else:
    HAVE_NATIVE = hasattr(_native, "read_request")  # a tree's build may be older than its Python

STEP_BYTES: Final = limits.TEXT_STEP_BYTES

_TOOLS: Final = b"\xfft"
_TEMPLATE: Final = b"\xffk"
_ROLE: Final = b"\xffr"
_CONTENT: Final = b"\xffc"
_PART: Final = b"\xffp"
_ITEM: Final = b"\xffi"
_EXTRA: Final = b"\xffx"
_OTHER: Final = b"\xffj"
_PROMPT: Final = b"\xffP"
_TOKENS: Final = b"\xffT"
_TOKENS_END: Final = b"\xff\xff\xff\xff"
_END: Final = b"\xffE"

_TEMPLATE_FIELDS: Final = ("chat_template", "chat_template_kwargs", "documents", "add_special_tokens", "suffix")
_MESSAGE_FIELDS: Final = frozenset({"role", "content"})
_MEDIA_FIELDS: Final = ("image_url", "input_audio", "audio_url", "video_url", "file", "image", "audio", "video")

_xxh64: Callable[[bytes | memoryview, int], int] = xxhash.xxh3_64_intdigest


PLAIN_REFUSED: Final = ("tools", "input", *_TEMPLATE_FIELDS)
"""Members with which a request is not of the plain kind."""


class Plain(NamedTuple):
    """A request of the plain kind: a chat of roles and texts, or a prompt that is a text."""

    model: str
    stream: bool
    canonical: bytes


class PlainReader:
    """Reads requests of the plain kind straight from their JSON, several times as fast as by parsing them."""

    def __init__(self, refused: Iterable[str] = ()) -> None:
        """:param refused: more names of members with which a request is not plain."""
        self._refused = frozenset((*PLAIN_REFUSED, *refused))

    def read(self, body: bytes) -> Plain | None:
        """None says nothing of the body but that it is to be parsed: it may be of another kind, or no JSON at all."""
        found = _native.read_request(body, self._refused) if HAVE_NATIVE else None
        return Plain(*found) if found is not None else None


class TextKeys(NamedTuple):
    """The keys of whole steps, and what the connector needs to map them to chunks by proportion."""

    keys: list[int]
    total_bytes: int
    """Of the canonical text, the incomplete last step included."""
    prompts: int
    """1, or the number of prompts in one completion request: the keys are the first one's."""


def text_seed(model: str, lora: str = "", tenant: str = "", salt: str = "") -> int:
    """key -1: whoever differs in any of these shares no text key."""
    framed = bytearray()
    for part in (model, lora, tenant, salt):
        raw = _utf8(part)
        framed += len(raw).to_bytes(4, "little") + raw
    return _xxh64(bytes(framed), 0)


def text_keys(request: Mapping[str, object], seed: int) -> TextKeys:
    """Text keys of a parsed chat or completion request. Never fails: what it does not know it takes as JSON."""
    canonical, prompts = canonical_text(request)
    return TextKeys(chain(canonical, seed), len(canonical), prompts)


def chain(canonical: bytes, seed: int) -> list[int]:
    """Keys of the whole steps of a canonical text."""
    keys = []
    view = memoryview(canonical)
    hash64 = _xxh64
    stop = min(len(canonical) - STEP_BYTES, (limits.TEXT_KEYS_PER_REQUEST_MAX - 1) * STEP_BYTES)
    for begin in range(0, stop + 1, STEP_BYTES):
        seed = hash64(view[begin : begin + STEP_BYTES], seed)
        keys.append(seed)
    return keys


def chain8(canonical: bytes, seed: int) -> tuple[list[bytes], bytes]:
    """The same keys as the index names them (8 bytes, little-endian), and as a request carries them: the inside of a JSON
    array of strings of 16 hexadecimal digits."""
    if HAVE_NATIVE:
        return _native.text_chain(canonical, seed, STEP_BYTES, limits.TEXT_KEYS_PER_REQUEST_MAX)
    keys = chain(canonical, seed)
    packed = struct.pack(f"<{len(keys)}Q", *keys)
    return [packed[at : at + 8] for at in range(0, len(packed), 8)], b",".join([b'"%016x"' % key for key in keys])


def canonical_text(request: Mapping[str, object]) -> tuple[bytes, int]:
    """(the canonical text, number of prompts in the request)."""
    messages = request.get("messages")
    if isinstance(messages, list):
        return _chat(request, messages), 1
    prompt = request.get("prompt", request.get("input"))
    prompts = 1
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompts = len(prompt)
        prompt = prompt[0]
    parts: list[bytes] = []
    _template(request, parts)
    _prompt(prompt, parts)
    return b"".join(parts), prompts


def _chat(request: Mapping[str, object], messages: Sequence[object]) -> bytes:
    parts: list[bytes] = []
    tools = request.get("tools")
    if tools:
        parts += (_TOOLS, _json(tools))
    _template(request, parts)
    for message in messages:
        if not isinstance(message, dict):
            parts += (_OTHER, _json(message))
            continue
        role = message.get("role")
        parts += (_ROLE, _utf8(role) if isinstance(role, str) else _OTHER + _json(role))
        content = message.get("content")
        if isinstance(content, str):
            parts += (_CONTENT, _utf8(content))
        elif isinstance(content, list):
            _content_parts(content, parts)
        elif content is not None:
            parts += (_CONTENT, _OTHER, _json(content))
        if len(message) > 2 or not message.keys() <= _MESSAGE_FIELDS:
            extra = {
                name: value for name, value in message.items() if name not in _MESSAGE_FIELDS and value is not None
            }
            if extra:
                parts += (_EXTRA, _json(extra))
    parts.append(_END)
    return b"".join(parts)


def _content_parts(content: Sequence[object], parts: list[bytes]) -> None:
    """A content given as one text part is the same prompt as that text, so it gets the same bytes."""
    lead = _CONTENT
    for part in content:
        parts.append(lead)
        lead = _PART
        if isinstance(part, str):
            parts.append(_utf8(part))
            continue
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            parts.append(_utf8(text))
        elif isinstance(part, dict) and any(name in part for name in _MEDIA_FIELDS):
            parts += (_ITEM, _media_digest(part))
        else:
            parts += (_OTHER, _json(part))
    if lead is _CONTENT:
        parts.append(lead)


def _media_digest(part: Mapping[str, object]) -> bytes:
    """An item stands for what its URL or data is, not for its megabytes in the prompt."""
    for name in _MEDIA_FIELDS:
        value = part.get(name)
        if isinstance(value, dict) and isinstance(value.get("url"), str) and value.keys() <= {"url", "detail"}:
            detail = value.get("detail")
            return xxhash.xxh3_128_digest(
                _utf8(name) + b"\xff" + _utf8(value["url"]) + (b"" if detail is None else b"\xff" + _json(detail))
            )
    return xxhash.xxh3_128_digest(_json({k: v for k, v in part.items() if k != "uuid"}))


def _template(request: Mapping[str, object], parts: list[bytes]) -> None:
    present = {name: request[name] for name in _TEMPLATE_FIELDS if request.get(name)}
    if present:
        parts += (_TEMPLATE, _json(present))


def _prompt(prompt: object, parts: list[bytes]) -> None:
    if isinstance(prompt, str):
        parts += (_PROMPT, _utf8(prompt), _END)
        return
    if isinstance(prompt, list):
        ids = _token_ids(prompt)
        if ids is not None:
            parts += (_TOKENS, ids, _TOKENS_END, _END)
            return
    parts += (_OTHER, _json(prompt), _END)


def _token_ids(prompt: list[object]) -> bytes | None:
    try:
        packed = array("I", cast("list[int]", prompt))  # the constructor itself is the check, and a fast one
    except (TypeError, OverflowError):
        return None
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _json(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except orjson.JSONEncodeError:  # an integer beyond 64 bits, a lone surrogate: still a name for itself
        return repr(value).encode("utf-8", "backslashreplace")
