"""What the operator writes on resources themselves: its finalizers, and that it is the one that looks after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvcommons_operator import names
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import ConflictError, NotFoundError
from kvcommons_operator.kube.kinds import OWN_KINDS
from kvcommons_operator.observed import Manifest
from kvcommons_operator.reconcile.ownership import other_operator
from kvcommons_operator.reconcile.resources import Id, Resources

CONFLICTS_MAX: Final = 3
OWN: Final = {kind.name: kind for kind in OWN_KINDS}
FINALIZERS: Final = {names.POOL_KIND: names.POOL_FINALIZER, names.DEPLOYMENT_KIND: names.DEPLOYMENT_FINALIZER}


class Marks:
    """One for all resources."""

    def __init__(self, client: KubeClient, resources: Resources, identity: str) -> None:
        """:param identity: of this operator among others; empty for the only one, which marks nothing."""
        self.identity = identity
        self._client = client
        self._resources = resources

    async def claim(self, key: Id, resource: Manifest) -> str:
        """Says on the resource that this operator looks after it, unless another one does: that one's identity is the answer.

        On one version: of two operators that see a new resource at once, one gets it. :raises ConflictError: to look again."""
        other = other_operator(resource, self.identity)
        metadata = resource["metadata"]
        if other or not self.identity or (metadata.get("annotations") or {}).get(names.OPERATOR) == self.identity:
            return other
        patch = {
            "metadata": {
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
                "annotations": {names.OPERATOR: self.identity},
            }
        }
        answer = await self._client.merge(OWN[key.kind], key.namespace, key.name, patch)
        self._resources.put(key.kind, answer)
        return ""

    async def keep_finalizer(self, key: Id, resource: Manifest) -> None:
        """Sees that our finalizer is there. :raises KubeError: if it can not be written."""
        metadata, wanted = resource["metadata"], FINALIZERS.get(key.kind)
        if wanted is None or "deletionTimestamp" in metadata or wanted in (metadata.get("finalizers") or []):
            return
        await self._set_finalizers(key, resource, lambda found: [*found, wanted] if wanted not in found else found)

    async def drop_finalizer(self, key: Id, resource: Manifest) -> None:
        """Sees that our finalizer is gone; a resource that is gone needs none."""
        unwanted = FINALIZERS.get(key.kind)
        if unwanted is None or unwanted not in (resource["metadata"].get("finalizers") or []):
            return
        try:
            await self._set_finalizers(key, resource, lambda found: [name for name in found if name != unwanted])
        except NotFoundError:
            return

    async def _set_finalizers(self, key: Id, resource: Manifest, change: Callable[[list[str]], list[str]]) -> None:
        """A merge patch on one version: whoever put the finalizer there, and whatever others add meanwhile."""
        kind, live = OWN[key.kind], resource
        for attempt in range(CONFLICTS_MAX):
            metadata = live["metadata"]
            found = list(metadata.get("finalizers") or [])
            if change(found) == found:
                return
            patch = {
                "metadata": {
                    "uid": metadata["uid"],
                    "resourceVersion": metadata["resourceVersion"],
                    "finalizers": change(found),
                }
            }
            try:
                answer = await self._client.merge(kind, key.namespace, key.name, patch)
            except ConflictError:
                if attempt + 1 == CONFLICTS_MAX:
                    raise
                live = await self._client.get(kind, key.namespace, key.name)
                if live["metadata"]["uid"] != resource["metadata"]["uid"]:
                    return
                continue
            self._resources.put(key.kind, answer)
            return
