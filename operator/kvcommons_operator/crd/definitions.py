"""The CustomResourceDefinitions as dicts: names, columns, scale, and the schemas of the models."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Final

from kvcommons_operator.api import GROUP, VERSION, InferenceDeployment, InferenceRole, KVCachePool, Resource
from kvcommons_operator.crd.schema import Schema, structural

CATEGORY: Final = "kvcommons"
KUBERNETES_MINOR_MIN: Final = 29
"""The oldest Kubernetes, 1.29: `quantity` came to CEL in it."""
PATH_READY: Final = '.status.conditions[?(@.type=="Ready")]'


@dataclass(frozen=True)
class Column:
    """A column of `kubectl get`; those of priority 1 only with -o wide."""

    name: str
    path: str
    description: str
    type: str = "string"
    priority: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As the API server wants it."""
        told: dict[str, Any] = {
            "name": self.name,
            "type": self.type,
            "jsonPath": self.path,
            "description": self.description,
        }
        if self.priority:
            told["priority"] = self.priority
        return told


@dataclass(frozen=True)
class Definition:
    """One kind: its model, and what the model does not say."""

    model: type[Resource]
    short_name: str
    columns: tuple[Column, ...]
    scale: bool = False

    @property
    def name(self) -> str:
        """Name of the CustomResourceDefinition."""
        return f"{self.model.PLURAL}.{GROUP}"

    def to_dict(self) -> dict[str, Any]:
        """The CustomResourceDefinition."""
        subresources: dict[str, Any] = {"status": {}}
        if self.scale:
            subresources["scale"] = {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            }
        version = {
            "name": VERSION,
            "served": True,
            "storage": True,
            "additionalPrinterColumns": [column.to_dict() for column in self.columns],
            "subresources": subresources,
            "schema": {"openAPIV3Schema": whole(self.model)},
        }
        names = {
            "kind": self.model.KIND,
            "listKind": f"{self.model.KIND}List",
            "plural": self.model.PLURAL,
            "singular": self.model.KIND.lower(),
            "shortNames": [self.short_name],
            "categories": [CATEGORY],
        }
        return {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": self.name},
            "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
        }


@functools.cache
def whole(model: type[Resource]) -> Schema:
    """The schema of a whole resource. What Kubernetes itself looks after (apiVersion, kind, metadata) is left to it."""
    schema = structural(model, leave=("apiVersion", "kind", "metadata"))
    own = schema["properties"]
    schema["properties"] = {
        "apiVersion": {"description": "Version of the API.", "type": "string"},
        "kind": {"description": "Kind of the resource.", "type": "string"},
        "metadata": {"type": "object"},
        "spec": own["spec"],
        "status": {key: value for key, value in own["status"].items() if key != "default"},
    }
    schema["required"] = ["spec"]
    return schema


READY: Final = (
    Column("Ready", f"{PATH_READY}.status", "Whether it serves."),
    Column("Reason", f"{PATH_READY}.reason", "Why it is ready or not.", priority=1),
    Column("Message", f"{PATH_READY}.message", "Why, for people.", priority=1),
)
AGE: Final = Column("Age", ".metadata.creationTimestamp", "How long it has been there.", type="date")

DEFINITIONS: Final = (
    Definition(
        KVCachePool,
        "kvcp",
        (
            Column("Placement", ".spec.placement", "Where cache nodes run."),
            Column("Memory", ".spec.tiers.memory.capacity", "Memory of each cache node."),
            Column("Nodes", ".status.nodes.ready", "How many cache nodes serve.", type="integer"),
            Column("Desired", ".status.nodes.desired", "How many cache nodes there should be.", type="integer"),
            Column("Hit%", ".status.hitPercent", "Share of chunks that were there, lately.", type="integer"),
            *READY,
            Column("Used", ".status.references", "How many InferenceDeployments use it.", type="integer", priority=1),
            Column("Chunk", ".spec.chunkTokens", "Tokens in a chunk.", type="integer", priority=1),
            AGE,
        ),
    ),
    Definition(
        InferenceDeployment,
        "ifd",
        (
            Column("Model", ".spec.model.name", "Name that clients ask for."),
            Column("Pool", ".spec.poolRef.name", "Pool that keeps its KV."),
            Column("Desired", ".spec.replicas", "How many engines there should be.", type="integer"),
            Column("Serving", ".status.readyReplicas", "How many engines serve.", type="integer"),
            *READY,
            Column("URL", ".status.url", "Where clients inside the cluster reach it.", priority=1),
            Column("Engine", ".spec.engine.type", "The inference engine.", priority=1),
            Column("Revision", ".spec.model.revision", "Which weights.", priority=1),
            AGE,
        ),
        scale=True,
    ),
    Definition(
        InferenceRole,
        "ifr",
        (
            Column("Deployment", ".spec.deploymentRef.name", "InferenceDeployment that it is of."),
            Column("Role", ".spec.role", "Part of the work."),
            Column("Desired", ".spec.replicas", "How many engines there should be.", type="integer"),
            Column("Serving", ".status.readyReplicas", "How many engines serve.", type="integer"),
            *READY,
            AGE,
        ),
        scale=True,
    ),
)


def definitions() -> dict[str, dict[str, Any]]:
    """All CustomResourceDefinitions by name."""
    return {definition.name: definition.to_dict() for definition in DEFINITIONS}
