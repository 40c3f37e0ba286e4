"""How one layer's paged KV lies in memory, read from the tensor that the engine registered and never assumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol


class PagedTensor(Protocol):
    """What is asked of a tensor: the logical shape is [blocks, heads, tokens of a block, content]."""

    @property
    def shape(self) -> Sequence[int]: ...
    def stride(self) -> Sequence[int]: ...
    def element_size(self) -> int: ...
    def data_ptr(self) -> int: ...


class LayerLayout(NamedTuple):
    """The tuple that `_native.Transfer` takes for a layer. All but the counts are bytes."""

    base: int
    blocks: int
    block_stride_bytes: int
    planes: int
    plane_stride_bytes: int
    runs: int
    run_stride_bytes: int
    run_bytes: int

    @property
    def block_bytes(self) -> int:
        """Payload of one block."""
        return self.planes * self.runs * self.run_bytes


SlotForm = tuple[str, str, int, int, int]
"""(element, order, block_tokens, k_size, v_size): what a codec must know of a slot, as `_native.Client` takes it."""

ELEMENTS: Final = ("float32", "float16", "bfloat16")
ORDERS: Final = {"HNC": "HPN", "SHNC": "HPN"}
"""Of vLLM's attention on the CPU, which keeps a head's K of all tokens of a block before its V."""


class LayoutError(ValueError):
    """The tensor's memory can't be described as equal runs; the cache can't be used with it."""


def layer_layout(tensor: PagedTensor, blocks: int) -> tuple[LayerLayout, str]:
    """The layout of one layer, and its class: what must agree for bytes to be interchangeable between engines.

    The class leaves out the number of heads, which tensor parallelism divides.
    """
    shape, strides, item = tuple(tensor.shape), tuple(tensor.stride()), tensor.element_size()
    if len(shape) != 4 or blocks < 1 or shape[0] % blocks:
        raise LayoutError(
            f"KV tensor of shape {shape} for {blocks} blocks: expected [blocks x n, heads, tokens, content]"
        )
    split = shape[0] // blocks  # the attention kernel's blocks may be a fraction of the manager's
    dims = [("S", split, strides[0])] if split > 1 else []
    dims += [
        (name, size, stride)
        for name, size, stride in zip("HNC", shape[1:], strides[1:], strict=True)
        if size > 1 or name == "H"
    ]
    order = sorted((dim for dim in dims if dim[1] > 1), key=lambda dim: -dim[2])
    if not order:
        raise LayoutError(f"KV tensor of shape {shape} holds one element a block")
    if any(stride <= 0 for _, _, stride in order):
        raise LayoutError(f"KV tensor with strides {strides}: blocks overlap or run backwards")
    outer = _merged([(size, stride) for _, size, stride in order])
    run = 1
    if outer[-1][1] == 1:
        run = outer.pop()[0]
    if len(outer) > 2:
        raise LayoutError(f"KV tensor of shape {shape}, strides {strides}: more than two strides within a block")
    (planes, plane_stride), (runs, run_stride) = [(1, 0), (1, 0), *outer][-2:]
    layout = LayerLayout(
        tensor.data_ptr(),
        blocks,
        strides[0] * split * item,
        planes,
        plane_stride * item,
        runs,
        run_stride * item,
        run * item,
    )
    if blocks > 1 and layout.block_stride_bytes < _extent(layout) and planes * runs == 1:
        raise LayoutError(f"KV tensor of shape {shape}, strides {strides}: blocks overlap")
    names = "".join(name for name, _, _ in order)
    names = (
        names if "H" in names else names.replace("N", "HN")
    )  # one head lies anywhere: name it as where there are more
    return layout, f"{names}:split{split}:tokens{shape[2]}:content{shape[3] * item}"


def slot_form(
    kind: str, element: str, item_bytes: int, head_size: int, *, latent: bool, backends: str
) -> SlotForm | None:
    """How codecs can read a slot of this class (`layer_layout`); None where that is not known: then none with loss is used."""
    parts = kind.split(":")
    tokens, content = _number(parts, "tokens"), _number(parts, "content")
    channels, odd = divmod(content, item_bytes)
    if element not in ELEMENTS or odd:
        return None
    if latent:
        return (element, "PHN", tokens, channels, 0)
    if parts[0] not in ORDERS or "CPU_ATTN" not in backends or channels != 2 * head_size:
        return None
    return (element, ORDERS[parts[0]], tokens, head_size, head_size)


def _number(parts: Sequence[str], name: str) -> int:
    return next(int(part.removeprefix(name)) for part in parts if part.startswith(name))


def _merged(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Neighbouring dimensions that follow each other without a gap are one."""
    result = [dims[0]]
    for size, stride in dims[1:]:
        outer_size, outer_stride = result[-1]
        if outer_stride == size * stride:
            result[-1] = (outer_size * size, stride)
        else:
            result.append((size, stride))
    return result


def _extent(layout: LayerLayout) -> int:
    """Bytes from a block's first byte to behind its last."""
    return (
        (layout.planes - 1) * layout.plane_stride_bytes + (layout.runs - 1) * layout.run_stride_bytes + layout.run_bytes
    )


def kv_shards(
    *, layers: Sequence[tuple[int, int]], heads: int, tp_size: int, tp_replicas: int, layer_chunk_bytes: int
) -> tuple[tuple[tuple[int, int, int, int], int], ...]:
    """Every shard of a chunk: one for each pipeline stage's layers [begin, end) and each distinct group of KV heads.

    :param heads: KV heads of the whole model (1 where all ranks hold the same, as with MLA).
    :param tp_replicas: consecutive ranks that hold the same heads.
    :param layer_chunk_bytes: one rank's bytes of one layer of a chunk.
    """
    groups = max(1, tp_size // max(1, tp_replicas))
    if heads % groups:
        raise LayoutError(f"{heads} KV heads can't be divided among {groups} tensor-parallel groups")
    width = heads // groups
    return tuple(
        ((begin, end, group * width, (group + 1) * width), (end - begin) * layer_chunk_bytes)
        for begin, end in layers
        for group in range(groups)
    )
