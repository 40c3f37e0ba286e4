"""Labels, owners and metadata of everything that the operator makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvcommons_operator import names
from kvcommons_operator.observed import Manifest


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The resource that children belong to."""

    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, manifest: Manifest) -> Owner:
        """The owner that this live object is."""
        metadata = manifest["metadata"]
        return cls(
            kind=manifest["kind"], namespace=metadata["namespace"], name=metadata["name"], uid=metadata.get("uid", "")
        )

    @property
    def is_pool(self) -> bool:
        """A pool; else a deployment."""
        return self.kind == names.POOL_KIND

    def selector(self, component: str, **more: str) -> dict[str, str]:
        """Labels that only the pods of this owner's component carry. They never change."""
        own = names.POOL_LABEL if self.is_pool else names.DEPLOYMENT_LABEL
        space = names.POOL_NAMESPACE_LABEL if self.is_pool else names.DEPLOYMENT_NAMESPACE_LABEL
        return {names.COMPONENT: component, own: names.label_value(self.name), space: self.namespace, **more}

    def labels(self, component: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """All labels of a child."""
        return {
            names.NAME: f"{names.PROJECT}-{component}",
            names.INSTANCE: names.label_value(self.name),
            names.PART_OF: names.PROJECT,
            names.MANAGED_BY: names.MANAGER,
            **self.selector(component),
            **(more or {}),
        }

    def reference(self) -> dict[str, Any]:
        """Has the garbage collector remove a child after its owner."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


@dataclass(frozen=True, kw_only=True)
class Child:
    """What a builder needs to know about the child that it builds."""

    owner: Owner
    component: str
    name: str
    namespace: str = ""
    """The owner's when empty."""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    def manifest(self, api_version: str, kind: str, body: Mapping[str, Any]) -> Manifest:
        """The whole manifest. A child in another namespace has no ownerReference: labels and the finalizer tie it."""
        namespace = self.namespace or self.owner.namespace
        metadata: dict[str, Any] = {
            "name": self.name,
            "namespace": namespace,
            "labels": self.owner.labels(self.component, self.labels),
        }
        if self.annotations:
            metadata["annotations"] = dict(self.annotations)
        if namespace == self.owner.namespace:
            metadata["ownerReferences"] = [self.owner.reference()]
        return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **body}
