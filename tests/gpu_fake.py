"""A libcuda for tests on machines without a GPU: csrc/tests/fake_cuda.cpp, compiled once for what it is made of."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE = b"an image that the stand-in takes for the kernels"


def fake_driver() -> str:
    """Path of the library. Whoever loads it sets FAKE_CUDA_ALL=1: then all memory that nobody registered is the GPU's."""
    source = ROOT / "csrc" / "tests" / "fake_cuda.cpp"
    kernels = ROOT / "csrc" / "kernels"
    parts = [source, *sorted(kernels.glob("*.h")), *sorted((kernels / "gpu").glob("*.h"))]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()[:16]
    library = ROOT / "build" / f"libfake_cuda-{digest}.so"
    if not library.exists():
        library.parent.mkdir(exist_ok=True)
        fresh = library.with_name(f".{library.name}.{os.getpid()}")
        flags = ["-std=c++20", "-O1", "-fPIC", "-shared", "-pthread", "-ffp-contract=off", f"-I{ROOT / 'csrc'}"]
        subprocess.run(["c++", *flags, str(source), "-o", str(fresh)], check=True, timeout=100)
        fresh.rename(library)
    return str(library)
