"""Text keys: shared exactly as far as the prompts are, whatever way the request says them, and fast."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_core import limits, textkeys
from kvcommons_core.textkeys import STEP_BYTES, canonical_text, chain, text_keys, text_seed

SEED = text_seed("m")
texts = st.text(max_size=30)
roles = st.sampled_from(["system", "user", "assistant", "tool", "c", ""])
parts = st.one_of(
    st.builds(lambda t: {"type": "text", "text": t}, texts),
    st.builds(lambda u: {"type": "image_url", "image_url": {"url": u}}, texts),
    st.builds(lambda v: {"type": "other", "value": v}, texts),
)
messages = st.fixed_dictionaries(
    {"role": roles, "content": st.one_of(texts, st.none(), st.lists(parts, min_size=2, max_size=4))},
    optional={"name": texts, "tool_calls": st.lists(texts, min_size=1, max_size=2)},
)
chats = st.fixed_dictionaries(
    {"messages": st.lists(messages, max_size=4)}, optional={"tools": st.lists(texts, min_size=1, max_size=2)}
)


def canonical(request: dict[str, Any]) -> bytes:
    return canonical_text(request)[0]


@given(one=chats, other=chats)
def test_two_chats_have_one_canonical_text_only_if_they_say_the_same(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """No boundary can be imitated: whatever differs in roles, contents, parts or fields differs in bytes."""
    assert (canonical(one) == canonical(other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([{"role": "user", "content": "ab"}], [{"role": "usera", "content": "b"}]),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], [{"role": "user", "content": "auserb"}]),
        ([{"role": "user", "content": {"name": "a"}}], [{"role": "user", "content": "", "name": "a"}]),
        ([{"role": "user", "content": ["a", "b"]}], [{"role": "user", "content": "ab"}]),
        ([{"role": ["x"], "content": ""}], [{"role": '["x"]', "content": ""}]),
        ([{"role": "user", "content": "\ud800"}], [{"role": "user", "content": "\\ud800"}]),
    ],
)
def test_boundaries_cannot_be_imitated(one: list[Any], other: list[Any]) -> None:
    """The classic confusions of concatenated text are kept apart."""
    assert canonical({"messages": one}) != canonical({"messages": other})


@given(history=st.lists(messages, max_size=4), more=st.lists(messages, min_size=1, max_size=3))
def test_a_chat_that_goes_on_keeps_its_beginning(history: list[Any], more: list[Any]) -> None:
    """The canonical text of a history is a prefix of that of any continuation, so their keys are shared."""
    before = canonical({"messages": history}).removesuffix(b"\xffE")
    assert canonical({"messages": history + more}).startswith(before)


@pytest.mark.parametrize(
    "wrap", [lambda text: {"prompt": text}, lambda text: {"messages": [{"role": "user", "content": text}]}]
)
def test_one_document_asked_two_questions_shares_its_keys(wrap: Any) -> None:
    """A longer question after the same document changes no key of the document: no length stands before a text."""
    document = "the same long document. " * 500
    one = text_keys(wrap(document + "short?"), SEED).keys
    two = text_keys(wrap(document + "a much, much longer question " * 300), SEED).keys
    whole = len(document) // STEP_BYTES
    assert one[:whole] == two[:whole]
    assert whole >= 5
    assert len(two) > len(one)


def test_one_text_part_is_the_text() -> None:
    """A content given as a list with one text part is the same prompt as the plain string."""
    plain = {"messages": [{"role": "user", "content": "hello"}]}
    listed = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}
    assert canonical(plain) == canonical(listed)


@pytest.mark.parametrize("field", ["model", "lora", "tenant", "salt"])
def test_whoever_differs_in_the_seed_shares_nothing(field: str) -> None:
    """Models, adapters, tenants and salts each have keys of their own."""
    base = {"model": "m", "lora": "", "tenant": "t", "salt": "s"}
    request = {"prompt": "x" * 10_000}
    mine = set(text_keys(request, text_seed(**base)).keys)
    assert not mine & set(text_keys(request, text_seed(**(base | {field: "other"}))).keys)


def test_the_seed_cannot_be_shifted_between_its_parts() -> None:
    """Each part has its length before it."""
    assert len({text_seed("ab", "c"), text_seed("a", "bc"), text_seed("abc"), text_seed("", "abc")}) == 4


def test_sampling_parameters_do_not_matter() -> None:
    """What does not change the prompt does not change its keys."""
    request = {"messages": [{"role": "user", "content": "x" * 5_000}]}
    assert text_keys(request, SEED) == text_keys(request | {"temperature": 0.5, "stream": True, "max_tokens": 7}, SEED)


def test_tools_and_templates_come_first() -> None:
    """Tools stand at the head of a prompt, so others' tools share nothing."""
    request = {"messages": [{"role": "user", "content": "x" * 5_000}]}
    plain = text_keys(request, SEED).keys
    assert text_keys(request | {"tools": [{"type": "function"}]}, SEED).keys[0] != plain[0]
    assert text_keys(request | {"chat_template_kwargs": {"enable_thinking": False}}, SEED).keys[0] != plain[0]


def test_an_image_counts_by_its_content_and_not_by_its_megabytes() -> None:
    """A data URL of a megabyte adds 18 bytes to the canonical text, and another image is another text."""

    def request(url: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}

    big = "data:image/png;base64," + "A" * 2**20
    assert len(canonical(request(big))) < 64
    assert canonical(request(big)) != canonical(request(big[:-1] + "B"))
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    other = {"type": "input_audio", "input_audio": {"data": "AAAB", "format": "wav"}}
    assert canonical({"messages": [{"role": "user", "content": [audio]}]}) != canonical(
        {"messages": [{"role": "user", "content": [other]}]}
    )


def test_token_ids_share_as_far_as_the_ids_do() -> None:
    """A prompt of ids is chained over the ids themselves."""
    ids = list(range(3_000))
    one, two = text_keys({"prompt": ids}, SEED), text_keys({"prompt": [*ids, 1, 2, 3]}, SEED)
    assert one.keys == two.keys[: len(one.keys)]
    assert one.total_bytes == 2 + 12_000 + 4 + 2
    assert text_keys({"prompt": [ids]}, SEED).keys == one.keys


def test_several_prompts_in_one_request_say_so() -> None:
    """The keys are the first prompt's, and the caller is told that they are not the whole request's."""
    several = text_keys({"prompt": ["x" * 5_000, "y"]}, SEED)
    assert several.prompts == 2
    assert several.keys == text_keys({"prompt": "x" * 5_000}, SEED).keys


@pytest.mark.parametrize(
    "request_",
    [
        {},
        {"prompt": None},
        {"prompt": []},
        {"prompt": {"a": 1}},
        {"prompt": [1, "x"]},
        {"prompt": [2**40]},
        {"prompt": [-1]},
        {"messages": "x"},
        {"messages": [None, 1, "x", []]},
        {"messages": [{}]},
        {"messages": [{"role": 7, "content": 2**80}]},
        {"messages": [{"role": "user", "content": [None, 1, {"text": 5}]}]},
        {"messages": [], "tools": "x"},
        {"messages": [{"role": "user", "content": [{"image_url": "x"}, {"image_url": {"url": 5}}]}]},
    ],
)
def test_nonsense_has_a_canonical_text_too(request_: dict[str, Any]) -> None:
    """Keys are a hint: the engine refuses a bad request, the router does not fall over it."""
    assert isinstance(text_keys(request_, SEED).keys, list)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | texts,
        lambda s: st.lists(s) | st.dictionaries(texts, s),
        max_leaves=6,
    )
)
def test_any_json_in_any_place_is_survived(value: Any) -> None:
    """Whatever a client sends in the place of a prompt, a message, a content or a part, there is an answer."""
    for request in (
        {"prompt": value},
        {"messages": [value]},
        {"messages": [{"role": value, "content": value}]},
        {"messages": [{"role": "user", "content": [value]}], "tools": value, "documents": value},
    ):
        text_keys(request, SEED)


def test_the_number_of_keys_is_bounded() -> None:
    """A prompt of any size gives at most so many keys: the rest does not take part in routing."""
    huge = bytes(STEP_BYTES) * (limits.TEXT_KEYS_PER_REQUEST_MAX + 5)
    assert len(chain(huge, SEED)) == limits.TEXT_KEYS_PER_REQUEST_MAX
    assert chain(bytes(STEP_BYTES - 1), SEED) == []
    assert len(chain(bytes(STEP_BYTES), SEED)) == 1


def test_a_32_kib_body_takes_microseconds() -> None:
    """The router's hot path pays under 30 us for 32 KiB; the bound here allows for a busy machine."""
    body = {
        "model": "m",
        "messages": [{"role": "system", "content": "x" * 300}, {"role": "user", "content": "abc def " * 4_096}],
    }

    def timed() -> float:
        begin = time.perf_counter()
        textkeys.text_keys(body, SEED)
        return time.perf_counter() - begin

    best_us = min(timed() for _ in range(300)) * 1e6
    assert best_us < 60, f"{best_us:.1f} us"
