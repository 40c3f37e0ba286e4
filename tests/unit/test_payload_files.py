"""What the payload is made of, and what it asks of the image that it comes into."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import payload_support
import pytest

ROOT = Path(__file__).resolve().parents[2]
# The first of these builds two native modules where the sources have changed.
pytestmark = pytest.mark.timeout(payload_support.BUILD_SECONDS_MAX)


def script(name: str) -> ModuleType:
    """A module of .ci, which is no package."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / ".ci"))


build = script("payload")
elf = script("elf")


def imports(path: Path) -> set[str]:
    """Every module that a file imports at any time, but for type checkers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unchecked = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in unchecked:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_the_payload_has_every_module_that_the_connector_imports() -> None:
    """The list of the core's modules is what the connector's imports lead to: none is missing, none is there for nothing."""
    waiting = sorted((ROOT / "connector" / "kvcommons_connector").glob("*.py"))
    waiting = [path for path in waiting if path.name != "private_node.py"]  # needs the node's packages, and says so
    seen: set[str] = {"__init__"}
    while waiting:
        for name in imports(waiting.pop()):
            package, _, module = name.partition(".")
            path = ROOT / "cache_node" / "kvcommons_core" / f"{module}.py"
            if package == "kvcommons_core" and module not in seen and path.is_file():
                seen.add(module)
                waiting.append(path)
    assert seen == set(build.CORE_MODULES)


def test_nothing_in_the_payload_needs_a_third_party_package() -> None:
    """Only the standard library, the engine, and packages that the engine itself brings are imported."""
    engine = {"vllm", "torch", "prometheus_client", "huggingface_hub"}
    own = {"kvcommons_core", "kvcommons_connector", "kvcommons_node"}
    for source, name in build.sources():
        roots = {found.partition(".")[0] for found in imports(source)}
        assert roots <= {*sys.stdlib_module_names, *engine, *own}, name


def test_a_native_module_asks_for_no_newer_glibc_and_no_c_plus_plus_library() -> None:
    """Both native modules load wherever glibc is 2.34 or newer, whatever libstdc++ is there."""
    modules = sorted(payload_support.payload().rglob("_native*.so"))
    assert modules
    for path in modules:
        needs = elf.needs_of(path)
        assert elf.version_key(needs.glibc) <= elf.version_key("2.34"), path
        assert set(needs.libraries) <= build.LIBRARIES, path
        assert not [version for version in needs.versions if version.startswith(("GLIBCXX", "CXXABI"))], path


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    """The reader of ELF files names the file that it can't read."""
    (tmp_path / "text").write_text("no library")
    with pytest.raises(ValueError, match="text is no 64-bit"):
        elf.needs_of(tmp_path / "text")


def test_a_module_that_needs_too_new_a_glibc_ends_the_build(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A build on a newer distribution says so, instead of a payload that fails in users' images."""
    built = next(payload_support.payload().rglob("_native*.so"))
    monkeypatch.setattr(build, "GLIBC_MAX", "2.17")
    with pytest.raises(SystemExit, match="build on an older distribution"):
        build.complain_of(built, payload_support.manifest()["machine"])


def test_the_manifest_names_the_engines_modules() -> None:
    """What the connector imports of vLLM at start is what an image is asked for."""
    modules = payload_support.manifest()["engineModules"]["vllm"]
    assert "vllm.distributed.kv_transfer.kv_connector.v1.base" in modules
    assert all(name.startswith("vllm.") for name in modules)
