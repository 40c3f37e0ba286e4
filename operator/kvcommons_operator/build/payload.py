"""The connector in stock images: what copies it, what tries it, and the command that starts an engine with it."""

from __future__ import annotations

import json
from typing import Any, Final

from kvcommons_operator.build import pods
from kvcommons_operator.build.pool import Pool

PATH: Final = "/kvcommons"
VOLUME: Final = "kvcommons-payload"
PAYLOAD_CONTAINER: Final = "payload"
CHECK_CONTAINER: Final = "check"
LAUNCHER: Final = ("python3", f"{PATH}/launch.py")
PAYLOAD_SIZE: Final = "256Mi"


def volume() -> dict[str, Any]:
    """Where the payload is copied to."""
    return pods.empty_dir(VOLUME, size=PAYLOAD_SIZE)


def mount() -> dict[str, Any]:
    """How an engine sees it."""
    return pods.mount(VOLUME, PATH, read_only=True)


def copy_container(pool: Pool) -> dict[str, Any]:
    """Copies the payload out of the node's image."""
    return {
        "name": PAYLOAD_CONTAINER,
        "image": pool.node_image,
        "imagePullPolicy": pool.install.image_pull_policy,
        "command": ["kvcommons-payload", PATH],
        "securityContext": dict(pods.CONTAINER_SECURITY),
        **pods.TELLING,
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [pods.mount(VOLUME, PATH)],
    }


def check_container(image: str, pull_policy: str, command: tuple[str, ...]) -> dict[str, Any]:
    """Says in its termination message whether the connector loads in the engine's image. It never fails the pod."""
    # The interpreter that the command itself names, where it names one.
    python = ["--python", command[0]] if command and command[0].rpartition("/")[2].startswith("python") else []
    return {
        "name": CHECK_CONTAINER,
        "image": image,
        "imagePullPolicy": pull_policy,
        "command": [*LAUNCHER, "--check", *python],
        "securityContext": dict(pods.CONTAINER_SECURITY),
        **pods.TELLING,
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}},
        "volumeMounts": [mount()],
    }


def launched(command: list[str], *, strict: bool) -> list[str]:
    """The engine's command behind the launcher. Strict: fails, where it would serve without the commons."""
    return [*LAUNCHER, *(["--strict"] if strict else []), "--", *command]


def transfer_config(chunk_tokens: int) -> str:
    """What vLLM's --kv-transfer-config takes. A load that fails is recomputed: vLLM's own default fails the request."""
    config = {
        "kv_connector": "KVCommonsConnector",
        "kv_connector_module_path": "kvcommons_connector.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"chunk_tokens": chunk_tokens},
    }
    return json.dumps(config, separators=(",", ":"))
