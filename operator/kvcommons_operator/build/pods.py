"""Parts that the pods of several builders share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.common import Model
from kvcommons_operator.api.pods import PodOverrides
from kvcommons_operator.observed import Install, Manifest

POD_SECURITY: Final[Mapping[str, Any]] = {
    "runAsNonRoot": True,
    "runAsUser": names.USER,
    "runAsGroup": names.USER,
    "fsGroup": names.USER,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
TELLING: Final[Mapping[str, Any]] = {"terminationMessagePolicy": "FallbackToLogsOnError"}
"""Of every container: what it said last stands in its status when it fails, and from there in conditions."""
SECRET_MODE: Final = 0o440
"""The pod's group reads, nobody else: what the node asks of secrets."""


def env(name: str, value: object) -> dict[str, Any]:
    """A variable of a plain value."""
    return {"name": name, "value": text(value)}


def text(value: object) -> str:
    """A setting as it stands in the environment: lists and tables as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, separators=(",", ":"))
    return str(value)


def env_field(name: str, path: str) -> dict[str, Any]:
    """A variable of a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}}


def env_secret(name: str, secret: str, key: str) -> dict[str, Any]:
    """A variable of a Secret's key."""
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def mount(name: str, path: str, *, read_only: bool = False) -> dict[str, Any]:
    """Where a container sees a volume."""
    return {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})


def empty_dir(name: str, *, size: str | None = None, medium: str | None = None) -> dict[str, Any]:
    """A directory that ends with the pod."""
    told = {"sizeLimit": size} if size else {}
    return {"name": name, "emptyDir": told | ({"medium": medium} if medium else {})}


def secret_volume(name: str, secret: str, keys: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """Files of a Secret; `keys` as (key, file), all when empty."""
    told: dict[str, Any] = {"secretName": secret, "defaultMode": SECRET_MODE}
    if keys:
        told["items"] = [{"key": key, "path": path} for key, path in keys]
    return {"name": name, "secret": told}


def http_probe(path: str, port: str, *, period: int = 10, failures: int = 3, timeout: int = 3) -> dict[str, Any]:
    """Asks a path of a named port."""
    return {
        "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": timeout,
    }


def port(name: str, number: int) -> dict[str, Any]:
    """A port that a container listens on."""
    return {"name": name, "containerPort": number, "protocol": "TCP"}


def pull_secrets(install: Install, own: Iterable[str] = ()) -> dict[str, Any]:
    """What images are pulled with: the operator's own and the resource's."""
    found = dict.fromkeys((*own, *install.image_pull_secrets))
    return {"imagePullSecrets": [{"name": name} for name in found]} if found else {}


def overrides(own: PodOverrides) -> dict[str, Any]:
    """What a resource says about its pods as a whole, in the spelling of a pod's specification."""
    found = {
        "serviceAccountName": own.service_account_name,
        "priorityClassName": own.priority_class_name,
        "runtimeClassName": own.runtime_class_name,
    }
    return {name: value for name, value in found.items() if value is not None}


def said(model: Model | None) -> dict[str, Any]:
    """What a resource really says in a part that is laid on ours: empty lists and tables say nothing."""
    return _without_empty(model.to_dict()) if model is not None else {}


def _without_empty(value: Mapping[str, Any]) -> dict[str, Any]:
    cleaned = {key: _without_empty(item) if isinstance(item, Mapping) else item for key, item in value.items()}
    return {key: item for key, item in cleaned.items() if item not in ({}, [])}


def digest(value: object) -> str:
    """16 hexadecimal digits that stand for a manifest or a part of it."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def stamped(template: Manifest) -> Manifest:
    """A pod template with the hash of itself among its annotations: pods of an older one are told by it."""
    return annotated(template, names.TEMPLATE_HASH, digest(template))


def annotated(template: Manifest, name: str, value: str) -> Manifest:
    """A pod template with one annotation more."""
    metadata = dict(template["metadata"])
    metadata["annotations"] = {**metadata.get("annotations", {}), name: value}
    return {**template, "metadata": metadata}
