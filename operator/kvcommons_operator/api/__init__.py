"""The resources as models: `parse_pool(body)`, `parse_deployment(body)`, `unbuilt(spec)`.

common: the base model, rules, quantities and other bounded scalars. pods, scheduling, volumes: parts of pods. pool, index: KVCachePool.
deployment, model_source, engine, routing: InferenceDeployment. role: InferenceRole. status: what the operator says. resources: whole
objects and their reading. unbuilt: what is accepted but not done yet.
"""

from kvcommons_operator.api.base import API_VERSION, GROUP, VERSION
from kvcommons_operator.api.common import FailureMode
from kvcommons_operator.api.deployment import InferenceDeploymentSpec, count_or_share
from kvcommons_operator.api.pool import KVCachePoolSpec, Placement
from kvcommons_operator.api.quantities import parse_quantity, quantity_bytes
from kvcommons_operator.api.resources import (
    InferenceDeployment,
    InferenceRole,
    InvalidResourceError,
    KVCachePool,
    Problem,
    Resource,
    parse,
    parse_deployment,
    parse_pool,
    parse_role,
)
from kvcommons_operator.api.role import InferenceRoleSpec, RoleName
from kvcommons_operator.api.unbuilt import Unbuilt, Verdict, refused, unbuilt

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "FailureMode",
    "InferenceDeployment",
    "InferenceDeploymentSpec",
    "InferenceRole",
    "InferenceRoleSpec",
    "InvalidResourceError",
    "KVCachePool",
    "KVCachePoolSpec",
    "Placement",
    "Problem",
    "Resource",
    "RoleName",
    "Unbuilt",
    "Verdict",
    "count_or_share",
    "parse",
    "parse_deployment",
    "parse_pool",
    "parse_quantity",
    "parse_role",
    "quantity_bytes",
    "refused",
    "unbuilt",
]
