"""The models that the demo and the tests run are made once, whole, and again when their maker or source changes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kvcommons_cli import model

TINY = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
TINY |= {"num_key_value_heads": 1, "head_dim": 16}


def test_a_model_is_made_once_and_then_reused(tmp_path: Path) -> None:
    """The second call changes no file; another shape is made anew in the same place."""
    made = model.make_random_llama(tmp_path / "tiny", **TINY)
    first = (made / "model.safetensors").stat()
    assert model.make_random_llama(tmp_path / "tiny", **TINY) == made
    assert (made / "model.safetensors").stat().st_ino == first.st_ino
    model.make_random_llama(tmp_path / "tiny", **TINY | {"num_hidden_layers": 1})
    assert (made / "model.safetensors").stat().st_size < first.st_size
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["num_hidden_layers"] == 1


def test_a_model_may_be_read_by_whoever_runs_the_engine(tmp_path: Path) -> None:
    """Weights are no secret of their maker: in a pod the engine is another user."""
    made = model.make_random_llama(tmp_path / "tiny", **TINY)
    assert {file.stat().st_mode & 0o777 for file in made.iterdir()} == {0o644}


def test_an_unfinished_model_is_made_again(tmp_path: Path) -> None:
    """A folder that a killed maker left, or that somebody emptied, is not taken for a model."""
    target = tmp_path / "tiny"
    target.mkdir()
    (target / "config.json").write_text("{}")
    made = model.make_random_llama(target, **TINY)
    assert (made / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["tiny"]


def test_the_same_seed_makes_the_same_weights(tmp_path: Path) -> None:
    """Two machines that make the model have one fingerprint."""
    made = [model.make_random_llama(tmp_path / name, **TINY) for name in ("a", "b")]
    assert (made[0] / "model.safetensors").read_bytes() == (made[1] / "model.safetensors").read_bytes()


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package that carries the weights the message says what to install."""
    monkeypatch.setattr(model, "GGUF_PACKAGE", "no-such-distribution")
    with pytest.raises(model.ModelError, match=r"kvcommons\[demo\]"):
        model.make_smollm2()


@pytest.mark.timeout(300)
def test_smollm2_is_the_model_of_its_package() -> None:
    """Plain weights, tied embeddings, a chat template, and the right answer to a question."""
    made = model.make_smollm2()
    config = json.loads((made / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config
    code = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
network = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
question = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = network.generate(**inputs, max_new_tokens=10, do_sample=False)
print(tokenizer.decode(answer[0][inputs["input_ids"].shape[1]:]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=True, timeout=240
    )
    assert "The capital of France is Paris." in done.stdout
