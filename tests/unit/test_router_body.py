"""Request bodies: what a client may not set is cut out however it is written, and nothing else is changed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_router.body import ROUTER_OWNED, check_nested, members, parse, rewrite, user_of
from kvcommons_router.errors import Refusal

SALT = "ab" * 32

KEYS = b'"0000000000000001","ffffffffffffffff"'


def joined(raw: bytes, additions: bytes) -> bytes:
    """The bytes that go to an engine."""
    return b"".join(rewrite(raw, parse(raw), additions))


def forwarded(raw: bytes, salt: str | None = SALT) -> Any:
    """What an engine reads of a body after the router was at it."""
    return json.loads(joined(raw, members(b"r1", salt, KEYS, 5000)))


def ours(salt: str | None = SALT) -> dict[str, object]:
    """What the router adds."""
    added: dict[str, object] = {
        "kv_transfer_params": {
            "kvcommons": {
                "v": 1,
                "request_id": "r1",
                "text_keys": ["0000000000000001", "ffffffffffffffff"],
                "text_bytes": 5000,
            }
        }
    }
    return added if salt is None else {"cache_salt": salt} | added


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","cache_salt":"forged"}',
        b'{"cache_salt":"forged","model":"m"}',
        b'{"model":"m","\\u0063ache_salt":"forged"}',
        b'{"model":"m","cache\\u005fsalt":"forged","cache_salt":"again"}',
        b'{"cache_salt":1,"cache_salt":{"a":[1,{"cache_salt":2}]},"model":"m"}',
        b'{"model":"m","kv_transfer_params":{"kvcommons":{"text_keys":["0"]}}}',
        b'{"model":"m","kv_\\u0074ransfer_params":null}',
        b' \n{ "cache_salt" : "x" , "model" : "m" } \r\n',
        b'{"model":"m","extra_key":"x","bootstrap_room":3,"routed_dp_rank":1}',
    ],
)
def test_a_clients_own_words_for_the_cache_are_dropped(raw: bytes) -> None:
    """Plain, escaped, repeated or nested in itself: only the router's salt and parameters reach the engine."""
    assert forwarded(raw) == {"model": "m"} | ours()
    assert forwarded(raw, None) == {"model": "m"} | ours(None)


def test_the_bytes_of_the_rest_are_the_clients() -> None:
    """A number too big for any integer type, an odd float and spaces are forwarded as they came."""
    raw = b'{"model": "m", "seed": 123456789012345678901234567890, "t": 1.0000000000000000001e-5,"cache_salt":"x" }'
    sent = joined(raw, members(b"r1", None, b"", 0, transfer_params=False))
    assert sent == b'{"model": "m","seed": 123456789012345678901234567890,"t": 1.0000000000000000001e-5}'


def test_a_body_without_forgeries_is_only_added_to() -> None:
    """The common case copies the client's bytes and puts the router's members before the last brace."""
    raw = b'{"model":"m", "messages":[{"role":"user","content":"} \\" {"}]}'
    sent = joined(raw, members(b"r1", SALT, b"", 7))
    assert sent.startswith(raw[:-1] + b',"cache_salt"')
    assert json.loads(sent)["kv_transfer_params"]["kvcommons"]["text_keys"] == []


def test_an_empty_object_gets_no_comma() -> None:
    """Nothing but the router's members is valid JSON too."""
    for raw in (b"{}", b"{ }", b'{"cache_salt":1}', b' { "cache_salt" : 1 } '):
        assert forwarded(raw) == ours()


def test_a_lone_surrogate_is_forwarded() -> None:
    """What the engines' parser accepts is not refused here."""
    raw = b'{"model":"m","x":"\\ud800","\\u0063ache_salt":1}'
    assert joined(raw, b"") == b'{"model":"m","x":"\\ud800"}'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "empty"),
        (b"  ", "empty"),
        (b'{"a":1', "line 1, column 7"),
        (b'{"a":\n tru}', "line 2, column 2"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":-Infinity}', "Infinity"),
        (b"[1]", "an array"),
        (b"7", "a number"),
        (b"null", "null"),
        (b'"x"', "a string"),
        (b'{"a":"\xff"}', "UTF-8"),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
        ('{"model":"m"}'.encode("utf-16"), "UTF-8"),
        (b'{"a":1} {"b":2}', "Extra data"),
        (b"[" * 100_000 + b"]" * 100_000, "deeply"),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, "deeply"),
    ],
)
def test_what_is_not_a_json_object_is_refused_by_name(raw: bytes, words: str) -> None:
    """400, and the message says what is wrong with the body."""
    with pytest.raises(Refusal, match=words) as caught:
        parse(raw)
    assert caught.value.status == 400


def test_a_forgery_through_an_engines_extra_arguments_is_refused() -> None:
    """vLLM merges vllm_xargs into what a connector sees."""
    with pytest.raises(Refusal, match=r"vllm_xargs\.kv_transfer_params"):
        check_nested(parse(b'{"vllm_xargs":{"kv_transfer_params":{}}}'))
    check_nested(parse(b'{"vllm_xargs":{"mine":1}}'))


def test_members_are_what_a_serialiser_would_write() -> None:
    """The additions are put together by hand; they parse to the documented object."""
    assert json.loads(b"{" + members(b"r1", SALT, KEYS, 5000) + b"}") == ours()
    assert json.loads(b"{" + members(b"r1", None, KEYS, 5000) + b"}") == ours(None)
    assert json.loads(b"{" + members(b"r1", SALT, b"", 0, transfer_params=False) + b"}") == {"cache_salt": SALT}
    assert members(b"r1", None, b"", 0, transfer_params=False) == b""


names = st.sampled_from([*sorted(ROUTER_OWNED), "model", "messages", "x", "", 'a"b', "é", "cache_salt "])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


def _escape(text: str, everything: bool) -> str:
    plain = json.dumps(text)
    if not everything:
        return plain
    units = text.encode("utf-16-be", "surrogatepass")
    return '"' + "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2)) + '"'


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(names, values, st.booleans()), max_size=8),
    st.sampled_from(["", " ", "\n\t "]),
    st.booleans(),
)
def test_rewriting_equals_editing_the_parsed_object(
    items: list[tuple[str, object, bool]], space: str, ascii_only: bool
) -> None:
    """For any object, repeated and escaped keys included: the engine reads the client's members but the router's
    own, and the router's additions."""
    text = (
        space
        + "{"
        + f"{space},{space}".join(
            f"{_escape(key, escaped)}{space}:{space}{json.dumps(value, ensure_ascii=ascii_only)}"
            for key, value, escaped in items
        )
        + space
        + "}"
        + space
    )
    raw = text.encode("utf-8", "surrogatepass")
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        with pytest.raises(Refusal):
            parse(raw)
        return
    wanted = {key: value for key, value in json.loads(text).items() if key not in ROUTER_OWNED} | ours()
    assert forwarded(raw) == wanted


@pytest.mark.parametrize(
    ("raw", "same"),
    [
        (b'{"model":"m","user":"ann"}', True),
        (b'{"model":"m", "user": "ann"}', True),
        (b'{"model":"m","messages":[{"role":"user","content":"hi"}]}', False),
        (b'{"model":"m","messages":[{"role":"user","content":"\\"user\\":\\"ann\\""}]}', False),
        (b'{"model":"m","user":7}', False),
    ],
)
def test_a_user_is_known_again(raw: bytes, same: bool) -> None:
    """A body's `user` is a session's name; the role of a message and what a text quotes are none."""
    assert (user_of(raw) == user_of(b'{"user":"ann"}')) is same
    assert bool(user_of(raw)) is same
