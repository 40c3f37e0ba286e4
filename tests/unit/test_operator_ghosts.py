"""An optional API whose definition is removed while the operator runs leaves nothing behind in what the operator sees."""

from __future__ import annotations

from fake_api import FakeApi, fake_api, until
from kvcommons_operator import names
from kvcommons_operator.kube import kinds
from kvcommons_operator.observed import Api
from kvcommons_operator.reconcile.inventory import Inventory
from kvcommons_operator.reconcile.owners import Owner, owner_of
from kvcommons_operator.reconcile.world import WATCHED, World

POOL = owner_of(names.POOL_KIND, "llm", "commons")
LABELS = {names.POOL_LABEL: "commons", names.POOL_NAMESPACE_LABEL: "llm", names.MANAGED_BY: names.MANAGER}
MONITORS = kinds.SERVICE_MONITOR.path()
API = Api(kinds.SERVICE_MONITOR.api_version, kinds.SERVICE_MONITOR.name)


def serve(api: FakeApi, *, monitors: bool) -> None:
    version = kinds.SERVICE_MONITOR.api_version
    groups = [{"versions": [{"groupVersion": version}]}] if monitors else []
    api.objects[""] = {"apis": {"groups": groups}}
    api.objects[f"/apis/{kinds.SERVICE_MONITOR.group}"] = {"v1": {"resources": [{"name": "servicemonitors"}]}}
    for kind in (*WATCHED, kinds.POD):
        api.objects.setdefault(kind.path(), {})


async def test_children_of_a_removed_api_are_gone_though_nobody_said_so() -> None:
    """A request that finds the API gone has it looked for anew; its children vanish with it, their owner is told, and no watch stays."""
    told: list[Owner] = []
    changes: list[int] = []
    inventory = Inventory(told.append, lambda old, new: None)
    async with fake_api() as (api, client):
        serve(api, monitors=True)
        api.put(MONITORS, "commons", metadata={"namespace": "llm", "labels": LABELS, "uid": "u"})
        world = World(client, (), inventory, lambda: changes.append(1))
        await world.start()
        try:
            assert API in world.apis
            assert [ref.name for ref in inventory.children(POOL)] == ["commons"]
            serve(api, monitors=False)
            del api.objects[MONITORS]
            told.clear()
            world.doubt(kinds.SERVICE)  # not optional: nobody asks
            world.doubt(kinds.SERVICE_MONITOR)
            await until(lambda: changes)
            assert inventory.children(POOL) == {}
            assert told == [POOL]
            assert API not in world.apis
            assert not world.watches(kinds.SERVICE_MONITOR)
            assert world.failed() is None
        finally:
            await world.stop()
