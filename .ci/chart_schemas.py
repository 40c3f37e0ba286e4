"""Write charts/cases/schemas from Kubernetes' own OpenAPI document: schemas of the kinds that the chart renders, for kubeconform.

    chart_schemas.py [SWAGGER]      default: the one in Go's module cache, where kube.py built an API server

Strict (an unknown field is an error), references inlined, without descriptions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kube

ROOT: Final = Path(__file__).resolve().parent.parent
TARGET: Final = ROOT / "charts" / "cases" / "schemas"
KINDS: Final = (
    ("", "v1", "ConfigMap"),
    ("", "v1", "Namespace"),
    ("", "v1", "Pod"),
    ("", "v1", "Secret"),
    ("", "v1", "Service"),
    ("", "v1", "ServiceAccount"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
    ("apps", "v1", "Deployment"),
    ("batch", "v1", "Job"),
    ("networking.k8s.io", "v1", "NetworkPolicy"),
    ("policy", "v1", "PodDisruptionBudget"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
)
KEPT: Final = ("type", "format", "enum", "required")
DEPTH_MAX: Final = 40


def inlined(node: dict[str, Any], definitions: dict[str, Any], above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A schema without references; one that contains itself ends as "anything"."""
    name = str(node.get("$ref", "")).rpartition("/")[2]
    if name:
        if name in above or len(above) > DEPTH_MAX:
            return {}
        return inlined(definitions[name], definitions, (*above, name))
    if node.get("x-kubernetes-int-or-string") or node.get("format") == "int-or-string":
        return {"type": ["integer", "string"]}
    found: dict[str, Any] = {key: node[key] for key in KEPT if key in node}
    if "items" in node:
        found["items"] = inlined(node["items"], definitions, above)
    if "properties" in node:
        found["properties"] = {
            key: nullable(inlined(child, definitions, above)) for key, child in node["properties"].items()
        }
        found["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), dict):
        found["additionalProperties"] = inlined(node["additionalProperties"], definitions, above)
    return found


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The API server drops nulls."""
    kind = schema.get("type")
    return {**schema, "type": [kind, "null"]} if isinstance(kind, str) else schema


def main() -> None:
    version = kube.kubernetes_version()
    cached = kube.cache() / "go" / "mod" / "k8s.io" / f"kubernetes@{version}" / "api" / "openapi-spec" / "swagger.json"
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else cached
    definitions = json.loads(source.read_text(encoding="utf-8"))["definitions"]
    by_kind = {
        (known["group"], known["version"], known["kind"]): name
        for name, node in definitions.items()
        for known in node.get("x-kubernetes-group-version-kind", [])
        if node.get("properties", {}).get("metadata")
    }
    TARGET.mkdir(parents=True, exist_ok=True)
    for group, api, kind in KINDS:
        schema = inlined({"$ref": by_kind[group, api, kind]}, definitions)
        suffix = f"{group.partition('.')[0]}-{api}" if group else api
        (TARGET / f"{kind.lower()}-{suffix}.json").write_text(
            json.dumps(schema, separators=(",", ":"), sort_keys=True) + "\n"
        )


if __name__ == "__main__":
    main()
