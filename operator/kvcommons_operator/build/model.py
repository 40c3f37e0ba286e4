"""Where an engine finds its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from kvcommons_operator.build import pods
from kvcommons_operator.build.deployment import Deployment

VOLUME: Final = "kvcommons-model"
PATH: Final = "/model"


@dataclass(frozen=True, kw_only=True)
class ModelWiring:
    """What an engine's container needs for its model."""

    path: str
    """What --model takes: a directory, or a repository."""
    env: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    volumes: list[dict[str, Any]] = field(default_factory=list)


def wiring(deployment: Deployment) -> ModelWiring:
    """The model's files: mounted for reading alone, or loaded by the engine itself."""
    source = deployment.spec.model.source
    if source.pvc is not None:
        claim = {"claimName": source.pvc.claim_name, "readOnly": True}
        return _mounted({"persistentVolumeClaim": claim}, source.pvc.path)
    if source.image is not None:
        image = {"reference": source.image.reference}
        if source.image.pull_policy is not None:
            image["pullPolicy"] = source.image.pull_policy.value
        return _mounted({"image": image}, source.image.path)
    if source.local is not None:
        return ModelWiring(path=source.local.path)
    hub = source.hub
    env = []
    if hub is not None and hub.token_secret_ref is not None:
        env.append(pods.env_secret("HF_TOKEN", hub.token_secret_ref.name, hub.token_secret_ref.key))
    if hub is not None and hub.endpoint is not None:
        env.append(pods.env("HF_ENDPOINT", hub.endpoint))
    return ModelWiring(path=hub.repo if hub is not None else "", env=env)


def _mounted(volume: dict[str, Any], below: str | None) -> ModelWiring:
    return ModelWiring(
        path=f"{PATH}/{below}".rstrip("/") if below else PATH,
        mounts=[pods.mount(VOLUME, PATH, read_only=True)],
        volumes=[{"name": VOLUME, **volume}],
    )
