"""The command of an engine, and the image that it runs in."""

from __future__ import annotations

from typing import Final

from kvcommons_operator import names
from kvcommons_operator.api.engine import EngineType
from kvcommons_operator.build.deployment import Deployment, Group
from kvcommons_operator.build.payload import transfer_config

DEFAULT_VERSIONS: Final = {EngineType.VLLM.value: "0.32.0", EngineType.SGLANG.value: "0.5.23"}
DEFAULT_IMAGES: Final = {
    EngineType.VLLM.value: "docker.io/vllm/vllm-openai:v{version}",
    EngineType.SGLANG.value: "docker.io/lmsysorg/sglang:v{version}",
}
VLLM: Final = ("python3", "-m", "vllm.entrypoints.openai.api_server")


def image(deployment: Deployment) -> str:
    """The engine's image: what the user says, else what is usual for type and version."""
    engine = deployment.spec.engine
    if engine.image is not None:
        return engine.image
    usual = {**DEFAULT_IMAGES, **deployment.install.engine_images}
    return usual[engine.type.value].replace("{version}", engine.version or DEFAULT_VERSIONS[engine.type.value])


def command(deployment: Deployment, group: Group, model_path: str, rank_words: tuple[str, ...]) -> list[str]:
    """What starts the engine. What is the operator's own comes last: it wins over what was given before."""
    spec = deployment.spec
    engine = spec.engine
    words = list(engine.command or VLLM)
    if group.tensor_parallel_size > 1:
        words += ["--tensor-parallel-size", str(group.tensor_parallel_size)]
    if engine.data_parallel_size > 1:
        words += ["--data-parallel-size", str(engine.data_parallel_size)]
    if not engine.command:
        # How many tokens of a prompt were cached, which is what the router learns from.
        words.append("--enable-prompt-tokens-details")
    words += group.args
    words += ["--model", model_path]
    if spec.model.source.hub is not None and spec.model.revision is not None:
        words += ["--revision", spec.model.revision]
    words += ["--served-model-name", spec.model.name, "--host", "0.0.0.0", "--port", str(names.ENGINE_PORT)]
    words += rank_words
    if deployment.pool is not None:
        words += ["--kv-transfer-config", transfer_config(deployment.pool.spec.chunk_tokens)]
    return words
