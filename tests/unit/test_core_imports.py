"""What a stock engine image can import of the core: the parts the connector needs come with the standard library alone."""

import subprocess
import sys

import pytest

LEAN = ("errors", "limits", "keys", "fingerprint", "weights", "redis_server")
RICH = ("pydantic", "redis", "hiredis", "orjson", "xxhash", "numpy", "torch", "aiohttp", "prometheus_client")
BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {rich!r} or name in {also!r}:
            raise ImportError(name + " is not in this image")
sys.meta_path.insert(0, Block())
"""


def run(code: str, *, also: tuple[str, ...] = ()) -> str:
    """The output of a fresh interpreter that lacks every third package, and whatever else is named."""
    program = BLOCK.format(rich=set(RICH), also=set(also)) + code
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("module", LEAN)
def test_lean_modules_need_no_third_package(module: str) -> None:
    """The connector imports these inside an image whose packages are not ours."""
    assert run(f"import kvcommons_core.{module}; print('ok')") == "ok"


def test_keys_are_the_same_without_the_native_part() -> None:
    """A pure wheel (operator, router) makes the same keys, only slower."""
    code = (
        "from kvcommons_core import keys as k; print(k.HAVE_NATIVE, k.token_keys(bytes(32), list(range(64)), 16).hex())"
    )
    native, pure = run(code), run(code, also=("kvcommons_core._native",))
    assert native.split()[0] == "True"
    assert pure.split()[0] == "False"
    assert native.split()[1] == pure.split()[1]
