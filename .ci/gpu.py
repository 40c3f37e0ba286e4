"""Compile the GPU's kernels to the image that the driver loads; the compiler is brought, no GPU is needed.

    gpu.py install     cache_node/kvcommons_core/_cuda.fatbin for every GPU that is served (`make gpu`)
    gpu.py check       for sm_90 and by HIP, and nothing installed; by HIP only where hipcc is, unless KVCOMMONS_NO_SKIP

nvcc is that of CUDA_HOME where it is set, else the pinned wheels of requirements/gpu-build.txt. Images are kept in the
cache by what they are made of, so a second call compiles nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent))
import native
import uv

ROOT: Final = Path(__file__).resolve().parent.parent
LOCK: Final = ROOT / ".ci" / "requirements" / "gpu-build.txt"
PACKAGE: Final = ROOT / "cache_node" / "kvcommons_core"
ARCHS: Final = "75;80;90;100"
KERNELS: Final = ("kvc_copy_units", "kvc_copy_ring", "kvc_quantise", "kvc_dequantise", "kvc_rope")


def cache() -> Path:
    return Path(os.environ.get("KVCOMMONS_CACHE", ROOT / ".cache")) / "gpu"


def sources() -> list[Path]:
    kernels = ROOT / "csrc" / "kernels"
    parts = [*kernels.glob("*.h"), *(kernels / "gpu").glob("*"), kernels / "cpu" / "quant.h"]
    return sorted([*parts, ROOT / "csrc" / "gpu.cmake"])


def digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def cuda_home() -> Path:
    """The toolkit's folder; installs the pinned wheels where no CUDA_HOME is given."""
    if given := os.environ.get("CUDA_HOME"):
        return Path(given)
    place = cache() / f"toolkit-{digest(LOCK.read_bytes())}"
    if not place.exists():
        fresh = place.with_name(f".{place.name}.{os.getpid()}")
        command = [uv.bring(), "pip", "install", "--quiet", "--target", str(fresh), "--require-hashes", "-r", str(LOCK)]
        subprocess.run(command, check=True)
        for tool in (fresh / "nvidia" / "cu13").glob("**/bin/*"):
            tool.chmod(0o755)
        fresh.rename(place)
    return place / "nvidia" / "cu13"


def build(vendor: str, archs: str) -> Path:
    """The image of one vendor, from the cache or compiled."""
    name = {"cuda": "_cuda.fatbin", "hip": "_hip.hsaco"}[vendor]
    made_of = [path.read_bytes() for path in sources()]
    place = cache() / f"{vendor}-{digest(archs.encode(), LOCK.read_bytes(), *made_of)}" / name
    if place.exists():
        return place
    folder = ROOT / "build" / f"gpu-{vendor}-{digest(archs.encode())}"
    if vendor == "cuda":
        os.environ["CUDA_HOME"] = str(cuda_home())
    native.configure(
        folder,
        "-DKVCOMMONS_GPU_ALONE=ON",
        f"-DKVCOMMONS_GPU={vendor}",
        f"-DPython_EXECUTABLE={sys.executable}",
        *([f"-DKVCOMMONS_CUDA_ARCHS={archs}"] if vendor == "cuda" else []),
    )
    native.run_quietly("cmake", "--build", folder, "--", "--quiet")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(folder / name, fresh := place.with_name(f".{name}.{os.getpid()}"))
    fresh.rename(place)
    return place


def missing_kernels(image: Path) -> list[str]:
    """Names that the driver would not find."""
    data = image.read_bytes()
    return [name for name in KERNELS if name.encode() not in data]


def check() -> None:
    vendors = {"cuda": "90"}
    if shutil.which("hipcc") or os.environ.get("KVCOMMONS_NO_SKIP"):
        vendors["hip"] = ""
    else:
        print("by HIP: not compiled here; Debian's package hipcc brings the compiler")
    for vendor, archs in vendors.items():
        image = build(vendor, archs)
        if missing := missing_kernels(image):
            sys.exit(f"{image} lacks {', '.join(missing)}")
        print(f"{image.name}: {image.stat().st_size >> 10} KiB")


def install(archs: str) -> None:
    built = build("cuda", archs)
    shutil.copy2(built, fresh := PACKAGE / f".{built.name}.{os.getpid()}")
    fresh.rename(PACKAGE / built.name)
    print(
        f"{PACKAGE / built.name}: {built.stat().st_size >> 10} KiB for compute capabilities {archs.replace(';', ', ')}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["install", "check"])
    parser.add_argument("--archs", default=ARCHS, help=f"compute capabilities, default {ARCHS!r}; for install")
    chosen = parser.parse_args()
    with native.locked("gpu"):
        if chosen.what == "check":
            check()
        else:
            install(chosen.archs)


if __name__ == "__main__":
    main()
