"""The fingerprint: every field counts, nothing unknown passes, content and not names are identity."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
from kvcommons_core.errors import IdentityError
from kvcommons_core.fingerprint import KvGroup, ModelIdentity, explain_difference
from vectors.make_keys import IDENTITY

OTHER_VALUES: Mapping[str, Any] = {
    "weights": "sha256:" + "0" * 64,
    "generation": "1",
    "compute_dtype": "float32",
    "weight_quantization": "fp8",
    "kv_dtype": "fp8_e4m3",
    "kv_quantization": "per_tensor",
    "groups": (KvGroup(kind="mla", layers=(0,), kv_heads=1, head_size=576, block_tokens=16, window_tokens=0),),
    "attention": "other",
    "chunk_tokens": 32,
    "rope": {"rope_theta": 100001},
    "context_parallel": 2,
    "context_parallel_interleave": 16,
    "engine_family": "sglang",
    "layout": "pages",
    "layout_version": 2,
}
OTHER_GROUP: Mapping[str, Any] = {
    "kind": "chunked",
    "layers": (0, 4),
    "kv_heads": 4,
    "head_size": 128,
    "block_tokens": 8,
    "window_tokens": 1,
}


def changed(name: str, value: Any) -> ModelIdentity:
    """The identity with one field set to what a caller might hand over, right or wrong."""
    return replace(IDENTITY, **{name: value})


def test_no_field_has_a_default() -> None:
    """Whoever describes a model must say all of it: leaving any field out is an error of the call itself."""
    for field in fields(ModelIdentity):
        known = {f.name: getattr(IDENTITY, f.name) for f in fields(ModelIdentity) if f.name != field.name}
        with pytest.raises(TypeError, match=field.name):
            ModelIdentity(**known)


@pytest.mark.parametrize("name", [field.name for field in fields(ModelIdentity)])
def test_every_field_changes_the_fingerprint(name: str) -> None:
    """Two models that differ in any one field share no KV, and the difference can be told."""
    other = changed(name, OTHER_VALUES[name])
    assert other.fingerprint() != IDENTITY.fingerprint()
    assert [line.split(":")[0] for line in explain_difference(IDENTITY, other)] == [name]


@pytest.mark.parametrize("name", [field.name for field in fields(KvGroup)])
def test_every_field_of_a_group_changes_the_fingerprint(name: str) -> None:
    """The same holds for what is said of each group of layers."""
    group = replace(IDENTITY.groups[0], **{name: OTHER_GROUP[name]})
    assert replace(IDENTITY, groups=(group, IDENTITY.groups[1])).fingerprint() != IDENTITY.fingerprint()


@pytest.mark.parametrize("name", [field.name for field in fields(ModelIdentity)])
def test_none_is_an_error_that_names_the_field(name: str) -> None:
    """A field that is not known is no default, it is a refusal."""
    with pytest.raises(IdentityError, match=name):
        changed(name, None)


@pytest.mark.parametrize("vague", ["", "auto", "Unknown", " main ", "latest"])
@pytest.mark.parametrize(
    "name", ["compute_dtype", "kv_dtype", "weight_quantization", "attention", "layout", "generation"]
)
def test_vague_words_are_refused(name: str, vague: str) -> None:
    """What an engine calls "auto" must be resolved before it is identity."""
    with pytest.raises(IdentityError, match=f"{name}: .*resolve it"):
        changed(name, vague)


@pytest.mark.parametrize(
    "weights",
    [
        "main",
        "meta-llama/Llama-3.1-8B",
        "revision:main",
        "sha256:abc",
        "revision:" + "0" * 64,
        "sha256:" + "G" * 64,
        "md5:" + "0" * 32,
    ],
)
def test_a_name_is_not_identity(weights: str) -> None:
    """Weights are named by content or by commit, never by a repository's or branch's name."""
    with pytest.raises(IdentityError, match="weights"):
        replace(IDENTITY, weights=weights)


@pytest.mark.parametrize(
    "rope", [{"theta": float("nan")}, {"theta": float("inf")}, {"x": object()}, {1: 2}, {"a": {"b": b"raw"}}]
)
def test_parameters_that_are_no_json_are_refused(rope: dict[str, Any]) -> None:
    """A parameter that can't be written down exactly can't be compared."""
    with pytest.raises(IdentityError, match="rope"):
        replace(IDENTITY, rope=rope)


def test_numbers_stand_for_what_they_are() -> None:
    """10000 and 10000.0 are one number; fractions differ in their last bit; a bool is no number."""

    def of(value: object) -> bytes:
        return replace(IDENTITY, rope={"x": value}).fingerprint()  # type: ignore[dict-item]

    assert of(10000) == of(10000.0)
    assert of(0.1) != of(0.1 + 2**-56)
    assert of(1) != of(True)
    assert of("1") != of(1)


def test_the_order_of_parameters_does_not_matter_and_that_of_layers_does() -> None:
    """Mappings are sorted; lists are not."""
    turned = dict(reversed(list(IDENTITY.rope.items())))
    assert replace(IDENTITY, rope=turned).fingerprint() == IDENTITY.fingerprint()
    group = replace(IDENTITY.groups[0], layers=(2, 0))
    assert replace(IDENTITY, groups=(group, IDENTITY.groups[1])).fingerprint() != IDENTITY.fingerprint()


def test_a_chunk_must_hold_whole_blocks() -> None:
    """An engine whose block does not fit into the chunk is told so, with both numbers."""
    group = replace(IDENTITY.groups[0], block_tokens=24)
    with pytest.raises(IdentityError, match=r"groups\[0\].block_tokens: 24: .*chunk_tokens \(16\)"):
        replace(IDENTITY, groups=(group,))


@pytest.mark.parametrize(("name", "value"), [("layers", ()), ("kv_heads", 0), ("head_size", 0), ("window_tokens", -1)])
def test_impossible_groups_are_refused(name: str, value: Any) -> None:
    """A group without layers, heads or size is a mistake of whoever read the model."""
    with pytest.raises(IdentityError, match=rf"groups\[0\].{name}"):
        replace(IDENTITY, groups=(replace(IDENTITY.groups[0], **{name: value}),))


@pytest.mark.parametrize("name", ["chunk_tokens", "context_parallel", "context_parallel_interleave", "layout_version"])
def test_counts_begin_at_one(name: str) -> None:
    """None of these can be zero."""
    with pytest.raises(IdentityError, match=name):
        changed(name, 0)


def test_a_model_without_layers_is_refused() -> None:
    """An identity without any group describes nothing."""
    with pytest.raises(IdentityError, match="groups"):
        replace(IDENTITY, groups=())


def test_weights_replaced_in_place_begin_a_generation_that_nobody_shares() -> None:
    """Two engines that replaced their weights in place share with nobody, for no file says what they hold."""
    assert (
        len(
            {IDENTITY.fingerprint(), IDENTITY.next_generation().fingerprint(), IDENTITY.next_generation().fingerprint()}
        )
        == 3
    )


def test_canonical_json_is_canonical() -> None:
    """It parses, says its schema, and is its own compact sorted form."""
    text = IDENTITY.canonical_json()
    document = json.loads(text)
    assert document["schema"] == 1
    assert document["byte_order"] == "little"
    assert json.dumps(document, sort_keys=True, separators=(",", ":")).encode() == text
