"""Pods that claim by their labels to be a part of what stands in another namespace: nobody believes them, and no token is shown to them."""

from __future__ import annotations

from kvcommons_core.members import engine_member
from kvcommons_operator import names
from kvcommons_operator.observed import Container, Pod
from kvcommons_operator.reconcile.fence import addresses, members_of
from kvcommons_operator.reconcile.nodes import Address
from kvcommons_operator.reconcile.owners import Owner, owners_of_pod

POOL = {names.POOL_LABEL: "commons", names.POOL_NAMESPACE_LABEL: "llm"}
DEPLOYMENT = {names.DEPLOYMENT_LABEL: "chat", names.DEPLOYMENT_NAMESPACE_LABEL: "team"}


def pod(component: str, namespace: str, *containers: str) -> Pod:
    return Pod(
        namespace=namespace,
        name="chat-0",
        uid=f"{namespace}-{component}",
        node="machine-1",
        ip="10.0.0.1",
        phase="Running",
        labels={names.COMPONENT: component, **POOL},
        containers=tuple(Container(name=name) for name in containers),
    )


def test_a_pools_parts_are_in_its_namespace() -> None:
    """Whoever may make pods in another one can neither stop a roll nor count as a cache node."""
    node = {names.COMPONENT: names.CACHE_NODE, **POOL}
    assert owners_of_pod(node, "llm") == (Owner(names.POOL_KIND, "llm", "commons"),)
    assert owners_of_pod(node, "elsewhere") == ()


def test_of_a_deployment_only_the_router_may_be_elsewhere() -> None:
    """Engines are in the deployment's namespace; its router is beside a pool of another one."""
    chat = Owner(names.DEPLOYMENT_KIND, "team", "chat")
    engine = {names.COMPONENT: names.ENGINE, **DEPLOYMENT, **POOL}
    assert owners_of_pod(engine, "team") == (chat,)
    assert owners_of_pod(engine, "elsewhere") == ()
    router = {names.COMPONENT: names.ROUTER, **DEPLOYMENT, **POOL}
    assert owners_of_pod(router, "llm") == (chat, Owner(names.POOL_KIND, "llm", "commons"))


def test_a_stranger_speaks_for_no_cache_node() -> None:
    """Its end fences no machine of the pool, nor a node of its name; an engine of another namespace is still a member."""
    assert members_of(pod(names.CACHE_NODE, "llm")) == ("machine-1",)
    assert members_of(pod(names.CACHE_NODE, "elsewhere")) == ()
    assert members_of(pod(names.ENGINE, "elsewhere")) == (engine_member("chat-0"),)


def test_an_engine_without_a_cache_node_is_shown_no_token() -> None:
    """Its image is the user's: it would learn what opens the control API of the pool's nodes."""
    plain, holding = pod(names.ENGINE, "llm", "engine"), pod(names.ENGINE, "llm", "cache-node", "engine")
    assert addresses([plain], "token") == []
    assert addresses([holding], "token") == [Address("10.0.0.1", "token")]
