"""Taking our finalizers and our mark off everything, once: so that removing the operator first leaves no resource stuck.

Under the operator's Lease: an operator that still ran would put them back at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket

from kvcommons_operator import names
from kvcommons_operator.kube import connect
from kvcommons_operator.kube.client import Document, KubeClient
from kvcommons_operator.kube.election import Election
from kvcommons_operator.kube.errors import ConflictError, KubeError, NotFoundError
from kvcommons_operator.kube.kinds import DEPLOYMENT_OWN, LEASE, POOL, Kind
from kvcommons_operator.reconcile.ownership import other_operator
from kvcommons_operator.settings import OperatorSection

CONFLICTS_MAX = 5
NAMESPACE_DEFAULT = "kvcommons-system"
LEASES_MAX = 4
"""How many times a Lease's length an operator that is being stopped may take to give it back, or that of a killed one to run out."""
OURS = frozenset({names.POOL_FINALIZER, names.DEPLOYMENT_FINALIZER})

logger = logging.getLogger("kvcommons_operator")


async def release(settings: OperatorSection) -> int:
    """Returns the exit status: 1 if something could not be released, with a log of what."""
    configuration = await connect.load(settings.kubeconfig, settings.kube_context)
    client = KubeClient(connect.client_of(configuration))
    failed = 0
    own = settings.namespace or connect.own_namespace(NAMESPACE_DEFAULT)
    # Of a certain operator's namespace: another operator's resources are not ours to release. By hand: whatever there is.
    identity = f"{own}/{settings.lease_name}" if settings.namespace else ""
    election = Election(client, own, settings.lease_name, f"release-{socket.gethostname()}")
    try:
        if not await _nobody_leads(client, election, settings, own):
            return 1
        for kind in (DEPLOYMENT_OWN, POOL):
            for namespace in settings.namespaces or (None,):
                for item in await _items(client, kind, namespace):
                    failed += not await _released(client, kind, item, identity)
    except KubeError as error:
        logger.error("not everything is released: %s", error)
        failed += 1
    finally:
        await election.release()
        await client.close()
    return 1 if failed else 0


async def _nobody_leads(client: KubeClient, election: Election, settings: OperatorSection, namespace: str) -> bool:
    """Leads itself, where there is a Lease to lead by."""
    name = settings.lease_name
    try:
        await client.get(LEASE, namespace, name)
    except NotFoundError:
        return True
    try:
        await asyncio.wait_for(election.acquire(), LEASES_MAX * settings.lease_seconds)
    except TimeoutError:
        held = f"held by {election.holder}" if election.holder else "not to be had"
        logger.error(
            "the lease %s/%s is %s: scale the operator to 0 replicas first, or it would put the finalizers back",
            namespace,
            name,
            held,
        )
        return False
    return True


async def _items(client: KubeClient, kind: Kind, namespace: str | None) -> list[Document]:
    try:
        return await client.list(kind, namespace)
    except NotFoundError:
        return []  # no CRD, nothing to release


async def _released(client: KubeClient, kind: Kind, item: Document, identity: str) -> bool:
    """The mark goes with the finalizers: the next operator may take it over.

    :param identity: of the operator whose resources these are to be; empty for all."""
    metadata = item["metadata"]
    for _ in range(CONFLICTS_MAX):
        other = other_operator({"metadata": metadata}, identity)
        if other:
            logger.info("%s %s/%s is left to %s", kind.name, metadata["namespace"], metadata["name"], other)
            return True
        marked = names.OPERATOR in (metadata.get("annotations") or {})
        kept = [name for name in metadata.get("finalizers") or [] if name not in OURS]
        if not marked and kept == (metadata.get("finalizers") or []):
            return True
        change = {
            "metadata": {
                "resourceVersion": metadata["resourceVersion"],
                "finalizers": kept,
                "annotations": {names.OPERATOR: None},
            }
        }
        try:
            await client.merge(kind, metadata["namespace"], metadata["name"], change)
            logger.info("released %s %s/%s", kind.name, metadata["namespace"], metadata["name"])
            return True
        except NotFoundError:
            return True
        except ConflictError:
            metadata = (await client.get(kind, metadata["namespace"], metadata["name"]))["metadata"]
        except KubeError as error:
            logger.error("%s %s/%s is not released: %s", kind.name, metadata["namespace"], metadata["name"], error)
            return False
    return False
