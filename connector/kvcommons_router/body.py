"""Request bodies: parsed (never searched), cleaned of what a client may not set, and given what the router sets.

The client's bytes are never written anew: a big integer, the order of keys or an escaped surrogate reach the engine as
they came. Members that the router owns are cut out where they stand; the router's own are put before the last brace.
"""

from __future__ import annotations

import json
import re

import orjson
import xxhash

from kvcommons_router.errors import Refusal

Fields = dict[str, object]
Buffers = tuple[bytes | memoryview, bytes]  # sent one after the other, so that a long body is not copied once more

NOTHING: Buffers = (b"", b"")

# What only the router may say to an engine: the name space of the cache, and where KV comes from or goes to.
# The last ones are SGLang's words for the same.
ROUTER_OWNED = frozenset(
    {
        "cache_salt",
        "kv_transfer_params",
        "extra_key",
        "bootstrap_host",
        "bootstrap_port",
        "bootstrap_room",
        "data_parallel_rank",
        "routed_dp_rank",
        "disagg_prefill_dp_rank",
    }
)
# vLLM merges these into the arguments that a connector sees.
NESTED = ("vllm_xargs", "extra_args")
_WHITESPACE = re.compile(r"[ \t\n\r]*")
_RAW = json.JSONDecoder(parse_int=str, parse_float=str)


USER_WITHIN_BYTES = 1024  # of either end of a body
_USER = re.compile(rb'"user"\s*:\s*"([^"\\]{1,512})"')


def user_of(raw: bytes) -> int:
    """A hash of what the body calls its user, or 0. It breaks ties and nothing more, so it is searched for, not parsed: where clients
    write it, before a long text or after it."""
    ends = raw if len(raw) <= 2 * USER_WITHIN_BYTES else raw[:USER_WITHIN_BYTES] + raw[-USER_WITHIN_BYTES:]
    if b'"user":' not in ends:
        return 0
    found = _USER.search(ends)
    return xxhash.xxh3_64_intdigest(found[1]) if found is not None else 0


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def parse(raw: bytes) -> Fields:
    """The members of a body's object; of duplicate keys the last one counts, as in the engines.

    :raises Refusal: if it is not a JSON object; the message says where.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as first:
        value = _parse_slowly(raw, first)
    if type(value) is not dict:
        raise Refusal(400, f"The body must be a JSON object, not {_kind(value)}.", code="invalid_json")
    return value


def _parse_slowly(raw: bytes, first: orjson.JSONDecodeError) -> object:
    """What orjson refuses and the engines' parser accepts: lone surrogates and the like."""
    if not raw.strip():
        raise Refusal(400, "The body is empty; a JSON object is needed.", code="invalid_json") from first
    try:
        return _STRICT.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(400, f"The body is not UTF-8 (byte {error.start}).", code="invalid_json") from error
    except RecursionError as error:
        raise Refusal(400, "The body is nested too deeply.", code="invalid_json") from error
    except json.JSONDecodeError as error:
        message = f"The body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        raise Refusal(400, message, code="invalid_json") from error
    except ValueError as error:
        raise Refusal(400, f"The body is not valid JSON: {error}.", code="invalid_json") from error


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", int: "a number", float: "a number", bool: "a boolean"}
    return names.get(type(value), "null")


def check_nested(fields: Fields) -> None:
    """Refuses a router-owned name in the places that an engine merges into the same arguments."""
    for name in NESTED:
        inner = fields.get(name)
        if isinstance(inner, dict) and not ROUTER_OWNED.isdisjoint(inner):
            found = min(ROUTER_OWNED.intersection(inner))
            raise Refusal(400, f"{name}.{found} is set by the router, not by clients.", param=name)


def rewrite(raw: bytes, fields: Fields, additions: bytes) -> Buffers:
    """The body to forward: the client's bytes without router-owned members, and `additions` at the end.

    `additions` is a JSON object's inside, as from `members`; `fields` is what `parse` gave for `raw`.
    """
    if not ROUTER_OWNED.isdisjoint(fields):
        raw = _cut(raw)
    end = raw.rindex(b"}")
    head = memoryview(raw)[:end]
    if not additions:
        return (head, b"}")
    empty = raw[:end].rstrip(b" \t\r\n").endswith(b"{") if len(fields) <= len(ROUTER_OWNED) else False
    return (head, b"%b%b}" % (b"" if empty else b",", additions))


def extend(raw: bytes, additions: bytes) -> Buffers:
    """The same for an object that has members, and none that the router owns."""
    return (memoryview(raw)[: raw.rindex(b"}")], b",%b}" % additions if additions else b"}")


def _cut(raw: bytes) -> bytes:
    """The object without its router-owned members, however their keys are written or repeated."""
    text = raw.decode("utf-8")
    kept: list[str] = []
    at = _skip(text, _skip(text, 0) + 1)
    while text[at] != "}":
        start = at
        key, at = _RAW.raw_decode(text, at)
        at = _skip(text, _skip(text, at) + 1)
        try:
            _, at = _RAW.raw_decode(text, at)
        except RecursionError as error:
            raise Refusal(400, "The body is nested too deeply.", code="invalid_json") from error
        if key not in ROUTER_OWNED:
            kept.append(text[start:at])
        at = _skip(text, at)
        if text[at] == ",":
            at = _skip(text, at + 1)
    return ("{" + ",".join(kept) + "}").encode("utf-8")


def _skip(text: str, at: int) -> int:
    match = _WHITESPACE.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def members(
    request_id: bytes,
    salt: str | None,
    text_keys: bytes,
    text_bytes: int,
    *,
    transfer_params: bool = True,
    other_tenant: bool = False,
) -> bytes:
    """What the router adds to a body, as the inside of a JSON object. None of it needs escaping.

    `text_keys` is the inside of a JSON array of strings.
    """
    salted = b'"cache_salt":"%b"' % salt.encode("ascii") if salt is not None else b""
    if not transfer_params:
        return salted
    return b'%b%b"kv_transfer_params":{"kvcommons":{"v":1,"request_id":"%b","text_keys":[%b],"text_bytes":%d%b}}' % (
        salted,
        b"," if salted else b"",
        request_id,
        text_keys,
        text_bytes,
        b',"other_tenant":true' if other_tenant else b"",
    )
