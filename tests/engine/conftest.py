"""Real engines for the tests here. Most share one pair, which is started once."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import gpu_fake
import pytest
from engine import kinds
from engine.engine_client import Engine, Forge, Node, connector

from bench import models as random_models
from bench.models import tiny_llama

Prompt = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs a real engine, and the first test of a fixture pays for its start."""
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def models() -> Path:
    """Where the random models are kept between runs, by the programs that made them."""
    makers = b"".join(Path(str(module.__file__)).read_bytes() for module in (kinds, random_models))
    folder = Path(os.environ["KVCOMMONS_CACHE"]) / f"random-models-{hashlib.sha256(makers).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("KVCOMMONS_CACHE_DIR", str(folder / "digests"))
    return folder


@pytest.fixture(scope="session")
def tiny(models: Path) -> str:
    """A Llama with two KV heads and four layers."""
    return str(tiny_llama(models / "tiny-llama"))


@pytest.fixture(scope="session")
def forge(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Generator[Forge]:
    """Forks engines."""
    forge = Forge(tmp_path_factory.mktemp("engines"))
    yield forge
    forge.close()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Generator[Node]:
    """A cache node that checks every read."""
    node = Node(tmp_path_factory.mktemp("node"))
    yield node
    node.close()


@pytest.fixture(scope="session")
def pair(forge: Forge, node: Node, tiny: str) -> Generator[tuple[Engine, Engine]]:
    """Two engines of one model on one node, loads beside the forward: one copies by itself, as by default, one as on a GPU.

    The second has a stand-in for the GPU's driver, to which all memory is the GPU's."""
    gpu = {"KVCOMMONS_LIBCUDA": gpu_fake.fake_driver(), "FAKE_CUDA_ALL": "1"}
    begun = [
        forge.begin({"model": tiny}, connector(socket=node.socket)),
        forge.begin({"model": tiny}, connector(socket=node.socket, device="cuda"), **gpu),
    ]
    engines = [Engine(*item) for item in begun]
    yield engines[0], engines[1]
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def reference(forge: Forge, tiny: str) -> Generator[Engine]:
    """The same model in an engine that knows nothing of us and caches nothing."""
    engine = forge.engine({"model": tiny, "enable_prefix_caching": False}, None)
    yield engine
    engine.close()


@pytest.fixture
def engine_of(forge: Forge) -> Generator[Callable[..., Engine]]:
    """Makes engines that end with the test."""
    engines: list[Engine] = []

    def make(engine: dict[str, Any], settings: dict[str, Any] | None, **environment: str) -> Engine:
        engines.append(forge.engine(engine, settings, **environment))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture
def prompt(request: pytest.FixtureRequest) -> Callable[..., Prompt]:
    """Prompts that no other test uses: random token ids, seeded by the test's name."""
    source = random.Random(request.node.nodeid)

    def make(tokens: int, prefix: Prompt | None = None, **fields: Any) -> Prompt:
        start = list(prefix["ids"]) if prefix else []
        return {"ids": start + [source.randrange(10, 4000) for _ in range(tokens - len(start))], **fields}

    return make
