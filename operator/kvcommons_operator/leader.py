"""What a leader runs: watches, kopf, workers, fencing, polls. Put together here, and nowhere else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, cast

import kopf
from kubernetes.aio.client import Configuration

from kvcommons_operator import handlers, names
from kvcommons_operator.build.secrets import control_token
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.errors import KubeError, NotFoundError
from kvcommons_operator.kube.events import Recorder
from kvcommons_operator.kube.kinds import OWN_API, OWN_KINDS
from kvcommons_operator.metrics import OperatorMetrics
from kvcommons_operator.observed import Install, NodeState, Pod
from kvcommons_operator.reconcile.act import Executor
from kvcommons_operator.reconcile.asked import is_node, is_pool, is_router, node_followed
from kvcommons_operator.reconcile.controller import Controller
from kvcommons_operator.reconcile.fence import Fencer, addresses
from kvcommons_operator.reconcile.inventory import Inventory
from kvcommons_operator.reconcile.nodes import Address, NodeClient
from kvcommons_operator.reconcile.observe import Observer
from kvcommons_operator.reconcile.owners import Owner, deployment_of, owner_of, owners_of_pod, pool_of
from kvcommons_operator.reconcile.ownership import other_operator
from kvcommons_operator.reconcile.poller import Poller, Target, node_settled, node_shape
from kvcommons_operator.reconcile.queue import WorkQueue
from kvcommons_operator.reconcile.resources import Id, Resources
from kvcommons_operator.reconcile.steps import Steps
from kvcommons_operator.reconcile.warnings import Warnings
from kvcommons_operator.reconcile.world import World
from kvcommons_operator.settings import OperatorSection

CRDS_SECONDS: Final = 2.0
HEALTH_SECONDS: Final = 1.0

logger = logging.getLogger(__name__)


class Leader:
    """Runs until it is stopped or a part of it ends, which none does by itself."""

    def __init__(
        self,
        client: KubeClient,
        configuration: Configuration,
        settings: OperatorSection,
        install: Install,
        identity: str,
        metrics: OperatorMetrics,
    ) -> None:
        self.ready = asyncio.Event()
        """Everything has been listed, and the workers are at work."""
        self.doing = "starting"
        self._client = client
        self._configuration = configuration
        self._settings = settings
        self._install = install
        self._metrics = metrics
        self._resources = Resources()
        self._queue: WorkQueue[Id] = WorkQueue(first=is_pool)
        self._node_client = NodeClient()
        self._fencer = Fencer(self._node_client, metrics, self._live_nodes)
        self._inventory = Inventory(self._owner_event, self._pod_changed)
        self._world = World(client, settings.namespaces, self._inventory, self._apis_changed)
        self._nodes: Poller[NodeState] = Poller(
            is_node,
            self._node_target,
            self._ask_node,
            node_shape,
            node_settled,
            self._queue.add,
            settings.node_polls_per_second_max,
            follow=node_followed,
        )
        self._routers: Poller[int | None] = Poller(
            is_router,
            self._router_target,
            self._ask_router,
            lambda count: count,
            bool,
            lambda key: self._queue.add(key, soon=True),
            settings.node_polls_per_second_max,
        )
        self._warnings = Warnings(client, self._queue.add, after_seconds=settings.events_after_seconds)
        steps = Steps(client, self._node_client, self._fencer, cache_nodes=self._cache_nodes, urge=self._nodes.urge)
        observer = Observer(
            client,
            install,
            self._world,
            self._inventory,
            self._resources,
            self._nodes.state,
            self._routers.state,
            self._warnings.of,
            steps.refusal,
        )
        recorder = Recorder(client, identity)
        executor = Executor(
            client,
            self._world,
            self._inventory,
            self._resources,
            recorder,
            metrics,
            steps.take,
            identity=install.identity,
        )
        self._controller = Controller(
            client,
            self._resources,
            observer,
            executor,
            self._queue,
            metrics,
            self._warnings,
            namespaces=self._world.namespaces,
            workers=settings.workers,
            resync_seconds=settings.resync_seconds,
        )
        metrics.watch_queue(lambda: float(len(self._queue)))
        metrics.watch_conditions(self._resources.conditions)

    async def run(self, stopping: asyncio.Event, on_started: Callable[[], None] = lambda: None) -> None:
        """Until `stopping`. :raises BaseExceptionGroup: if a part fails: the process ends then."""
        await self._await_crds()
        self.doing = "listing"
        stop_kopf, kopf_ready = asyncio.Event(), asyncio.Event()
        parts: list[Coroutine[Any, Any, None]] = [
            self._controller.run(),
            self._nodes.run(),
            self._routers.run(),
            self._warnings.run(),
            self._watch_parts(),
        ]
        await self._world.start()
        await self._controller.prime()
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(part) for part in parts]
                group.create_task(self._kopf(stop_kopf, kopf_ready))
                await kopf_ready.wait()
                on_started()
                self.doing = "reconciling"
                self.ready.set()
                await stopping.wait()
                self.doing = "stopping"
                self.ready.clear()
                for task in tasks:
                    task.cancel()
                stop_kopf.set()
        finally:
            await self._world.stop()
            await self._fencer.stop()
            await self._node_client.close()

    async def _await_crds(self) -> None:
        """Until our own kinds are served: the chart's CRDs may come after its operator."""
        wanted, told = {kind.plural for kind in OWN_KINDS}, False
        while True:
            try:
                answer = await self._client.request("GET", f"/apis/{OWN_API}")
                missing = wanted - {str(resource.get("name")) for resource in answer.get("resources") or []}
                if not missing:
                    return
                why = f"the CRDs of {', '.join(sorted(missing))} are not installed"
            except NotFoundError:
                why = f"the CRDs of {OWN_API} are not installed"
            except KubeError as error:
                why = str(error)
            self.doing = f"waiting: {why}; apply crds/"
            if not told:
                logger.warning("%s", self.doing)
                told = True
            await asyncio.sleep(CRDS_SECONDS)

    async def _kopf(self, stop: asyncio.Event, ready: asyncio.Event) -> None:
        registry = handlers.registry(self._configuration, self._controller.resource_event)
        namespaces = self._settings.namespaces
        await kopf.operator(
            registry=registry,
            settings=handlers.settings(),
            # Peering is off, but kopf would ask for the name of this user, which a container's user need not have.
            identity=cast(Any, names.MANAGER),
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            stop_flag=stop,
            ready_flag=ready,
        )
        if not stop.is_set():
            raise RuntimeError("kopf has ended by itself")

    async def _watch_parts(self) -> None:
        """A watch that ended is a defect: end the process rather than go on half blind."""
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            failure = self._world.failed()
            if failure is not None:
                raise failure
            for kind, count in self._inventory.counts().items():
                self._metrics.objects(kind, count)

    # how the parts see one another --------------------------------------------------------------------------------------

    def _owner_event(self, owner: Any) -> None:
        self._controller.owner_event(owner)

    def _pod_changed(self, old: Pod | None, new: Pod | None) -> None:
        self._fencer.pod_changed(old, new)
        self._nodes.pod_changed(old, new)
        self._routers.pod_changed(old, new)
        if (old is not None and old.ready) == (new is not None and new.ready):
            return
        pod = new or old
        for owner in owners_of_pod(pod.labels, pod.namespace) if pod is not None else ():
            if owner.kind == names.DEPLOYMENT_KIND:
                self._readiness_changed(owner, pod)

    def _readiness_changed(self, owner: Owner, pod: Pod | None) -> None:
        """Of a deployment's pod: what it is ready by."""
        key = self._resources.of_owner(owner)
        if key is not None:
            self._queue.add(key, soon=True)
        if pod is not None and pod.labels.get(names.COMPONENT) == names.ENGINE:
            # Its routers have one more to send to, or one less.
            for mate in filter(is_router, self._inventory.pods(owner)):
                self._routers.urge(mate.uid)

    def _apis_changed(self) -> None:
        self._controller.all()

    def _pool_of(self, pod: Pod) -> Id | None:
        """The pool whose index knows a pod's members: its label's, else its deployment's."""
        pool = pool_of(pod.labels, pod.namespace)
        if pool is not None:
            return self._resources.of_owner(pool)
        deployment = deployment_of(pod.labels, pod.namespace)
        key = self._resources.of_owner(deployment) if deployment is not None else None
        return self._resources.pool_of(self._resources.get(key)) if key is not None else None

    def _token(self, pool: Id) -> str | None:
        """None where the pool is gone, or another operator's: its nodes know another one."""
        resource = self._resources.get(pool)
        if resource is None or other_operator(resource, self._install.identity):
            return None
        return control_token(self._install.root_secret, resource["metadata"]["uid"])

    def _live_nodes(self, pod: Pod) -> Sequence[Address]:
        pool = self._pool_of(pod)
        token = self._token(pool) if pool is not None else None
        if pool is None or token is None:
            return ()
        return addresses(self._inventory.pods(owner_of(*pool)), token, without=pod)

    def _node_target(self, pod: Pod) -> Target | None:
        pool = self._owned_by(pod, names.POOL_KIND)
        token = self._token(pool) if pool is not None else None
        if pool is None or token is None:
            return None
        member = pod.node if pod.labels.get(names.COMPONENT) == names.CACHE_NODE else pod.name
        return Target(pool, pod, member, Address(pod.ip, token))

    def _router_target(self, pod: Pod) -> Target | None:
        deployment = self._owned_by(pod, names.DEPLOYMENT_KIND)
        return Target(deployment, pod, pod.name, Address(pod.ip, "", names.ROUTER_PORT)) if deployment else None

    def _owned_by(self, pod: Pod, kind: str) -> Id | None:
        owners = [owner for owner in owners_of_pod(pod.labels, pod.namespace) if owner.kind == kind]
        return self._resources.of_owner(owners[0]) if owners else None

    async def _ask_node(self, target: Target) -> NodeState:
        return await self._node_client.state(target.address, target.member)

    async def _ask_router(self, target: Target) -> int | None:
        return await self._node_client.routable(target.address)

    def _cache_nodes(self, key: Id) -> tuple[Sequence[Pod], str] | None:
        """Of a pool, or of the pool that a deployment uses."""
        pool = key if key.kind == names.POOL_KIND else self._resources.pool_of(self._resources.get(key))
        token = self._token(pool) if pool is not None else None
        if pool is None or token is None:
            return None
        return self._inventory.pods(owner_of(*pool)), token
