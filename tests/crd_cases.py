"""Every rule of the resources with a spec that breaks it and one that keeps it; and every rule about changes."""

from __future__ import annotations

from typing import Any, Final

from crd_case import COMMIT, ROLES, Case, Change, Spec
from crd_cases_deployment import DEPLOYMENT_CASES
from crd_cases_pool import POOL_CASES
from kvcommons_operator.api import InferenceDeployment, InferenceRole

CASES: Final[tuple[Case, ...]] = POOL_CASES + DEPLOYMENT_CASES


def _external(**fields: Any) -> Spec:
    return {"index": {"external": fields}}


CHANGES: Final = (
    Change("placement can't be changed", {}, {"placement": "perNode"}, {"logLevel": "debug"}, "spec.placement"),
    Change("chunkTokens can't be changed", {}, {"chunkTokens": 512}, {"chunkTokens": 256}, "spec.chunkTokens"),
    Change(
        "a managed index can't become an external one",
        {"index": {"managed": {}}},
        {"index": {"managed": None, "external": {"url": "redis://r"}}},
        {"index": {"managed": {"replicas": 3}}},
        "spec.index",
    ),
    Change(
        "keyPrefix can't be changed",
        _external(url="redis://r"),
        _external(url="redis://r", keyPrefix="a:"),
        _external(url="rediss://other:1/2"),
        "spec.index.external.keyPrefix",
    ),
    Change(
        "poolRef.namespace can't be changed",
        {"poolRef": {"name": "p", "namespace": "n"}},
        {"poolRef": {"name": "p", "namespace": "m"}},
        {"poolRef": {"name": "q"}},
        "spec.poolRef",
        InferenceDeployment,
    ),
    Change(
        "roles can't be added or taken away",
        {"poolRef": {"name": "p"}},
        {"poolRef": {"name": "p"}, "roles": ROLES},
        {"model": {"revision": COMMIT}},
        "spec.roles",
        InferenceDeployment,
    ),
    Change("role and deploymentRef can't be changed", {}, {"role": "decode"}, {"replicas": 7}, "spec", InferenceRole),
)
