"""The codecs' formats in numpy and torch, written from docs/codecs.md alone: what the native ones must give, byte for byte."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

ALIGN_BYTES = 64
HEADER_BYTES = 80
TINY = np.float32(2.0**-100)


class Shape(NamedTuple):
    """As `_native` takes it."""

    element: str
    order: str
    layers: int
    blocks: int
    block_tokens: int
    heads: int
    k_size: int
    v_size: int


def to_elements(x: Any, element: str) -> Any:
    """float32 values as the bytes of elements; finite values that the element can't hold become its largest."""
    if element == "float32":
        return x.astype("<f4")
    if element == "float16":
        return np.clip(x, -65504, 65504).astype("<f2")
    bits = x.astype("<f4").view("<u4").astype("u8")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_elements(raw: Any, element: str) -> Any:
    if element == "float32":
        return raw.view("<f4").astype("f4")
    if element == "float16":
        return raw.view("<f2").astype("f4")
    return (raw.view("<u2").astype("<u4") << 16).view("<f4")


def tiles_of(values: Any, shape: Shape) -> list[tuple[Any, Any]]:
    """Of each layer: K and V as [heads, tokens, channels], from a slot's values in its own order."""
    layers = []
    k, v, n, h = shape.k_size, shape.v_size, shape.block_tokens, shape.heads
    for layer in values.reshape(shape.layers, shape.blocks, -1):
        blocks = []
        for block in layer:
            blocks.append(_parts_of(block, shape.order, h, n, k, v))
        layers.append((np.concatenate([b[0] for b in blocks], axis=1), np.concatenate([b[1] for b in blocks], axis=1)))
    return layers


def _parts_of(block: Any, order: str, h: int, n: int, k: int, v: int) -> tuple[Any, Any]:
    """K and V [heads, tokens, channels] of one block."""
    sizes = {"H": h, "N": n}
    outer = [axis for axis in order if axis != "P"]
    at = order.index("P")
    before, behind = outer[:at], outer[at:]
    inner = int(np.prod([sizes[a] for a in behind]))
    grid = block.reshape(*[sizes[a] for a in before], inner * (k + v))
    parts = []
    for begin, width in ((0, k), (inner * k, v)):
        part = grid[..., begin : begin + inner * width].reshape(*[sizes[a] for a in outer], width)
        parts.append(part if outer == ["H", "N"] else part.swapaxes(0, 1))
    return parts[0], parts[1]


def bf16_up(x: Any) -> Any:
    """Bits of the bfloat16 not below x (x >= 0)."""
    return ((x.astype("<f4").view("<u4") + np.uint32(0xFFFF)) >> 16).astype("<u2")


def bf16(bits: Any) -> Any:
    return (bits.astype("<u4") << 16).view("<f4")


def scale_of(most: Any, steps: float) -> Any:
    return np.where(most < TINY, np.uint16(0), bf16_up((most / np.float32(steps)).astype("f4"))).astype("<u2")


def inverse(scale: Any) -> Any:
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), np.float32(1) / scale).astype("f4")


def int8_tile(x: Any, axis: int) -> tuple[bytes, bytes, Any]:
    """One head; a scale for what lies along `axis`."""
    scale = scale_of(np.abs(x).max(axis=axis, keepdims=True), 127)
    codes = np.rint(x * inverse(bf16(scale))).astype("i1")
    return scale.tobytes(), codes.tobytes(), codes.astype("f4") * bf16(scale)


def fp8_tile(x: Any) -> tuple[bytes, bytes, Any]:
    most = np.abs(x).max()
    scale = np.float32(0) if most < TINY else np.float32(most / np.float32(448))
    codes = torch.from_numpy(x * inverse(scale)).to(torch.float8_e4m3fn)
    return scale.tobytes(), codes.view(torch.uint8).numpy().tobytes(), codes.to(torch.float32).numpy() * scale


def int4_group(x: Any, axis: int) -> tuple[Any, Any, Any, Any]:
    """(low bits, scale bits, codes, values) with one low and one scale along `axis`."""
    low = x.min(axis=axis, keepdims=True).astype("f4")
    bits = low.view("<u4")
    down = (np.where(low < 0, bits + np.uint32(0xFFFF), bits) >> 16).astype("<u2")
    down = np.where(np.abs(low) < TINY, np.uint16(0), down).astype("<u2")
    span = np.maximum(x.max(axis=axis, keepdims=True) - bf16(down), 0).astype("f4")
    scale = scale_of(span, 15)
    codes = np.clip(np.rint((x - bf16(down)) * inverse(bf16(scale))), 0, 15).astype("u1")
    return down, scale, codes, codes.astype("f4") * bf16(scale) + bf16(down)


def int4_k(x: Any, group: int) -> tuple[bytes, bytes, Any]:
    params, packed, values = b"", b"", []
    for at in range(0, len(x), group):
        low, scale, codes, back = int4_group(x[at : at + group], 0)
        params += low.tobytes() + scale.tobytes()
        if len(codes) % 2:
            codes = np.concatenate([codes, np.zeros_like(codes[:1])])
        packed += (codes[0::2] | codes[1::2] << 4).tobytes()
        values.append(back)
    return params, packed, np.concatenate(values)


def int4_v(x: Any, group: int) -> tuple[bytes, bytes, Any]:
    params, packed, values = b"", b"", []
    for row in x:
        lows, scales, back = b"", b"", []
        for at in range(0, len(row), group):
            low, scale, codes, value = int4_group(row[at : at + group], 0)
            lows, scales = lows + low.tobytes(), scales + scale.tobytes()
            half = len(codes) // 2
            packed += (codes[:half] | codes[half:] << 4).tobytes()
            back.append(value)
        params += lows + scales
        values.append(np.concatenate(back))
    return params, packed, np.array(values)


def tile(codec: str, x: Any, value: bool, group: int, element: str) -> tuple[bytes, bytes, Any]:
    """(parameters, codes, what comes back) of one head's K or V."""
    if codec == "fp8-e4m3":
        return fp8_tile(x)
    if codec == "k16v8" and not value:
        return b"", to_elements(x, element).tobytes(), x
    if codec == "int4":
        return int4_v(x, group) if value else int4_k(x, group)
    return int8_tile(x, 1 if value else 0)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGN_BYTES)


def quantised_body(codec: str, raw: Any, shape: Shape, group: int) -> tuple[bytes, list[tuple[Any, Any]]]:
    """The body that a payload of this slot has, and what comes back of each layer's K and V [heads, tokens, channels]."""
    body, back = b"", []
    for parts in tiles_of(from_elements(raw, shape.element), shape):
        made = [
            [tile(codec, np.ascontiguousarray(head), bool(p), group, shape.element) for head in part]
            if part.size
            else []
            for p, part in enumerate(parts)
        ]
        for which in (0, 1):
            for part in made:
                body += padded(b"".join(head[which] for head in part))
        back.append((np.array([head[2] for head in made[0]]), np.array([head[2] for head in made[1]])))
    return body, back
