"""The README's example as a user runs it: a program of its own, the engine in other processes, compiled."""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from engine import kinds
from engine.engine_client import Engine, connector
from engine.engine_host import ENVIRONMENT
from engine.test_main_path import same

Prompt = dict[str, Any]
README = Path(__file__).parents[2] / "README.md"
MARK = "KVCOMMONS_TEST_MARK"
RUN_SECONDS_MAX = 280
END_SECONDS_MAX = 20
QUESTIONS = """
    import json, os, sys
    from pathlib import Path
    from vllm import SamplingParams

    answers = []
    for reset in (False, False, True):
        if reset:
            assert llm.reset_prefix_cache()
        [output] = llm.generate(
            [{"prompt_token_ids": [10 + number * 7 % 4000 for number in range(1100)]}],
            SamplingParams(temperature=0, max_tokens=16, ignore_eos=True),
            use_tqdm=False,
        )
        answers.append((list(output.outputs[0].token_ids), output.num_cached_tokens))
    Path(sys.argv[1]).write_text(json.dumps([answers, os.listdir(os.environ["TMPDIR"])]))
"""


@pytest.fixture(scope="module")
def compiled(models: Path) -> dict[str, str]:
    """Where compiled code is kept, so that only the first run on a machine pays for it."""
    return {
        "VLLM_CACHE_ROOT": str(models / "compiled" / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(models / "compiled" / "inductor"),
    }


@pytest.fixture
def folder() -> Generator[Path]:
    """For temporary files, with a path that is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="kvc") as name:
        yield Path(name)


def example(model: str) -> str:
    """The README's program with a path that is there."""
    [block] = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert '"/path/to/model"' in block
    return str(block).replace('"/path/to/model"', json.dumps(model))


def marked(mark: str) -> list[str]:
    """Every process that was started with this mark in its environment, by name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended meanwhile
            continue
    return found


def await_end(mark: str) -> None:
    """Until no such process is left."""
    for _ in range(END_SECONDS_MAX * 10):
        if not marked(mark):
            return
        select.select([], [], [], 0.1)
    raise AssertionError(marked(mark))


def run_example(program: Path, model: str, compiled: dict[str, str]) -> tuple[list[tuple[list[int], int]], list[str]]:
    """Its answers as (tokens, number of cached tokens), and what lay in its temporary folder meanwhile."""
    program.write_text(example(model) + QUESTIONS)
    mark, said = secrets.token_hex(16), program.with_name("said.json")
    environment = os.environ | ENVIRONMENT | compiled | {MARK: mark, "TMPDIR": str(program.parent)}
    environment.pop("XDG_RUNTIME_DIR", None)
    with program.with_name("log").open("wb") as log:
        status = subprocess.run(
            [sys.executable, "-P", str(program), str(said)],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            timeout=RUN_SECONDS_MAX,
        ).returncode
    assert status == 0, program.with_name("log").read_text(errors="replace")[-6000:]
    await_end(mark)
    answers, files = json.loads(said.read_text())
    return [(tokens, cached) for tokens, cached in answers], files


def test_the_example_in_the_readme_runs_as_it_is(models: Path, folder: Path, compiled: dict[str, str]) -> None:
    """Answers from the engine's own cache and, after a reset, from the private node are the same; then no process is left, so no shared
    memory of theirs, which has no name, and no socket."""
    model = kinds.with_words(models / "with-words")
    answers, files = run_example(folder / "program.py", model, compiled)
    own, commons = answers[1], answers[2]
    assert [cached for _, cached in answers] == [0, 1024, 1024]
    assert own == commons
    assert any(name.startswith("kvc-") for name in files), "the private node's socket was here"
    assert not [path.name for path in folder.iterdir() if path.name.startswith("kvc-")]
    assert str(folder) not in Path("/proc/net/unix").read_text()


def test_compiled_models_load_beside_the_forward(
    models: Path, engine_of: Callable[..., Engine], prompt: Callable[..., Prompt], compiled: dict[str, str]
) -> None:
    """vLLM compiles by default: the layers' hooks are called there too, and in float32 a hit says what an engine without us says."""
    model = {"model": kinds.with_words(models / "with-words"), "enforce_eager": False, "max_model_len": 4096}
    alone = engine_of(model | {"enable_prefix_caching": False}, None, **compiled)
    ours = engine_of(model, connector(size="256MiB"), **compiled)
    texts = [prompt(1100), prompt(600), prompt(2047)]
    expected = [alone.generate([text], max_tokens=16, logprobs=3)[0] for text in texts]
    cold = [ours.generate([text], max_tokens=16, logprobs=3)[0] for text in texts]
    ours.call("settle")
    ours.call("reset")
    warm = [ours.generate([text], max_tokens=16, logprobs=3)[0] for text in texts]
    assert [answer["cached"] for answer in (*cold, *warm)] == [0, 0, 0, 1024, 512, 1792]
    same(cold, expected)
    same(warm, expected)
    assert ours.call("describe")["beside"]
    assert not any(name.startswith("loads_refused") for name in ours.call("metrics"))
