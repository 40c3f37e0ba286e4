"""Text keys straight from a request's JSON: the native reader and the reference agree, or the reader says nothing."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from kvcommons_core import textkeys

READER = textkeys.PlainReader(["cache_salt"])
native = pytest.mark.skipif(not textkeys.HAVE_NATIVE, reason="kvcommons_core._native is not built: run `make build`")

texts = st.text(max_size=40) | st.sampled_from(
    ['"', "\\", "\n\t\r\b\f\x00", "é", "漢字", "\U0001f600", "a" * 33, "\x7f"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.lists(
    st.fixed_dictionaries({"role": texts}, optional={"content": texts | st.none(), "name": texts}), max_size=4
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "model": texts | values,
        "stream": values,
        "messages": messages | values,
        "prompt": texts | values,
        "temperature": values,
        "tools": values,
        "cache_salt": values,
        "input": texts,
    },
)


def check(raw: bytes) -> bool:
    """That the reader says of these bytes what the reference does; whether it says anything."""
    found = READER.read(raw)
    if found is None:
        return False
    fields: dict[str, Any] = orjson.loads(raw)
    assert found.model == fields["model"]
    assert found.stream is (fields.get("stream") is True)
    assert found.canonical == textkeys.canonical_text(fields)[0]
    assert "cache_salt" not in fields
    return True


@native
@given(requests, st.booleans(), st.sampled_from([None, 1]))
@example({"model": "m", "messages": [{"content": "c", "role": "r"}, {"role": "x", "content": None}]}, True, None)
def test_what_is_read_is_what_parsing_gives(request: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    """For any request, escaped or not, spaced or not: the same model, stream and canonical text, or nothing."""
    try:
        raw = json.dumps(request, ensure_ascii=ascii_only, indent=indent).encode()
    except UnicodeEncodeError:  # half a surrogate pair, which is no UTF-8
        return
    try:
        orjson.loads(raw)
    except orjson.JSONDecodeError:
        assert READER.read(raw) is None or "surrogate" in repr(request)
        return
    check(raw)


@native
@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_bytes_make_it_accept_what_is_not_json(noise: bytes, at: int) -> None:
    """A body with some of its bytes replaced is read as the parser reads it, or not at all."""
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"hello \\u00e9 \xc3\xa9"}],"stream":true,"t":[1,-2.5e3,{}]}'
    )
    check(raw[:at] + noise + raw[at + len(noise) :])


@native
@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}],"stream":true}',
        b' {"prompt" : "p", "model":"m", "max_tokens": 16, "stop": ["a", "\\n"], "logit_bias": {"1": -0.5}} ',
        b'{"model":"m","messages":[],"stream":null}',
        b'{"model":"m","prompt":"\\ud83d\\ude00 \\"\\\\\\/\\b\\f\\n\\r\\t"}',
    ],
)
def test_plain_requests_are_read(raw: bytes) -> None:
    """The kinds that nearly all requests are of."""
    assert check(raw)


@native
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b'{"model":"m"}',
        b'{"prompt":"p"}',
        b'{"model":"m","prompt":"p"} x',
        b'{"model":"m","prompt":"p",}',
        b'{"model":"m","prompt":"p","cache_salt":"s"}',
        b'{"model":"m","prompt":"p","cache\\u005fsalt":"s"}',
        b'{"model":"m","prompt":"p","prompt":"q"}',
        b'{"model":"m","model":"n","prompt":"q"}',
        b'{"model":"m","prompt":"p","stream":false,"stream":true}',
        b'{"model":"m","prompt":["p"]}',
        b'{"model":"m","prompt":"p","suffix":"s"}',
        b'{"model":"m","prompt":"p","messages":[]}',
        b'{"model":"m","messages":[{"role":"u","content":[{"type":"text","text":"t"}]}]}',
        b'{"model":"m","messages":[{"role":"u","content":"c","name":"n"}]}',
        b'{"model":"m","messages":[{"role":"u","role":"v","content":"c"}]}',
        b'{"model":"m","messages":[{"content":"c"}]}',
        b'{"model":"m","prompt":"\\ud800"}',
        b'{"model":"m","prompt":"\xed\xa0\x80"}',
        b'{"model":"m","prompt":"\xc0\xaf"}',
        b'{"model":"m","prompt":"\xf4\x90\x80\x80"}',
        b'{"model":"m","prompt":"\n"}',
        b'{"model":"m","prompt":"p","n":01}',
        b'{"model":"m","prompt":"p","n":NaN}',
        b'{"model":"m","prompt":"p","n":' + b"[" * 40 + b"]" * 40 + b"}",
        b'\xef\xbb\xbf{"model":"m","prompt":"p"}',
        b'{"model":"m","prompt":"p"',
        b'{"model":"m","prompt":"p',
    ],
)
def test_everything_else_is_left_to_the_parser(raw: bytes) -> None:
    """Other kinds of requests, repeated or escaped names, what is not JSON, and what only the router may say."""
    assert READER.read(raw) is None


@given(st.binary(max_size=9000), st.integers(0, 2**64 - 1))
def test_keys_for_the_index_are_the_chain(canonical: bytes, seed: int) -> None:
    """Eight little-endian bytes each, and the same in hexadecimal digits as a JSON array's inside."""
    keys = textkeys.chain(canonical, seed)
    named, quoted = textkeys.chain8(canonical, seed)
    assert [int.from_bytes(key8, "little") for key8 in named] == keys
    assert all(len(key8) == 8 for key8 in named)
    assert json.loads(b"[" + quoted + b"]") == [f"{key:016x}" for key in keys]


def test_a_pure_installation_reads_nothing_and_makes_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the native module every body is parsed, and the reference makes the keys."""
    canonical = bytes(range(256)) * 40
    before = textkeys.chain8(canonical, 5)
    monkeypatch.setattr(textkeys, "HAVE_NATIVE", False)
    assert textkeys.chain8(canonical, 5) == before
    assert textkeys.PlainReader().read(b'{"model":"m","prompt":"p"}') is None
