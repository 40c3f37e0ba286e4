"""An engine's pods change when its user changes something, not when the operator is upgraded.

The workload carries a hash of what the user asked for, and the pod template that the operator made of it then. As long as the
hash stays, that very template is applied again, whatever a newer operator would build: drift is still put back, and no engine
restarts. `upgradePolicy: Roll` allows the newer one."""

from __future__ import annotations

import json
from typing import Any, Final

from kvcommons_operator import names
from kvcommons_operator.api.common import Model
from kvcommons_operator.api.engine import UpgradePolicy
from kvcommons_operator.api.pool import Placement
from kvcommons_operator.build import pods
from kvcommons_operator.build.deployment import Deployment, Group
from kvcommons_operator.observed import Manifest

POOL_FIELDS: Final = frozenset({"placement", "chunk_tokens", "failure_mode", "images"})
"""What of a pool reaches every engine's pod."""
SIDECAR_FIELDS: Final = frozenset(
    {"tiers", "eviction", "compression", "index", "resources", "transport", "security", "log_level", "pod_template"}
)
"""And with sidecar beside."""


def requested(deployment: Deployment, group: Group) -> str:
    """The hash of what the user asked for of these engines. Defaults are left out: a new field with a default changes nothing."""
    spec, pool = deployment.spec, deployment.pool
    asked: dict[str, Any] = {
        "role": group.role,
        "model": _said(spec.model),
        "engine": {key: value for key, value in _said(spec.engine).items() if key != "upgradePolicy"},
        "args": list(group.args),
        "env": [_said(variable) for variable in group.env],
        "resources": _said(group.resources),
        "tensorParallelSize": group.tensor_parallel_size,
        "template": _said(group.template),
        "probes": _said(spec.probes),
        "drainSeconds": spec.drain_seconds,
    }
    if pool is not None:
        fields = POOL_FIELDS | (SIDECAR_FIELDS if pool.spec.placement == Placement.SIDECAR else frozenset())
        said = pool.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(fields))
        asked["pool"] = [pool.owner.namespace, pool.owner.name, said]
    return pods.digest(asked)


def _said(model: Model) -> dict[str, Any]:
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def template(deployment: Deployment, group: Group, fresh: Manifest, live: Manifest | None) -> Manifest:
    """The pod template to apply: the one of then, if the user has changed nothing since, else the fresh one."""
    kept = _kept(live, requested(deployment, group))
    if kept is None or deployment.spec.engine.upgrade_policy == UpgradePolicy.ROLL:
        return fresh
    return kept


def _kept(live: Manifest | None, hash_now: str) -> Manifest | None:
    annotations = live["metadata"].get("annotations") or {} if live is not None else {}
    if annotations.get(names.ENGINE_HASH) != hash_now:
        return None
    try:
        found = json.loads(annotations.get(names.PINNED, ""))
    except ValueError:
        return None
    return found if isinstance(found, dict) and "spec" in found else None


def marked(workload: Manifest, deployment: Deployment, group: Group, template_now: Manifest) -> Manifest:
    """The workload with both annotations."""
    marks = {
        names.ENGINE_HASH: requested(deployment, group),
        names.PINNED: json.dumps(template_now, sort_keys=True, separators=(",", ":")),
    }
    metadata = {**workload["metadata"], "annotations": {**workload["metadata"].get("annotations", {}), **marks}}
    return {**workload, "metadata": metadata}
