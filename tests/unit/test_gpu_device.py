"""Which device copies an engine's KV, and what is said on machines without one."""

import os
import subprocess
import sys
from array import array
from pathlib import Path
from typing import Any

import gpu_fake
import numpy as np
import pytest
from kvcommons_connector import devices
from kvcommons_core import _native

from bench import gpu as bench_gpu


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> str:
    """A driver that is none, where the connector looks for one."""
    library = gpu_fake.fake_driver()
    monkeypatch.setenv("FAKE_CUDA_ALL", "1")
    monkeypatch.setenv(devices.DRIVER_ENVIRONMENT, library)
    return library


def test_the_module_needs_no_library_of_a_gpu() -> None:
    """It names none, so that it imports where there is none."""
    assert _native.__file__ is not None
    needed = subprocess.run(["readelf", "-d", _native.__file__], capture_output=True, text=True, check=True).stdout
    assert "NEEDED" in needed
    assert not any(name in needed for name in ("cuda", "torch", "amdhip", "nvidia"))


def test_without_a_driver_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """KV on a GPU without its driver is an error that names the driver; KV of the host is copied as ever."""
    monkeypatch.setenv(devices.DRIVER_ENVIRONMENT, str(tmp_path / "libcuda.so.1"))
    assert _native.gpu_status("cuda:0", driver=devices.driver())[0] is False
    with pytest.raises(devices.DeviceMissing, match=r"libcuda\.so\.1 is not on this machine"):
        devices.copy_device({"cuda"}, 0, "auto")
    assert devices.copy_device({"cpu"}, 0, "auto") == "host"


@pytest.mark.parametrize(
    ("kinds", "wanted", "device"),
    [
        ({"cpu"}, "auto", "host"),
        ({"cpu"}, "host", "host"),
        ({"cpu"}, "stream", "stream"),
        ({"cpu"}, "cuda", "cuda:0"),
        ({"cuda"}, "auto", "cuda:0"),
        ({"cuda"}, "cuda", "cuda:0"),
    ],
)
def test_kv_is_copied_by_the_device_that_it_lies_on(driver: str, kinds: set[str], wanted: str, device: str) -> None:
    """`auto` follows the tensors."""
    assert devices.copy_device(kinds, 0, wanted) == device


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [({"cuda"}, "host"), ({"cuda"}, "stream"), ({"xpu"}, "auto"), ({"cpu", "cuda"}, "auto"), (set(), "auto")],
)
def test_kv_that_nothing_copies_is_refused(driver: str, kinds: set[str], wanted: str) -> None:
    """A setting that contradicts the tensors, or a device without an implementation, is told and not guessed at."""
    with pytest.raises(devices.DeviceMissing, match="copies are for one of cpu and cuda"):
        devices.copy_device(kinds, 0, wanted)


def test_a_number_that_no_gpu_has_is_refused(driver: str) -> None:
    """The process sees one GPU there."""
    with pytest.raises(devices.DeviceMissing, match="GPU 3 is not there: this process sees 1"):
        devices.copy_device({"cuda"}, 3, "auto")
    with pytest.raises(ValueError, match='pass "cuda:" and the GPU\'s number'):
        _native.gpu_status("cuda:x")


@pytest.mark.parametrize("method", ["", "loop", "batch", "warps", "ring", "staged"])
def test_a_copy_by_each_method_moves_the_bytes(driver: str, method: str) -> None:
    """There and back, between scattered rows and a pinned buffer."""
    paged = np.random.default_rng(3).integers(0, 256, (64, 4096), dtype=np.uint8)
    host: np.ndarray[Any, np.dtype[np.uint8]] = np.zeros((32, 4096), dtype=np.uint8)
    copies = _native.GpuCopies("cuda:0", kernels=gpu_fake.IMAGE, driver=driver)
    assert copies.pin(host.ctypes.data, host.nbytes)
    places = np.random.default_rng(4).permutation(64)[:32]
    runs = array("Q")
    for index, place in enumerate(places):
        runs.extend((paged[place].ctypes.data, host[index].ctypes.data, 4096))
    if (
        copies.copy("store", method, runs) == "refused"
    ):  # bulk copies want 16-byte alignment, which numpy does not promise
        assert method == "ring"
        copies.unpin(host.ctypes.data)
        return
    assert np.array_equal(host, paged[places])
    assert np.array_equal(paged[places], host)
    copies.unpin(host.ctypes.data)


def test_the_benchmark_says_so_where_there_is_no_gpu(tmp_path: Path) -> None:
    """It ends with a code of its own, and claims nothing."""
    environment = {**os.environ, devices.DRIVER_ENVIRONMENT: str(tmp_path / "libcuda.so.1")}
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu"], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert done.returncode == bench_gpu.EXIT_WITHOUT_GPU
    assert "nothing measured" in done.stderr
    assert done.stdout == ""


def test_a_ratio_is_the_worst_of_its_lengths_by_the_best_of_its_methods() -> None:
    """What the benchmark claims of short runs holds for each of them."""
    rows: list[dict[str, object]] = [
        {"kib": kib, "way": "load", "method": method, "ratio": ratio}
        for kib, method, ratio in [
            (4, "warps", 0.7),
            (4, "ring", 0.9),
            (8, "warps", 0.8),
            (8, "ring", 0.6),
            (64, "batch", 0.95),
        ]
    ]
    assert bench_gpu.ratios_of(rows) == {"dma_64k": 0.95, "small_h2d": 0.8}


def rotated(
    rows: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], *, neox: bool, first: int, dims: int
) -> np.ndarray[Any, Any]:
    """Rotary embedding as the engines compute it, in float64: of a row at each position."""
    frequencies = 10_000.0 ** (-np.arange(dims // 2) * 2.0 / dims)
    angles = positions[:, None] * frequencies[None, :]
    part: np.ndarray[Any, np.dtype[np.float64]] = rows[:, first : first + dims].astype(np.float64)
    x, y = (part[:, : dims // 2], part[:, dims // 2 :]) if neox else (part[:, 0::2], part[:, 1::2])
    turned = np.empty_like(part)
    one, two = x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)
    if neox:
        turned[:, : dims // 2], turned[:, dims // 2 :] = one, two
    else:
        turned[:, 0::2], turned[:, 1::2] = one, two
    out: np.ndarray[Any, np.dtype[np.float64]] = rows.astype(np.float64)
    out[:, first : first + dims] = turned
    return out


@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize(("width", "first", "dims"), [(64, 0, 64), (80, 0, 32), (576, 512, 64)])
def test_k_that_is_turned_is_k_of_the_other_position(
    driver: str, neox: bool, width: int, first: int, dims: int
) -> None:
    """K of text that moved by a shift is what the engine would have computed there: whole rows, partial rotary, MLA's part."""
    shift, count = 1_234, 48
    raw = np.random.default_rng(5).standard_normal((count, width))
    positions = np.arange(100, 100 + count)
    had: np.ndarray[Any, np.dtype[np.float32]] = rotated(raw, positions, neox=neox, first=first, dims=dims).astype(
        np.float32
    )
    wanted = rotated(raw, positions + shift, neox=neox, first=first, dims=dims)
    angles = shift * 10_000.0 ** (-np.arange(dims // 2) * 2.0 / dims)
    cosines, sines = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    blocks = np.array([2, 0, 1], dtype=np.uint32)  # of 16 rows each
    paged = np.empty_like(had)
    for index, block in enumerate(blocks):
        paged[block * 16 : block * 16 + 16] = had[index * 16 : index * 16 + 16]
    state = _native.GpuCopies("cuda:0", kernels=gpu_fake.IMAGE, driver=driver).turn(
        element="float32",
        grid=(paged.ctypes.data, 16 * width * 4, 0, width * 4, 1, 16),
        blocks=blocks.ctypes.data,
        rows=count,
        neox=neox,
        first=first,
        dims=dims,
        cosines=cosines.ctypes.data,
        sines=sines.ctypes.data,
    )
    assert state == "done"
    for index, block in enumerate(blocks):
        got = paged[block * 16 : block * 16 + 16]
        assert np.allclose(got, wanted[index * 16 : index * 16 + 16], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("codec", "params_bytes", "codes_bytes", "steps"),
    [("e4m3", 4, 512, 16), ("int8_rows", 16, 512, 254), ("int8_channels", 128, 512, 254), ("int4_rows", 64, 256, 14)],
)
def test_what_is_quantised_comes_back_within_half_a_step(
    driver: str, codec: str, params_bytes: int, codes_bytes: int, steps: int
) -> None:
    """Each value returns within half a step of the range that its scale covers, and a step of the scale's own rounding."""
    rows = np.random.default_rng(6).uniform(-3, 3, (8, 64)).astype(np.float32)
    back = np.zeros_like(rows)
    params: np.ndarray[Any, np.dtype[np.uint8]] = np.zeros(params_bytes, dtype=np.uint8)
    codes: np.ndarray[Any, np.dtype[np.uint8]] = np.zeros(codes_bytes, dtype=np.uint8)
    most: np.ndarray[Any, np.dtype[np.uint32]] = np.zeros(1, dtype=np.uint32)
    blocks: np.ndarray[Any, np.dtype[np.uint32]] = np.zeros(1, dtype=np.uint32)
    copies = _native.GpuCopies("cuda:0", kernels=gpu_fake.IMAGE, driver=driver)

    def run(memory: np.ndarray[Any, Any], *, there: bool) -> str:
        return copies.quantise(
            codec=codec,
            element="float32",
            grid=(memory.ctypes.data, 0, 0, 256, 1, 8),
            blocks=blocks.ctypes.data,
            tiles=1,
            count=8,
            width=64,
            group=64,
            params=params.ctypes.data,
            codes=codes.ctypes.data,
            most=most.ctypes.data,
            back=not there,
        )

    assert run(rows, there=True) == "done"
    assert most.view(np.float32)[0] == np.abs(rows).max()
    assert run(back, there=False) == "done"
    span = rows.max() - rows.min()
    assert 0 < np.abs(back - rows).max() <= span / steps * 0.55
