"""What docs/examples shows is planned as it stands there: nothing that it refers to is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import operator_examples as examples
import pytest
import yaml
from kvcommons_operator.plan import plan_deployment

FILES = sorted((Path(__file__).resolve().parents[2] / "docs/examples").glob("*.yaml"))


def resources(file: Path, kind: str) -> list[dict[str, Any]]:
    """As the API server would have them in the namespace `default`, where they name no other."""
    found = [one for one in yaml.safe_load_all(file.read_text()) if one and one["kind"] == kind]
    for one in found:
        one["metadata"] = {"namespace": "default", "uid": f"uid-{one['metadata']['name']}", **one["metadata"]}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_deployment_of_an_example_gets_its_pool(file: Path) -> None:
    """Placement, namespaces and what the pool allows go together: the engines and the router are made."""
    pools = {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in resources(file, "KVCachePool")}
    labels = {one["metadata"]["name"]: one["metadata"].get("labels", {}) for one in resources(file, "Namespace")}
    for one in resources(file, "InferenceDeployment"):
        home, ref = one["metadata"]["namespace"], one["spec"].get("poolRef")
        pool = pools[(ref.get("namespace", home), ref["name"])] if ref else None
        world = examples.world(pool=pool, namespace_labels=labels.get(home, {}), apis=frozenset(examples.OPTIONAL))
        found = plan_deployment(one, world)
        told = [
            (it["type"], it["reason"], it["message"]) for it in found.status["conditions"] if it["status"] == "False"
        ]
        assert {made["kind"] for made in found.apply} >= {"Deployment", "Service"}, told
