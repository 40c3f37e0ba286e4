"""What the operator keeps of the world: whose things are whose, what counts as a change, and what does not."""

from __future__ import annotations

from typing import Any

import pytest
from kvcommons_operator import names
from kvcommons_operator.kube import kinds
from kvcommons_operator.kube.watches import Change
from kvcommons_operator.observed import Pod, Ref
from kvcommons_operator.reconcile.inventory import Child, Inventory, keep_child, keep_pod, wish_digest
from kvcommons_operator.reconcile.owners import Owner, owner_of
from kvcommons_operator.reconcile.resources import Id, Resources, truth_changed, wish_changed

Document = dict[str, Any]
OF_POOL = {names.POOL_LABEL: "commons", names.POOL_NAMESPACE_LABEL: "llm"}
OF_CHAT = {names.DEPLOYMENT_LABEL: "chat", names.DEPLOYMENT_NAMESPACE_LABEL: "llm"}
POOL = Owner(names.POOL_KIND, "llm", "commons")
CHAT = Owner(names.DEPLOYMENT_KIND, "llm", "chat")


class Told:
    """An inventory, and whom it told of."""

    def __init__(self) -> None:
        self.owners: list[Owner] = []
        self.pods: list[tuple[Pod | None, Pod | None]] = []
        self.inventory = Inventory(self.owners.append, lambda old, new: self.pods.append((old, new)))
        self._last: dict[str, Child] = {}

    def service(self, name: str, labels: dict[str, str], **more: Any) -> None:
        self.child(kinds.SERVICE, name, labels, **more)

    def child(self, kind: kinds.Kind, name: str, labels: dict[str, str], **more: Any) -> None:
        item = {"metadata": {"name": name, "namespace": "llm", "uid": f"u-{name}", "labels": labels}, **more}
        self._change(name, keep_child(kind.key)(item))

    def gone(self, name: str) -> None:
        self._change(name, None)

    def _change(self, name: str, new: Child | None) -> None:
        old = self._last.pop(name, None)
        if new is not None:
            self._last[name] = new
        self.inventory.child_changed(Change(kinds.SERVICE, ("llm", name), old, new))


@pytest.fixture
def told() -> Told:
    return Told()


def ref(name: str) -> Ref:
    return Ref("v1", "Service", "llm", name)


def test_what_a_controller_notes_on_a_child_is_no_change_of_it() -> None:
    """The revision that Kubernetes writes on every Deployment is no drift; a note of somebody else still is."""

    def digest(**annotations: str) -> bytes:
        metadata = {"name": "chat-engine", "namespace": "llm", **({"annotations": annotations} if annotations else {})}
        return wish_digest({"metadata": metadata, "spec": {}})

    assert digest(**{"deployment.kubernetes.io/revision": "1"}) == digest()
    assert digest(own="1", **{"deployment.kubernetes.io/revision": "2"}) == digest(own="1")
    assert digest(own="1") != digest()


def test_children_are_found_by_their_owner(told: Told) -> None:
    """A deployment's child may name the pool as well, and is the deployment's alone."""
    told.service("nodes", OF_POOL, spec={"a": 1})
    told.service("chat", {**OF_CHAT, **OF_POOL}, spec={"b": 2})
    assert list(told.inventory.children(POOL)) == [ref("nodes")]
    assert told.inventory.children(CHAT)[ref("chat")]["spec"] == {"b": 2}
    told.gone("chat")
    assert told.inventory.children(CHAT) == {}
    assert told.inventory.child(ref("chat")) is None


def test_a_child_that_changes_its_labels_changes_its_owner(told: Told) -> None:
    """Both are told: the one lost something, the other got it."""
    told.service("one", OF_POOL)
    told.owners.clear()
    told.service("one", OF_CHAT)
    assert set(told.owners) == {POOL, CHAT}
    assert told.inventory.children(POOL) == {}


def test_what_only_the_server_writes_is_no_change(told: Told) -> None:
    """Versions and times move without anybody having changed a wish; a status is a change, but none of the wish."""
    told.child(kinds.DAEMON_SET, "one", OF_POOL, spec={"a": 1})
    told.owners.clear()
    told.child(kinds.DAEMON_SET, "one", OF_POOL, spec={"a": 1})
    assert told.owners == []
    told.child(kinds.DAEMON_SET, "one", OF_POOL, spec={"a": 1}, status={"ready": 1})
    assert told.owners == [POOL]
    before: Document = {"metadata": {"name": "x", "resourceVersion": "1"}, "spec": {}, "status": {"n": 1}}
    after: Document = {
        "metadata": {"name": "x", "resourceVersion": "2", "generation": 3},
        "spec": {},
        "status": {"n": 2},
    }
    assert wish_digest(before) == wish_digest(after)
    assert wish_digest(before) != wish_digest({**after, "spec": {"a": 1}})


@pytest.mark.parametrize("kind", [kinds.AUTOSCALER, kinds.DISRUPTION_BUDGET], ids=lambda kind: kind.name)
def test_nobody_is_woken_by_a_status_that_no_plan_reads(told: Told, kind: kinds.Kind) -> None:
    """An autoscaler writes what it measures every few seconds; a change of its wish still counts."""
    told.child(kind, "one", OF_POOL, spec={"a": 1}, status={"currentReplicas": 1})
    told.owners.clear()
    told.child(kind, "one", OF_POOL, spec={"a": 1}, status={"currentReplicas": 2})
    assert told.owners == []
    live = told.inventory.child(Ref(kind.api_version, kind.name, "llm", "one"))
    assert live is not None
    assert live.manifest["status"] == {"currentReplicas": 2}
    told.child(kind, "one", OF_POOL, spec={"a": 2}, status={"currentReplicas": 2})
    assert told.owners == [POOL]


def test_a_pod_is_seen_by_the_deployment_and_the_pool_that_it_holds_a_node_of(told: Told) -> None:
    """One of another namespace that claims to be the pool's is not."""
    labels = {names.COMPONENT: names.ENGINE, **OF_CHAT, **OF_POOL}
    pod = keep_pod({"metadata": {"name": "p", "namespace": "llm", "uid": "u", "labels": labels}})
    told.inventory.pod_changed(Change(kinds.POD, ("llm", "p"), None, pod))
    assert told.inventory.pods(CHAT) == told.inventory.pods(POOL) == (pod,)
    other = keep_pod({"metadata": {"name": "p", "namespace": "evil", "uid": "v", "labels": labels}})
    told.inventory.pod_changed(Change(kinds.POD, ("evil", "p"), None, other))
    assert told.inventory.pods(POOL) == (pod,)
    told.inventory.pod_changed(Change(kinds.POD, ("llm", "p"), pod, None))
    assert told.inventory.pods(CHAT) == told.inventory.pods(POOL) == ()
    assert told.pods[-1] == (pod, None)


def test_long_names_find_their_owner_by_the_label() -> None:
    """A label holds 63 characters: what is longer is shortened there, and found all the same."""
    name = "a" * 100
    resources = Resources()
    key, _, _ = resources.put(names.DEPLOYMENT_KIND, {"metadata": {"name": name, "namespace": "llm", "uid": "u"}})
    assert resources.of_owner(owner_of(*key)) == key
    assert len(owner_of(*key).name) <= 63


def deployment(version: int, **spec: Any) -> Document:
    metadata = {"name": "chat", "namespace": "llm", "uid": "u", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": spec}


def test_an_older_version_is_no_news() -> None:
    """Our own answers and kopf's stream race: the newer one stays."""
    resources = Resources()
    resources.put(names.DEPLOYMENT_KIND, deployment(7, replicas=2))
    key, old, new = resources.put(names.DEPLOYMENT_KIND, deployment(6, replicas=1))
    assert old is new
    assert (resources.get(key) or {})["spec"] == {"replicas": 2}


def test_users_of_a_pool_are_those_that_name_it() -> None:
    """In the same namespace unless another is named."""
    resources = Resources()
    resources.put(names.DEPLOYMENT_KIND, deployment(1, poolRef={"name": "commons"}, model={"name": "m"}))
    users = resources.users_of(Id(names.POOL_KIND, "llm", "commons"))
    assert [(user.name, user.models) for user in users] == [("chat", ("m",))]
    elsewhere = deployment(2, poolRef={"name": "commons", "namespace": "other"})
    resources.put(names.DEPLOYMENT_KIND, elsewhere)
    assert resources.users_of(Id(names.POOL_KIND, "llm", "commons")) == ()
    assert resources.users_of(Id(names.POOL_KIND, "other", "commons")) == ()


def test_a_guest_uses_a_pool_once_it_was_let_in() -> None:
    """Whoever is not allowed to use a pool keeps it from nothing by naming it; a guest that has a router beside it does."""
    resources, pool = Resources(), Id(names.POOL_KIND, "other", "commons")
    guest = deployment(1, poolRef={"name": "commons", "namespace": "other"})
    resources.put(names.DEPLOYMENT_KIND, guest)
    assert resources.users_of(pool) == ()
    let_in = deployment(2, poolRef={"name": "commons", "namespace": "other"})
    let_in["metadata"]["finalizers"] = [names.DEPLOYMENT_FINALIZER]
    resources.put(names.DEPLOYMENT_KIND, let_in)
    assert len(resources.users_of(pool)) == 1


def test_our_own_status_wakes_nobody_but_who_reads_it() -> None:
    """A status is no wish; a condition that changed is news to those who refer to the resource."""
    before = {**deployment(1, a=1), "status": {"replicas": 1, "conditions": []}}
    counted = {**deployment(2, a=1), "status": {"replicas": 2, "conditions": []}}
    ready = {**deployment(3, a=1), "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Ready"}]}}
    assert not wish_changed(before, counted)
    assert not truth_changed(before, counted)
    assert not wish_changed(before, ready)
    assert truth_changed(before, ready)
    assert wish_changed(before, deployment(4, a=2))
