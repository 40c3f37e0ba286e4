"""The codecs give what their formats say, checked against numpy and torch; their identities are those of the published vectors."""

import hashlib
import json
from pathlib import Path
from typing import Any

import codec_reference as reference
import numpy as np
import pytest
from codec_reference import Shape
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_core import _native, codecs
from kvcommons_core.errors import ConfigurationError
from vectors import make_codecs

LOSSY = ("fp8-e4m3", "int8", "int4", "k16v8")
FILE = Path(__file__).resolve().parents[1] / "vectors" / "codecs.json"

shapes = st.builds(
    Shape,
    element=st.sampled_from(["float32", "float16", "bfloat16"]),
    order=st.sampled_from(["PHN", "PNH", "HPN", "HNP", "NPH", "NHP"]),
    layers=st.integers(1, 2),
    blocks=st.integers(1, 3),
    block_tokens=st.integers(1, 21),
    heads=st.integers(1, 3),
    k_size=st.integers(1, 40),
    v_size=st.integers(1, 20).map(lambda pairs: 2 * pairs),
)


def slot(shape: Shape, seed: int, kind: str) -> Any:
    """A slot's bytes: channels of very different sizes, denormals, a constant, or values up to what the element holds."""
    random = np.random.default_rng(seed)
    count = shape.layers * shape.blocks * shape.block_tokens * shape.heads * (shape.k_size + shape.v_size)
    values = random.normal(size=count).astype("f4") * np.exp2(random.integers(-6, 7, count)).astype("f4")
    if kind == "small":
        values *= np.float32(2.0**-20)
    elif kind == "constant":
        values[:] = np.float32(-3.14159)
    elif kind == "large":
        values *= np.float32(300)
    return reference.to_elements(values, shape.element)


def encode(codec: str, shape: Shape, raw: Any, group: int, isa: str = "auto") -> bytes:
    out = bytearray(b"\xa5" * _native.codec_bytes_max(codec, shape, group))  # not clean: every byte must be written
    return bytes(out[: _native.codec_encode(codec, shape, raw, out, group, isa)])


def decode(payload: bytes, shape: Shape, nbytes: int, isa: str = "auto") -> Any:
    raw: Any = np.full(nbytes, 0x5A, "u1")
    _native.codec_decode(payload, shape, raw, isa)
    return raw


@settings(max_examples=150, deadline=None)
@given(
    codec=st.sampled_from(LOSSY),
    shape=shapes,
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(["usual", "small", "constant", "large"]),
    group=st.sampled_from([8, 32]),
)
def test_payloads_are_those_of_the_reference_byte_for_byte(
    codec: str, shape: Shape, seed: int, kind: str, group: int
) -> None:
    """Each implementation writes the body that numpy and torch write from the documented format, and reads it as they do."""
    group = group if codec == "int4" else 0
    raw = slot(shape, seed, kind)
    body, back = reference.quantised_body(codec, raw, shape, group)
    for isa in _native.codec_isas():
        payload = encode(codec, shape, raw, group, isa)
        assert payload[reference.HEADER_BYTES :] == body
        got = reference.tiles_of(decode(payload, shape, raw.nbytes, isa).view(raw.dtype), shape)
        for (k, v), (want_k, want_v) in zip(got, back, strict=True):
            assert np.array_equal(k, reference.to_elements(want_k, shape.element))
            assert np.array_equal(v, reference.to_elements(want_v, shape.element))


@settings(max_examples=50, deadline=None)
@given(shape=shapes, data=st.data())
def test_lossless_keeps_any_bits(shape: Shape, data: st.DataObject) -> None:
    """NaN, Inf, denormals and noise come back bit for bit, and the bound that was known before holds."""
    nbytes = slot(shape, 0, "usual").nbytes
    seed = data.draw(st.integers(0, 2**32))
    raw = np.frombuffer(np.random.default_rng(seed).bytes(nbytes), "u1")
    raw = raw if data.draw(st.booleans()) else np.zeros_like(raw)
    payload = encode("lossless", shape, raw, 0)
    assert len(payload) <= _native.codec_bytes_max("lossless", shape)
    assert np.array_equal(decode(payload, shape, nbytes), raw)


def test_lossless_makes_exponents_small() -> None:
    """Numbers of a usual spread take a quarter less in bfloat16: their exponents are compressed, their mantissas are not."""
    shape = Shape("bfloat16", "HPN", 2, 2, 128, 2, 64, 64)
    values = np.random.default_rng(1).normal(size=2 * 2 * 128 * 2 * 128).astype("f4")
    raw = reference.to_elements(values, "bfloat16")
    payload = encode("lossless", shape, raw, 0)
    assert len(payload) < 0.75 * raw.nbytes
    assert np.array_equal(decode(payload, shape, raw.nbytes).view("<u2"), raw)


def test_a_payload_says_what_it_is() -> None:
    """Codec, parameters, shape and sizes stand in its header."""
    shape = Shape("float16", "NHP", 2, 3, 16, 2, 64, 32)
    raw = slot(shape, 1, "usual")
    payload = encode("int4", shape, raw, 64)
    assert _native.codec_header(payload) == {
        "codec": "int4",
        "codec_id": 3,
        "group": 64,
        "shape": tuple(shape),
        "raw_bytes": raw.nbytes,
        "body_bytes": len(payload) - reference.HEADER_BYTES,
        "raw_checksum": 0,
    }
    exact = encode("lossless", shape, raw, 0)
    assert _native.codec_header(exact)["raw_checksum"] == _native.xxh3_64(raw)


@pytest.mark.parametrize("codec", LOSSY)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**100])
def test_what_no_model_works_with_is_not_quantised(codec: str, bad: float) -> None:
    """A chunk with NaN, Inf or a magnitude from 2**100 on in what would be quantised is refused, so that it stays exact."""
    shape = Shape("float32", "HPN", 1, 1, 8, 1, 16, 16)
    values: Any = np.ones(8 * 32, "f4")
    values[-3] = bad
    with pytest.raises(ValueError, match="keep this chunk as it is"):
        encode(codec, shape, values, 32 if codec == "int4" else 0)


@pytest.mark.parametrize(
    ("codec", "change", "says"),
    [
        ("int8", {"layers": 0}, "layers is 0: give 1..4096"),
        ("int8", {"element": "int8"}, 'element is "int8": choose of float32, float16, bfloat16'),
        ("int8", {"order": "KV"}, 'order is "KV"'),
        ("int8", {"heads": -1}, "heads is -1"),
        ("k16v8", {"v_size": 0}, "choose int8 or lossless"),
        ("int4", {}, "group is 0: give a power of two in 8..256"),
        ("zip", {}, "choose of fp8-e4m3, int8, int4, k16v8, lossless"),
    ],
)
def test_errors_name_field_value_and_remedy(codec: str, change: dict[str, Any], says: str) -> None:
    """What can't be encoded is refused before a byte is read."""
    shape = Shape("bfloat16", "HPN", 1, 1, 8, 1, 16, 16)._replace(**change)
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is compared below
        _native.codec_bytes_max(codec, shape)
    assert says in str(error.value)


def test_buffers_that_do_not_fit_are_refused() -> None:
    """Too small an output, a read-only one, a slot of another size and a cut payload are errors, not damage."""
    shape = Shape("bfloat16", "HPN", 1, 1, 8, 1, 16, 16)
    raw = slot(shape, 1, "usual")
    payload = encode("int8", shape, raw, 0)
    with pytest.raises(ValueError, match=r"out has 10 bytes: give \d+"):
        _native.codec_encode("int8", shape, raw, bytearray(10))
    with pytest.raises(ValueError, match="gives no writable"):
        _native.codec_encode("int8", shape, raw, bytes(10_000))
    with pytest.raises(ValueError, match="raw has 4 bytes: the shape has 512"):
        _native.codec_encode("int8", shape, bytes(4), bytearray(10_000))
    with pytest.raises(ValueError, match="its header says"):
        decode(payload[:-1], shape, raw.nbytes)
    with pytest.raises(ValueError, match="magic"):
        decode(bytes(100), shape, raw.nbytes)
    with pytest.raises(ValueError, match="another shape"):
        decode(payload, shape._replace(order="NHP"), raw.nbytes)


def test_the_registry_is_one() -> None:
    """The names, ids and kinds that Python has without the native module are those of the native module."""
    assert {c.name: (c.id, c.lossy) for c in codecs.CODECS} == {
        name: (number, lossy) for name, (number, lossy, _) in _native.codecs().items()
    }


def test_codecs_are_named_by_settings() -> None:
    """A codec is its name, with its parameters behind a colon; what it says of itself can be read again."""
    assert codecs.parse_codec("int4").group == codecs.GROUP_DEFAULT
    for text in ("int8", "int4:group=64", "lossless"):
        assert str(codecs.parse_codec(text)) == text
    for bad in ("", "int5", "int8:group=32", "int4:group=24", "int4:group=512", "int4:grp=32", "int4:group=", "int4:"):
        with pytest.raises(ConfigurationError, match=r"codec"):
            codecs.parse_codec(bad)


def test_lossy_identities_are_the_published_ones() -> None:
    """An identity is SHA-256 of a word, the fingerprint, id, version and parameters, in Python and natively; lossless has none."""
    assert FILE.read_text() == make_codecs.rendered()
    vectors = json.loads(FILE.read_text())
    engine = bytes.fromhex(vectors["fingerprint"])
    seen = set()
    for case in vectors["lossy_fingerprints"]:
        spec = codecs.parse_codec(case["codec"])
        made = bytes.fromhex(case["fingerprint"])
        assert codecs.lossy_fingerprint(engine, spec) == made
        assert _native.codec_fingerprint(engine, spec.codec.name, spec.group) == made
        parameters = case["id"].to_bytes(2, "little") + b"\x01\x00" + case["group"].to_bytes(4, "little")
        if case["codec"] == "lossless":
            assert made == engine
        else:
            assert made == hashlib.sha256(b"kvcommons.lossy.v1" + engine + parameters).digest()
        seen.add(made)
    assert len(seen) == len(vectors["lossy_fingerprints"])
    with pytest.raises(ConfigurationError, match="32 bytes"):
        codecs.lossy_fingerprint(b"short", codecs.parse_codec("int8"))
