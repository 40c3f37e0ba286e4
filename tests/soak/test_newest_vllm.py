"""The newest vLLM that can be had: the connector still fits what it declares, name by name and argument by argument.

Its wheel may be one for GPUs, which can't run here, so the contract is read from its source. The engine that does run here is
tests/engine's.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CONNECTOR = ROOT / "connector/kvcommons_connector"
BASE = "vllm/distributed/kv_transfer/kv_connector/v1/base.py"
INSTALL_SECONDS_MAX = 600


def uv_command() -> list[str]:
    """The uv that set this environment up, wherever it came from."""
    spec = importlib.util.spec_from_file_location("kvcommons_uv", ROOT / ".ci/uv.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / ".ci"))
    return [str(module.bring())]


@pytest.fixture(scope="module")
def newest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The newest release's files, without what it depends on."""
    target = tmp_path_factory.mktemp("vllm")
    command = [
        *uv_command(),
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--python",
        sys.executable,
        "--target",
        str(target),
    ]
    subprocess.run([*command, "vllm"], check=True, timeout=INSTALL_SECONDS_MAX)
    return target


def classes(path: Path) -> dict[str, ast.ClassDef]:
    """The classes of a module, by name."""
    return {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}


def methods(node: ast.ClassDef) -> dict[str, ast.FunctionDef]:
    """The methods of a class, by name."""
    return {item.name: item for item in node.body if isinstance(item, ast.FunctionDef)}


def is_abstract(method: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("abstractmethod") for decorator in method.decorator_list)


def imports_of_vllm(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of everything a module takes from vLLM."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
            for alias in node.names:
                yield str(node.module), alias.name


def test_every_abstract_method_of_the_newest_release_is_there(newest: Path) -> None:
    """A method that vLLM came to demand would stop the engine from starting."""
    theirs = classes(newest / BASE)
    ours = methods(classes(CONNECTOR / "vllm.py")["KVCommonsConnector"])
    for base in ("KVConnectorBase_V1", "SupportsHMA"):
        wanted = {name for name, method in methods(theirs[base]).items() if is_abstract(method)}
        assert wanted <= set(ours), f"{base} demands {sorted(wanted - set(ours))}"


def test_the_newest_release_calls_our_methods_with_the_arguments_they_take(newest: Path) -> None:
    """An argument that was renamed, added or taken away would break the first call."""
    theirs = classes(newest / BASE)
    ours = methods(classes(CONNECTOR / "vllm.py")["KVCommonsConnector"])
    compared = 0
    for base in ("KVConnectorBase_V1", "SupportsHMA"):
        for name, method in methods(theirs[base]).items():
            if name in ours and name != "__init__":
                expected = [argument.arg for argument in method.args.args]
                assert [argument.arg for argument in ours[name].args.args] == expected, f"{base}.{name}"
                compared += 1
    assert compared >= 7


def test_what_the_connector_imports_is_still_where_it_was(newest: Path) -> None:
    """An import that moved would stop the engine from starting."""
    missing = []
    for path in sorted(CONNECTOR.glob("*.py")):
        for module, name in imports_of_vllm(path):
            base = newest / module.replace(".", "/")
            source = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
            if not source.is_file() or (name not in source.read_text() and not (base / f"{name}.py").is_file()):
                missing.append(f"{path.name}: from {module} import {name}")
    assert not missing
