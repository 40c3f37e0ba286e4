"""What the control API does, over the core and the index link."""

from __future__ import annotations

import inspect
import logging
import time
from contextlib import AbstractContextManager
from typing import Protocol

from pydantic import BaseModel

from kvcommons_node import fingerprints
from kvcommons_node.api import models, refusals
from kvcommons_node.api.models_cluster import ClusterAnswer, ClusterRequest
from kvcommons_node.api.models_jobs import CancelRequest, JobAnswer, JobEntry, JobsAnswer, JobsQuery, PrewarmRequest
from kvcommons_node.api.models_move import FetchRequest, MoveRequest
from kvcommons_node.api.models_pins import PinAnswer, PinRequest, PinsAnswer, PinsQuery, UnpinAnswer, UnpinRequest
from kvcommons_node.api.models_recode import CompressRequest, DecompressRequest
from kvcommons_node.api.models_requests import EventsQuery, RequestsAnswer, RequestsQuery
from kvcommons_node.api.models_select import ClearAnswer, ClearRequest, LookupAnswer, LookupRequest
from kvcommons_node.api.models_size import ResizeAnswer, ResizeRequest
from kvcommons_node.cluster import Cluster, Credentials
from kvcommons_node.engines import Engines
from kvcommons_node.feed import Feed, Watcher
from kvcommons_node.history import History, Sights
from kvcommons_node.jobs import Jobs
from kvcommons_node.long_work import LongWork
from kvcommons_node.metrics import NodeMetrics
from kvcommons_node.model_names import ModelNames
from kvcommons_node.pinning import Pinning
from kvcommons_node.pool_view import PoolView
from kvcommons_node.pump import EventSink
from kvcommons_node.reports import Reports
from kvcommons_node.seam import Core, KnownFingerprint
from kvcommons_node.selecting import Selecting
from kvcommons_node.size import Sizing

PEERS_SHOWN_MAX = 64

logger = logging.getLogger(__name__)


class IndexLink(EventSink, Protocol):
    """The node's side of the Redis index."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def status(self) -> models.IndexStatus: ...

    async def fence_members(self, members: list[str], reason: str) -> list[str]:
        """Voids what the members published. Returns those that the index knows.

        :raises IndexUnavailableError: if Redis does not answer."""
        ...

    async def hold(self) -> None:
        """Leaves the index until the next start or `release`: everything published is void, and nothing more is."""
        ...

    def release(self) -> None:
        """Takes its place in the index again after a hold, and publishes what it holds."""
        ...


class NoIndex:
    """A node without Redis: it serves the engines of its machine, and nobody else hears of it."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    def committed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None: ...
    def freed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...]) -> None: ...
    def placed(self, key: bytes, fingerprint: bytes, text_keys: tuple[int, ...], tier: str) -> None: ...
    def feedback(self, report: str) -> None: ...
    def begin_epoch(self, reason: str) -> None: ...

    def __init__(self) -> None:
        self._held = False

    async def fence_members(self, members: list[str], reason: str) -> list[str]:
        return []

    async def hold(self) -> None:
        self._held = True

    def release(self) -> None:
        self._held = False

    def status(self) -> models.IndexStatus:
        return models.IndexStatus(
            state="off", detail="no index.url is set: only this machine's engines share", held=self._held
        )


class Control:
    """The operations of the control API. One per daemon."""

    def __init__(
        self,
        core: Core,
        index: IndexLink,
        pinning: Pinning,
        sizing: Sizing,
        *,
        node_id: str,
        version: str,
        socket_path: str,
        multi_tenant: bool,
        namespace_secret: bytes,
        models: ModelNames,
        pool: PoolView,
        engines: Engines,
        credentials: Credentials,
    ) -> None:
        self._core = core
        self._index = index
        self._pinning = pinning
        self._sizing = sizing
        self._node_id = node_id
        self._version = version
        self._socket_path = socket_path
        self._multi_tenant = multi_tenant
        self.models = models
        self._selecting = Selecting(core, pinning, pool, namespace_secret, self._fingerprints, models, engines)
        self._started = time.monotonic()
        self._serving = False
        self.node_metrics = NodeMetrics(self._core_stats, index.status, self._tiers, self._peers)
        self.reports = Reports(history=History(self._sights))
        self.feed = Feed()
        self._cluster = Cluster(pool, node_id, credentials, self._here)
        self._jobs = Jobs(lambda fields: self.feed.tell("job", fields))
        self._work = LongWork(core, node_id, self._selecting, engines, self._cluster, self._jobs)

    def set_serving(self, serving: bool) -> None:
        """Whether engines may attach: from the core's start to the beginning of the stop."""
        self._serving = serving

    def health(self) -> models.HealthAnswer:
        return models.HealthAnswer()

    def ready(self) -> models.ReadyAnswer:
        index = self._index.status()
        reason = "" if self._serving else "the core is not serving"
        if self._serving and index.state == "disconnected":
            reason = f"serving this machine's engines only: {index.detail}"
        tiers = self._tiers()
        ill = [f"the {tier.name} tier is {tier.health}: {tier.detail}" for tier in tiers if tier.health != "serving"]
        return models.ReadyAnswer(
            ready=self._serving,
            reason="; ".join([*([reason] if reason else []), *ill]),
            adopted=self._serving and self._core.adopted,
            index=index,
            tiers=tiers,
        )

    def stats(self) -> models.StatsAnswer:
        return models.StatsAnswer(
            node_id=self._node_id,
            version=self._version,
            adopted=self._serving and self._core.adopted,
            uptime_seconds=round(time.monotonic() - self._started, 3),
            socket_path=self._socket_path,
            multi_tenant=self._multi_tenant,
            index=self._index.status(),
            fingerprints=fingerprints.listing(self._fingerprints(), models_of=self.models.of),
            tiers=self._tiers(),
            peers=self._peers()[:PEERS_SHOWN_MAX],
            core=self._core_stats(),
        )

    def metrics(self) -> tuple[bytes, str]:
        return self.node_metrics.render()

    async def lookup(self, request: LookupRequest) -> LookupAnswer:
        return await self._selecting.lookup(request)

    async def clear(self, request: ClearRequest) -> ClearAnswer:
        answer = await self._selecting.clear(request)
        if request.all and not request.tiers:
            # One fence instead of as many removals as there were chunks.
            self._index.begin_epoch("cleared")
        return answer.model_copy(update={"epoch": self._index.status().epoch})

    async def pin(self, request: PinRequest) -> PinAnswer:
        """:raises Refusal: if nothing of it is here, or a limit would be passed."""
        known = self._fingerprints()
        fingerprint, keys = await self._selecting.chain(request)
        chunk_bytes = next((used // chunks for one, chunks, used, _ in known if one == fingerprint and chunks), 0)
        return await self._pinning.pin(fingerprint, keys, chunk_bytes, request.name, request.ttl_seconds)

    async def unpin(self, request: UnpinRequest) -> UnpinAnswer:
        return await self._pinning.unpin(request.name)

    def pins(self, query: PinsQuery) -> PinsAnswer:
        return self._pinning.page(query.after, query.limit)

    async def prewarm(self, request: PrewarmRequest) -> JobAnswer:
        return await self._work.prewarm(request)

    async def move(self, request: MoveRequest) -> JobAnswer:
        return await self._work.move(request)

    async def fetch(self, request: FetchRequest) -> JobAnswer:
        return await self._work.fetch(request)

    async def compress(self, request: CompressRequest) -> JobAnswer:
        return await self._work.compress(request)

    async def decompress(self, request: DecompressRequest) -> JobAnswer:
        return await self._work.decompress(request)

    def jobs(self, query: JobsQuery) -> JobsAnswer:
        return self._jobs.page(query)

    async def cancel(self, request: CancelRequest) -> JobEntry:
        """:raises Refusal: if there is no such job."""
        return await self._jobs.cancel(request.job)

    async def close(self) -> None:
        """Ends every job, and what is asked of others."""
        await self._jobs.close()
        await self._cluster.close()

    def requests(self, query: RequestsQuery) -> RequestsAnswer:
        return self.reports.page(query)

    def events(self, query: EventsQuery) -> AbstractContextManager[Watcher]:
        """:raises Refusal: of an unknown kind, or when too many follow."""
        return self.feed.watch(query.kinds)

    def close_events(self) -> None:
        """Every stream of events ends."""
        self.feed.close()

    async def cluster(self, request: ClusterRequest) -> ClusterAnswer:
        """:raises Refusal: as the operation, or without an index. :raises IndexUnavailableError: if Redis is away."""
        return await self._cluster.call(request)

    async def _here(self, operation: str, asked: BaseModel | None) -> BaseModel:
        """One operation of those that go to every node, on this one."""
        call = getattr(self, operation)
        answer = call(asked) if asked is not None else call()
        found: BaseModel = await answer if inspect.isawaitable(answer) else answer
        return found

    async def fence(self, request: models.FenceRequest) -> models.FenceAnswer:
        """:raises Refusal: if others are to be held. :raises IndexUnavailableError: if Redis does not answer."""
        others = [name for name in request.members if name != self._node_id]
        if request.hold:
            if others:
                raise refusals.not_itself(", ".join(others), self._node_id)
            logger.info("leaving the index until the next start: %s", request.reason)
            await self._index.hold()
            return models.FenceAnswer(fenced=[self._node_id], unknown=[], held=True)
        if request.release:
            logger.info("taking its place in the index again: %s", request.reason)
            self._index.release()
        if self._node_id in request.members:
            logger.info("everything published is void: %s", request.reason)
            self._index.begin_epoch("asked_for")  # not the caller's words: this becomes the label of a metric
        known = await self._index.fence_members(others, request.reason)
        own = [self._node_id] if self._node_id in request.members else []
        return models.FenceAnswer(
            fenced=own + known, unknown=[name for name in others if name not in known], held=self._index.status().held
        )

    def resize(self, request: ResizeRequest) -> ResizeAnswer:
        """:raises Refusal: if the content would be lost, or the size is not possible here."""
        return self._sizing.resize(request)

    def _fingerprints(self) -> list[KnownFingerprint]:
        return self._core.fingerprints() if self._serving else []

    def _tiers(self) -> list[models.TierStatus]:
        known = self._core.tiers() if self._serving else []
        return [
            models.TierStatus(name=name, health=models.TIER_HEALTH[health], detail=why, counters=counters)
            for name, health, why, counters in known
        ]

    def _peers(self) -> list[models.PeerStatus]:
        known = self._core.peers() if self._serving else []
        shown = [
            models.PeerStatus(name=name, address=f"{host}:{port}", usable=usable, detail=why, counters=counters)
            for name, host, port, usable, why, counters in known
        ]
        return sorted(shown, key=lambda peer: (not any(peer.counters.values()), peer.name))

    def _sights(self) -> Sights:
        known = self._core.peers() if self._serving else []
        unusable = frozenset(name for name, _, _, usable, *_ in known if not usable)
        return Sights(self._core_stats().get("peer_skipped_slow", 0), unusable)

    def _core_stats(self) -> dict[str, int]:
        return self._core.stats() if self._serving else {}
