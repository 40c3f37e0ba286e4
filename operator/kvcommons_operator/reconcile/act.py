"""Carries a plan out: finalizer, manifests, steps on pods, deletions, status, Events. What changes nothing is not sent."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from kvcommons_operator import names
from kvcommons_operator.kube.client import Document, KubeClient
from kvcommons_operator.kube.errors import ConflictError, ForbiddenError, KubeError, NotFoundError, RejectedError
from kvcommons_operator.kube.events import Recorder
from kvcommons_operator.kube.kinds import BY_KEY, OWN_KINDS, Kind, kind_of
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.observed import Manifest, Ref
from kvcommons_operator.outcome import Finalizer, Plan, PodAction
from kvcommons_operator.reconcile.inventory import Child, Inventory, wish_digest
from kvcommons_operator.reconcile.marks import Marks
from kvcommons_operator.reconcile.ownership import NameTakenError, is_ours, taken
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_operator.reconcile.waves import waves
from kvcommons_operator.reconcile.world import World
from kvcommons_operator.refusals import fields_of

UNWATCHED_SECONDS: Final = 600.0
"""What is not watched (Secrets) is written again this often, which puts drift back."""
QUIET_SECONDS: Final = 5.0
QUIET_SECONDS_MAX: Final = 15.0
QUIET_WRITES_PER_SECOND: Final = 20
"""A status whose verdicts stay as they are is written that often at most, all resources together, and each not more than every five
seconds: while two hundred deployments come up, every one of them has new numbers each second."""
NAME_TAKEN: Final = "NameTaken"
CHILD_REFUSED: Final = "ChildRefused"
"""What a field of ours asks for is not possible in this cluster."""
OWN: Final = {kind.name: kind for kind in OWN_KINDS}

Step = Callable[[Id, PodAction], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Applied:
    """What was last written of one object, and what it was then."""

    wish: bytes
    digest: bytes
    at: float
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A manifest that the API server does not take, or whose name somebody else has: only a person can help."""

    ref: Ref
    error: KubeError
    fields: tuple[str, ...] = ()
    """Of our resource: what asked for it, where that is known."""

    @property
    def reason(self) -> str:
        """The condition's reason."""
        if isinstance(self.error, NameTakenError):
            return NAME_TAKEN
        return CHILD_REFUSED if self.fields else "ApplyRefused"


def refused_of(key: Id, manifest: Manifest, error: KubeError) -> Refused:
    """With the fields of the resource that asked for what is refused: rights, quotas and policies are nobody's field."""
    ref = Ref.of(manifest)
    component = str((manifest["metadata"].get("labels") or {}).get(names.COMPONENT, ""))
    known = isinstance(error, RejectedError)
    return Refused(ref, error, fields_of(key.kind, ref.kind, component, error.details) if known else ())


class Executor:
    """One for all resources; remembers what it wrote of each."""

    def __init__(
        self,
        client: KubeClient,
        world: World,
        inventory: Inventory,
        resources: Resources,
        recorder: Recorder,
        metrics: OperatorMetrics,
        take: Step,
        *,
        identity: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """:param take: does one step on a pod.
        :param identity: of this operator among others; empty for the only one."""
        self.marks = Marks(client, resources, identity)
        self._client = client
        self._world = world
        self._inventory = inventory
        self._resources = resources
        self._recorder = recorder
        self._metrics = metrics
        self._take = take
        self._clock = clock
        self._applied: dict[Id, dict[Ref, Applied]] = {}
        self._told: dict[Id, tuple[bytes, bytes]] = {}
        self._told_at: dict[Id, float] = {}

    def forget(self, key: Id) -> None:
        """The resource is gone: nothing that was written for it counts any more."""
        self._applied.pop(key, None)
        self._told.pop(key, None)
        self._told_at.pop(key, None)

    async def carry_out(self, key: Id, resource: Manifest, plan: Plan) -> list[Refused]:
        """Everything but dropping the finalizer, which `marks` does when the caller is sure.

        :raises KubeError: where only time or a new look helps; what the server refuses for good is in the answer."""
        if plan.finalizer is Finalizer.KEEP:
            await self.marks.keep_finalizer(key, resource)
        refused: list[Refused] = []
        memory, uid = self._applied.setdefault(key, {}), str(resource["metadata"].get("uid") or "")
        for ref in plan.renew:
            memory.pop(ref, None)
        for wave in waves(plan.apply):
            refused += await self._apply_all(key, uid, memory, wave)
        for action in plan.actions:
            await self._take(key, action)
        for ref in plan.delete:
            await self._delete(memory, ref)
        return refused

    async def tell(self, key: Id, resource: Manifest, status: Mapping[str, Any]) -> float | None:
        """Writes the status, if it says anything new. Returns after how long it is to be written, if that is not now: numbers and words
        that change every moment wait for each other, no verdict does."""
        live = resource.get("status") or {}
        if not status or live == status or self._told.get(key) == (_digest(status), _digest(live)):
            return None
        quiet = min(QUIET_SECONDS_MAX, max(QUIET_SECONDS, len(self._told_at) / QUIET_WRITES_PER_SECOND))
        pause = self._told_at.get(key, -quiet) + quiet - self._clock()
        if pause > 0 and verdicts(live) == verdicts(status):
            return pause
        self._told_at[key] = self._clock()
        body = {**_head(OWN[key.kind], resource), "status": status}
        answer = await self._client.apply(body, subresource="status")
        self._told[key] = (_digest(status), _digest(answer.get("status") or {}))
        self._resources.put(key.kind, answer)
        return None

    async def events(self, resource: Manifest, plan: Plan, refused: list[Refused]) -> None:
        """Tells the events of a plan, and what was refused."""
        for event in plan.events:
            await self._recorder.tell(resource, event.type, event.reason, event.message)
        for one in refused:
            note = f"{one.ref.kind} {one.ref.namespace}/{one.ref.name}: {one.error.message}"
            await self._recorder.tell(resource, "Warning", one.reason, note)

    async def leave(self, resource: Manifest, other: str) -> None:
        """Another operator looks after it: two would undo each other's work for ever."""
        note = (
            f"operator {other} looks after this {resource['kind']}, and {self.marks.identity} leaves it alone. Install one operator for a "
            f"namespace. If {other} is no more: kubectl annotate {resource['kind'].lower()} {resource['metadata']['name']} {names.OPERATOR}-"
        )
        await self._recorder.tell(resource, "Warning", "OtherOperator", note)

    # manifests --------------------------------------------------------------------------------------------------------

    async def _apply_all(
        self, key: Id, uid: str, memory: dict[Ref, Applied], manifests: Sequence[Manifest]
    ) -> list[Refused]:
        """At once: how many requests there are at a time is the client's affair."""
        work = (self._apply(key, uid, memory, manifest) for manifest in manifests)
        results = await asyncio.gather(*work, return_exceptions=True)
        refused: list[Refused] = []
        for manifest, result in zip(manifests, results, strict=True):
            if isinstance(result, NotFoundError) and kind_of(manifest).optional:
                # Its API has gone, and discovery has not noticed yet: the other children do not wait for that.
                self._world.doubt(kind_of(manifest))
                refused.append(refused_of(key, manifest, result))
            elif isinstance(result, (NameTakenError, RejectedError, ForbiddenError)):
                refused.append(refused_of(key, manifest, result))
            elif isinstance(result, BaseException):
                raise result
        return refused

    async def _apply(self, key: Id, uid: str, memory: dict[Ref, Applied], manifest: Manifest) -> None:
        ref, wish = Ref.of(manifest), _wish(manifest)
        kind, known = kind_of(manifest), memory.get(ref)
        if known is not None and known.wish == wish and self._unchanged(kind, ref, known):
            self._metrics.applied.labels("skipped").inc()
            return
        status = manifest.get("status") if kind in OWN_KINDS else None
        try:
            whole = {k: v for k, v in manifest.items() if k != "status"} if status else manifest
            answer = await self._write(key, uid, ref, known, whole)
            if status:
                answer = await self._client.apply({**_head(kind, manifest), "status": status}, subresource="status")
        except NotFoundError:
            if kind.optional:
                self._world.discovery.forget()
            raise
        child, kept = self._inventory.child(ref), self._offer(kind, answer)
        digest = kept.digest if kept is not None else wish_digest({**answer, **_head_kind(kind)})
        drifted = known is not None and known.wish == wish and (child is None or child.digest != digest)
        self._metrics.applied.labels("repaired" if drifted else "applied").inc()
        memory[ref] = Applied(wish, digest, self._clock(), str(answer["metadata"].get("uid") or ""))

    async def _write(self, key: Id, uid: str, ref: Ref, known: Applied | None, manifest: Manifest) -> Document:
        """What is not known to be there is made, in one request that changes nothing where it is; only then it is looked at whose it is.
        :raises NameTakenError: if there is an object of this name that is not ours."""
        kind = kind_of(manifest)
        metadata = self._metadata(kind, ref)
        if metadata is None and known is not None and kind not in OWN_KINDS and not self._world.watches(kind):
            try:
                metadata = await self._client.metadata(kind, ref.namespace, ref.name)
            except NotFoundError:
                known = None
        if metadata is None:
            try:
                return await self._client.apply(manifest, only_new=True)
            except ConflictError as conflict:
                try:
                    metadata = await self._client.metadata(kind, ref.namespace, ref.name)
                except NotFoundError:
                    raise conflict from None
        if not is_ours(metadata, key, uid, known.uid if known is not None else ""):
            raise taken(ref, metadata, key)
        return await self._client.apply(manifest)

    def _metadata(self, kind: Kind, ref: Ref) -> Mapping[str, Any] | None:
        """Of the live object, where it is in a cache."""
        if kind in OWN_KINDS:
            live = self._resources.get(Id(ref.kind, ref.namespace, ref.name))
            return live["metadata"] if live is not None else None
        child = self._inventory.child(ref)
        return child.manifest["metadata"] if child is not None else None

    def _unchanged(self, kind: Kind, ref: Ref, known: Applied) -> bool:
        """Nobody has touched the object since we wrote it, as far as can be seen."""
        if kind in OWN_KINDS:
            live = self._resources.get(Id(ref.kind, ref.namespace, ref.name))
            return live is not None and wish_digest(live) == known.digest
        if not self._world.watches(kind):
            return self._clock() - known.at < UNWATCHED_SECONDS
        child = self._inventory.child(ref)
        return child is not None and child.digest == known.digest

    def _offer(self, kind: Kind, answer: Document) -> Child | None:
        if kind not in OWN_KINDS:
            return self._world.offer(kind, answer)
        self._resources.put(kind.name, answer)
        return None

    async def _delete(self, memory: dict[Ref, Applied], ref: Ref) -> None:
        memory.pop(ref, None)
        kind, child = BY_KEY[(ref.api_version, ref.kind)], self._inventory.child(ref)
        try:
            await self._client.delete(kind, ref.namespace, ref.name, uid=child.uid if child is not None else "")
        except (NotFoundError, ConflictError):
            return  # gone, or another object by now: the next look decides anew


def verdicts(status: Mapping[str, Any]) -> tuple[object, ...]:
    """Of which generation it speaks, and what it says of each condition but whether there is progress."""
    told = {
        one.get("type"): one.get("status") for one in status.get("conditions") or () if one.get("type") != "Progressing"
    }
    return status.get("observedGeneration"), told


def _wish(manifest: Mapping[str, Any]) -> bytes:
    """What is wished for; the version that it was decided on is none of it."""
    metadata = {k: v for k, v in manifest["metadata"].items() if k != "resourceVersion"}
    return _digest({**manifest, "metadata": metadata})


def _digest(value: object) -> bytes:
    return hashlib.blake2b(orjson.dumps(value, option=orjson.OPT_SORT_KEYS), digest_size=16).digest()


def _head_kind(kind: Kind) -> Document:
    return {"apiVersion": kind.api_version, "kind": kind.name}


def _head(kind: Kind, resource: Mapping[str, Any]) -> Document:
    """Which object: with its uid where that is known, so that nothing is written on another of the same name."""
    metadata = resource["metadata"]
    named = {name: metadata[name] for name in ("name", "namespace", "uid") if metadata.get(name)}
    return {**_head_kind(kind), "metadata": named}
