"""What a KVCachePool needs done: its children in order, the roll of its nodes, its end, and what is said about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from kvcommons_operator import conditions, names, pool_status, pool_view, rollout
from kvcommons_operator.api import InvalidResourceError, KVCachePool, Unbuilt, parse_pool, refused, unbuilt
from kvcommons_operator.api.pool import UpdateType
from kvcommons_operator.build import certificates, monitoring, node, policies, redis, secrets, services, size
from kvcommons_operator.build.meta import Owner
from kvcommons_operator.build.pool import Pool
from kvcommons_operator.naming import Naming
from kvcommons_operator.observed import Api, Manifest, PoolObserved, Ref
from kvcommons_operator.outcome import Event, Finalizer, Plan

USERS_NAMED_MAX: Final = 16
DELETE_SECONDS: Final = 2.0
KEPT_KINDS: Final = frozenset({"Secret", names.ROLE_KIND})
"""Whose objects only go with their owner: content that was derived, and roles, which no deployment can take away."""


def plan(resource: Manifest, observed: PoolObserved) -> Plan:
    """What a KVCachePool needs done now."""
    if "deletionTimestamp" in resource["metadata"]:
        return _plan_deletion(resource, observed)
    finalizer = Finalizer.KEEP if observed.users else Finalizer.DROP
    try:
        parsed = parse_pool(resource)
    except InvalidResourceError as error:
        message = conditions.listed([str(problem) for problem in error.problems])
        return _refused(resource, observed, "InvalidSpec", message, finalizer)
    gaps = refused(parsed.spec)
    if gaps:
        message = conditions.listed([f"{gap.field}: {gap.message}" for gap in gaps])
        return _refused(resource, observed, gaps[0].reason, message, finalizer)
    return _plan_wanted(resource, parsed, observed, finalizer)


def pool_of(resource: Manifest, parsed: KVCachePool, observed: PoolObserved) -> Pool:
    """The pool as builders see it."""
    return Pool(owner=Owner.of(resource), spec=parsed.spec, install=observed.install)


@dataclass(frozen=True)
class Wanted:
    """The children of a pool, and what was asked for and can't be made here."""

    manifests: tuple[Manifest, ...]
    missing: tuple[Api, ...]
    whole: tuple[Manifest, ...]
    """And those: an API that is away for a moment (an API server that begins) is no wish that nothing of it be left."""


def children(pool: Pool, apis: frozenset[Api]) -> Wanted:
    """All children, in the order in which they need each other."""
    root = pool.install.root_secret
    found: list[Manifest] = [secrets.node_keys(pool.owner, root)]
    if pool.spec.tenancy.salt_secret_ref is None:
        found.append(secrets.salt(pool.owner, root))
    index = pool.managed_index()
    if index is not None:
        found += redis.build(index)
    found += [*policies.index(pool), *policies.nodes(pool), *policies.index_budget(pool)]
    if pool.per_node:
        found += [services.nodes(pool), node.daemon_set(pool)]
    optional = [*certificates.certificate(pool), *monitoring.pool_monitors(pool)]
    missing = dict.fromkeys(api for one in optional if (api := Api(one["apiVersion"], one["kind"])) not in apis)
    whole = (*found, *optional)
    found += [one for one in optional if Api(one["apiVersion"], one["kind"]) in apis]
    return Wanted(tuple(found), tuple(missing), whole)


def _plan_wanted(resource: Manifest, parsed: KVCachePool, observed: PoolObserved, finalizer: Finalizer) -> Plan:
    pool = pool_of(resource, parsed, observed)
    wanted = children(pool, observed.apis)
    daemon_set = next((one for one in wanted.manifests if one["kind"] == "DaemonSet"), None)
    naming = _naming(resource, wanted.manifests)
    roll = _roll(pool, daemon_set, observed, naming)
    view = pool_view.View(
        pool=pool,
        observed=observed,
        roll=roll,
        daemon_set=_live(daemon_set, observed),
        notes=_notes(unbuilt(parsed.spec), wanted.missing),
        naming=naming,
    )
    found = pool_status.judge(view)
    events = [*conditions.events(found, resource), *(missing_api(api) for api in wanted.missing)]
    if roll is not None and roll.losing:
        events.append(Event(type="Warning", reason="ContentLost", message=roll.losing))
    return Plan(
        apply=wanted.manifests,
        delete=unwanted(observed.children, wanted.whole),
        actions=roll.actions if roll is not None else (),
        status=pool_status.status(view, found, resource),
        events=tuple(events),
        finalizer=finalizer,
        requeue_seconds=roll.requeue_seconds if roll is not None else None,
        puzzles=view.puzzles,
        renew=tuple(ref for ref in view.missing_secrets if ref in {Ref.of(one) for one in wanted.manifests}),
    )


def _naming(resource: Manifest, wanted: Iterable[Manifest]) -> Naming:
    made = frozenset(one["metadata"]["name"] for one in wanted if one["kind"] == "Secret")
    return Naming((("", resource.get("spec") or {}),), made)


def _roll(pool: Pool, daemon_set: Manifest | None, observed: PoolObserved, naming: Naming) -> rollout.Roll | None:
    live = _live(daemon_set, observed)
    if daemon_set is None or live is None:
        return None
    pods = [pod for pod in observed.pods if pod.labels.get(names.COMPONENT) == names.CACHE_NODE]
    template = daemon_set["spec"]["template"]
    wanted = template["metadata"]["annotations"][names.TEMPLATE_HASH]
    applied = live["spec"]["template"]["metadata"].get("annotations", {}).get(names.TEMPLATE_HASH)
    strategy = pool.spec.update_strategy
    rules = rollout.Rules(
        desired=(live.get("status") or {}).get("desiredNumberScheduled", 0),
        # A pod deleted before the new template is in force would come back as it was.
        rolling=applied == wanted and strategy.type == UpdateType.ROLLING_ONE,
        release_outdated=strategy.type != UpdateType.ROLLING_ONE,
        flush_seconds_max=float(strategy.drain_seconds),
        now=observed.now,
        naming=naming,
        size=size.size_of(template),
        unresizable=observed.unresizable,
    )
    return rollout.roll_nodes(pods, wanted, observed.nodes, rules)


def _live(manifest: Manifest | None, observed: PoolObserved) -> Manifest | None:
    return observed.children.get(Ref.of(manifest)) if manifest is not None else None


def unwanted(live: dict[Ref, Manifest] | Any, wanted: Sequence[Manifest]) -> tuple[Ref, ...]:
    """Children that exist and are wished for no more; not those that are going already."""
    refs = {Ref.of(one) for one in wanted}
    return tuple(
        sorted(
            ref
            for ref, child in live.items()
            if ref not in refs and ref.kind not in KEPT_KINDS and "deletionTimestamp" not in child["metadata"]
        )
    )


def missing_api(api: Api) -> Event:
    """What to do about an API that is asked for and not there."""
    return Event(type="Warning", reason="ApiMissing", message=missing_text(api))


def missing_text(api: Api) -> str:
    """The same as a sentence."""
    return (
        f"{api.kind} is asked for, and this cluster does not serve {api.api_version}: install what brings it, "
        "or leave the field out; it is made as soon as the API is there"
    )


def _notes(gaps: Sequence[Unbuilt], missing: Sequence[Api]) -> tuple[str, ...]:
    return (*(f"{gap.field}: {gap.message}" for gap in gaps), *(missing_text(api) for api in missing))


def _refused(resource: Manifest, observed: PoolObserved, reason: str, message: str, finalizer: Finalizer) -> Plan:
    """Nothing is made and nothing is changed; what is there goes on as it was."""
    found = pool_status.refusal(reason, message)
    return Plan(
        status=pool_status.bare(found, resource, observed),
        events=tuple(conditions.events(found, resource)),
        finalizer=finalizer,
    )


# The end --------------------------------------------------------------------------------------------------------------


def _plan_deletion(resource: Manifest, observed: PoolObserved) -> Plan:
    """Nothing is created any more. A pool in use stays; else its nodes go first, then its index, then the pool."""
    if observed.users:
        users = [f"{user.namespace}/{user.name}" for user in observed.users]
        shown = ", ".join(users[:USERS_NAMED_MAX])
        more = f" and {len(users) - USERS_NAMED_MAX} more" if len(users) > USERS_NAMED_MAX else ""
        message = (
            f"still used by {len(users)} InferenceDeployments: {shown}{more}. Delete them, or let their poolRef name another "
            "pool; this one then goes by itself"
        )
        found = pool_status.deletion("PoolInUse", message)
        return Plan(
            status=pool_status.bare(found, resource, observed),
            events=(Event(type="Warning", reason="PoolInUse", message=message),),
            finalizer=Finalizer.KEEP,
        )
    going = _first_to_go(observed)
    found = pool_status.deletion("Deleting", "its cache nodes go first, then its index")
    return Plan(
        delete=going,
        status=pool_status.bare(found, resource, observed),
        finalizer=Finalizer.KEEP if going or _nodes_left(observed) else Finalizer.DROP,
        requeue_seconds=DELETE_SECONDS,
    )


def _nodes_left(observed: PoolObserved) -> bool:
    """Those on machines that are gone are not waited for."""
    nodes = [pod for pod in observed.pods if pod.labels.get(names.COMPONENT) == names.CACHE_NODE]
    return any(not rollout.is_lost(pod, observed.now) for pod in nodes)


def _first_to_go(observed: PoolObserved) -> tuple[Ref, ...]:
    """The nodes' DaemonSet until the last of its pods is gone; then everything else."""
    live = {ref: one for ref, one in observed.children.items() if "deletionTimestamp" not in one["metadata"]}
    nodes = tuple(sorted(ref for ref in live if ref.kind == "DaemonSet"))
    if nodes or _nodes_left(observed):
        return nodes
    return tuple(sorted(ref for ref in live if ref.kind in ("StatefulSet", "Deployment")))
