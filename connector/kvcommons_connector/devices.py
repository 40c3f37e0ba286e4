"""Which device's memory KV lies in, and what copies it: the host itself, or a GPU by its driver, where both are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from kvcommons_core import _native

DRIVER_ENVIRONMENT: Final = "KVCOMMONS_LIBCUDA"
"""Path of libcuda.so.1 where it is not where the loader looks."""
LEGACY_STREAM: Final = 1
"""The driver's name for the default stream, whose handle an engine gives as 0."""
KERNELS: Final = Path(_native.__file__).with_name("_cuda.fatbin") if _native.__file__ else Path("_cuda.fatbin")


class DeviceMissing(Exception):
    """KV lies where nothing here can copy it; the message says what is missing, and what to do."""


def kernels() -> bytes:
    """The image that the GPU's driver loads; empty where none was built: then the driver copies alone."""
    return KERNELS.read_bytes() if KERNELS.exists() else b""


def driver() -> str:
    """Path of the GPU's driver, empty for the usual one."""
    return os.environ.get(DRIVER_ENVIRONMENT, "")


def copy_device(kinds: set[str], ordinal: int, wanted: str) -> str:
    """What `_native.Transfer` takes as its device.

    :param kinds: of the devices that the KV tensors are on, such as "cpu" or "cuda".
    :param ordinal: the GPU's number in this process.
    :param wanted: the setting: "auto", "host", "stream" or "cuda".
    :raises DeviceMissing: where KV lies on several kinds of device, or on one that can't be used.
    """
    kind = "cuda" if wanted == "cuda" else next(iter(kinds)) if len(kinds) == 1 else ""
    if kind == "cpu":
        return "stream" if wanted == "stream" else "host"
    if kind != "cuda" or wanted not in ("auto", "cuda"):
        lies = ", ".join(sorted(kinds)) or "no device"
        raise DeviceMissing(f"KV lies on {lies}; with device {wanted!r} copies are for one of cpu and cuda")
    device = f"cuda:{ordinal}"
    usable, why = _native.gpu_status(device, kernels=kernels(), driver=driver())
    if not usable:
        raise DeviceMissing(f"KV lies on {device}, which can't be used: {why}")
    return device


class GpuTransfer(_native.Transfer):
    """A transfer whose copies wait for what the engine's stream has been given by the time they are submitted."""

    engine_stream: Callable[[], int] = staticmethod(lambda: 0)
    """Handle of the stream that the forward runs on."""

    def load(
        self, job: int, lease: int, first_block: int, block_ids: object, stream: int = 0, whole: bool = False
    ) -> str:
        waits_for = stream or self.engine_stream() or LEGACY_STREAM
        return super().load(job, lease, first_block, block_ids, waits_for, whole)

    def store(
        self,
        job: int,
        tenant: int,
        parent: bytes,
        keys: bytes,
        block_ids: object,
        text_keys: Sequence[Sequence[int]] = (),
        hints: int = 0,
        stream: int = 0,
    ) -> str:
        waits_for = stream or self.engine_stream() or LEGACY_STREAM
        return super().store(job, tenant, parent, keys, block_ids, list(text_keys), hints, waits_for)
