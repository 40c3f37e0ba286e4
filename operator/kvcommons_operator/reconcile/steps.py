"""Steps on single pods: of a plan's actions, what the API server, the kubelet and cache nodes are asked for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from kvcommons_operator import names
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import ConflictError, ForbiddenError, KubeError, NotFoundError, RejectedError
from kvcommons_operator.kube.kinds import POD
from kvcommons_operator.observed import Pod
from kvcommons_operator.outcome import ActionKind, PodAction
from kvcommons_operator.pod_memory import Refusal
from kvcommons_operator.reconcile.fence import Fencer, addresses
from kvcommons_operator.reconcile.nodes import Address, NodeClient
from kvcommons_operator.reconcile.resources import Id

FENCED_BY: Final = 3
"""Of the other nodes, so many are asked to fence one that does not answer."""
REFUSALS_MAX: Final = 4_096
FINAL_SECONDS: Final = 3_600.0
"""As long as a node may take to write down what it holds before its pod is replaced."""
AGAIN_SECONDS: Final = 30.0
"""What a person has to allow is asked for again this often."""

logger = logging.getLogger(__name__)


class Steps:
    """One for all resources. Remembers which pods could not be given another size, so that they are replaced instead."""

    def __init__(
        self,
        client: KubeClient,
        nodes: NodeClient,
        fencer: Fencer,
        *,
        cache_nodes: Callable[[Id], tuple[Sequence[Pod], str] | None],
        urge: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param cache_nodes: of the pool of a resource, its pods and the token that opens them; None while nobody may ask them.
        :param urge: has a node asked how it is, by its pod's uid."""
        self._client = client
        self._nodes = nodes
        self._fencer = fencer
        self._cache_nodes = cache_nodes
        self._urge = urge
        self._clock = clock
        self._refusals: dict[str, tuple[float, Refusal]] = {}

    def refusal(self, uid: str) -> Refusal | None:
        """Why a pod could not be given another size lately; None if nobody has refused that."""
        at, refusal = self._refusals.get(uid, (0.0, None))
        if refusal is None:
            return None
        lasts = FINAL_SECONDS if refusal.final else AGAIN_SECONDS
        return refusal if self._clock() - at < lasts else None

    async def take(self, key: Id, action: PodAction) -> None:
        """One step. What is gone, or another pod by now, is left to the next look. :raises KubeError: to be tried again."""
        try:
            match action.kind:
                case ActionKind.DELETE_POD:
                    await self._client.delete(POD, action.namespace, action.pod, uid=action.uid)
                case ActionKind.ANNOTATE_POD:
                    await self._annotate(action)
                case ActionKind.RESIZE_POD:
                    await self._resize_pod(action)
                case ActionKind.RESIZE_ARENA:
                    await self._resize_arena(key, action)
                case _:
                    await self._fence(key, action)
        except (NotFoundError, ConflictError):
            return

    async def _annotate(self, action: PodAction) -> None:
        change = {"metadata": {"uid": action.uid, "annotations": dict(action.annotations)}}
        await self._client.merge(POD, action.namespace, action.pod, change)

    # another size -----------------------------------------------------------------------------------------------------

    async def _resize_pod(self, action: PodAction) -> None:
        """Marked from before its memory differs from its template's until it does not any more."""
        if action.memory is None:
            return
        ends = (names.RESIZING, None) in action.annotations
        if not ends:
            await self._annotate(action)
        container, resources = names.CACHE_NODE_CONTAINER, action.memory.resources
        try:
            await self._client.resize(action.namespace, action.pod, action.uid, container, resources)
        except (ForbiddenError, NotFoundError, RejectedError) as error:
            # What a node needs no more it may also keep, until its pod is replaced for another reason.
            if not ends:
                self._refuse(action, Refusal(_words(error), final=not isinstance(error, ForbiddenError)))
        if ends:
            await self._annotate(action)

    async def _resize_arena(self, key: Id, action: PodAction) -> None:
        own = self._address(key, action)
        if own is None:
            return
        told = ((names.RESIZING, str(action.arena_bytes)),)
        await self._annotate(replace(action, annotations=told))
        answer = await self._nodes.resize(own, action.arena_bytes, action.reason)
        if answer.refused:
            self._refuse(action, Refusal(answer.refused, final=True))
        elif answer.ok:
            await self._annotate(action)
        self._urge(action.uid)

    def _refuse(self, action: PodAction, refusal: Refusal) -> None:
        while len(self._refusals) >= REFUSALS_MAX:
            self._refusals.pop(next(iter(self._refusals)))
        self._refusals[action.uid] = (self._clock(), refusal)
        logger.warning("pod %s/%s can't be given another size: %s", action.namespace, action.pod, refusal.why)

    # the index --------------------------------------------------------------------------------------------------------

    def _address(self, key: Id, action: PodAction) -> Address | None:
        found = self._cache_nodes(key)
        if found is None:
            return None
        return next((Address(pod.ip, found[1]) for pod in found[0] if pod.uid == action.uid and pod.ip), None)

    async def _fence(self, key: Id, action: PodAction) -> None:
        """The node itself stops publishing and is void at once; if it does not answer, another one fences it."""
        found, own = self._cache_nodes(key), self._address(key, action)
        if found is None:
            return
        if action.kind is ActionKind.UNFENCE:
            if own is not None:
                await self._nodes.unfence(own, action.reason)
            self._urge(action.uid)
            return
        members = [action.member] if action.member else []
        if own is None or not await self._fencer.ask([own], members, action.reason, hold=True):
            others = addresses([pod for pod in found[0] if pod.uid != action.uid], found[1])[:FENCED_BY]
            await self._fencer.ask(others, members, action.reason)
        self._urge(action.uid)


def _words(error: KubeError) -> str:
    """What a person is told of a refusal."""
    if isinstance(error, NotFoundError):
        return "this Kubernetes changes no pod that runs (pods/resize came with 1.33)"
    return error.message
