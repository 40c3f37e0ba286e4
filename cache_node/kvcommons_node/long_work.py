"""What is asked of a node and takes long: prewarm, move, fetch, compress and decompress, each as a job."""

from __future__ import annotations

import asyncio

from kvcommons_core.limits import KEY_BYTES

from kvcommons_node.api import refusals_work
from kvcommons_node.api.models_jobs import JobAnswer, PrewarmRequest
from kvcommons_node.api.models_move import FetchRequest, MoveRequest
from kvcommons_node.api.models_recode import CompressRequest, DecompressRequest
from kvcommons_node.cluster import Cluster
from kvcommons_node.engines import Engines
from kvcommons_node.jobs import Jobs, Progress
from kvcommons_node.moving import Move
from kvcommons_node.moving_nodes import PEER, Fetch, Send
from kvcommons_node.prewarming import Prewarm
from kvcommons_node.recode import UNCODED
from kvcommons_node.recoding import Recode
from kvcommons_node.seam import MEMORY, Core
from kvcommons_node.selecting import Selecting


class LongWork:
    """One per daemon."""

    def __init__(
        self, core: Core, node_id: str, selecting: Selecting, engines: Engines, cluster: Cluster, jobs: Jobs
    ) -> None:
        self._core, self._node_id, self._selecting, self._engines = core, node_id, selecting, engines
        self._cluster, self._jobs = cluster, jobs
        self._recoding = asyncio.Lock()

    async def prewarm(self, request: PrewarmRequest) -> JobAnswer:
        """:raises Refusal: if no engine is known, or no job more is taken."""
        await self._engines.all()
        progress = Progress("documents", len(request.documents))
        return self._jobs.submit("prewarm", request.name, request, progress, Prewarm(request, self._engines))

    async def move(self, request: MoveRequest) -> JobAnswer:
        """:raises Refusal: of a place or a node that there is not, one place twice, or if no job more is taken."""
        fingerprint, keys = await self._selecting.chain(request)
        work: Move | Send
        if request.node is None:
            source = request.source or MEMORY
            self._selecting.check_move(source, request.target)
            work = Move(self._core, fingerprint, keys, source=source, target=request.target, keep=request.keep)
        else:
            self._check_send(request.node, request)
            work = Send(
                self._core,
                self._cluster.ask,
                fingerprint,
                keys,
                own=self._node_id,
                node=request.node,
                source=request.source,
                keep=request.keep,
            )
        return self._jobs.submit("move", request.name, request, Progress("chunks", len(keys) // KEY_BYTES), work)

    async def fetch(self, request: FetchRequest) -> JobAnswer:
        """:raises Refusal: of a node that is no peer, or if no job more is taken."""
        self._check_peer(request.node)
        # Another node asks, and says the whole fingerprint: this one may never have heard of it.
        whole = len(request.fingerprint) == 2 * KEY_BYTES and request.keys is not None
        if whole and request.keys is not None:
            fingerprint, keys = bytes.fromhex(request.fingerprint), bytes.fromhex("".join(request.keys))
        else:
            fingerprint, keys = await self._selecting.chain(request)
        fetch = Fetch(self._core, fingerprint, keys, node=request.node, layout=request.layout)
        return self._jobs.submit("fetch", request.name, request, Progress("chunks", len(keys) // KEY_BYTES), fetch)

    async def compress(self, request: CompressRequest) -> JobAnswer:
        """:raises Refusal: of a fingerprint, a model or a tier that there is not, or if no job more is taken."""
        return await self._recode("compress", request, request.codec)

    async def decompress(self, request: DecompressRequest) -> JobAnswer:
        """:raises Refusal: as `compress`."""
        return await self._recode("decompress", request, UNCODED)

    async def _recode(self, kind: str, request: DecompressRequest, codec: str) -> JobAnswer:
        self._selecting.check_tier(request.tier)
        work = Recode(
            self._core,
            self._recoding,
            codec,
            await self._selecting.meant(request),
            tier=request.tier or "",
            from_memory=request.from_memory,
            bytes_per_second_max=request.bytes_per_second_max,
        )
        return self._jobs.submit(kind, request.name, request, Progress("shards", 0), work)

    def _check_send(self, node: str, request: MoveRequest) -> None:
        if node == self._node_id:
            raise refusals_work.to_itself(node)
        if request.target != MEMORY:
            raise refusals_work.not_there_at_once(request.target)
        if request.source is not None:
            self._selecting.check_source(request.source)
        self._check_peer(node)

    def _check_peer(self, node: str) -> None:
        if PEER not in {name for name, *_ in self._core.tiers()}:
            raise refusals_work.no_peers()
        known = [name for name, *_ in self._core.peers()]
        if node not in known:
            raise refusals_work.unknown_node(node, sorted(known))
