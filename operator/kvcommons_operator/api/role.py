"""InferenceRole: the engines of one role of an InferenceDeployment, with a `scale` of their own. The operator makes them."""

from __future__ import annotations

from enum import StrEnum

from kvcommons_operator.api.base import Model, Transition
from kvcommons_operator.api.common import ObjectName, Replicas


class RoleName(StrEnum):
    """A part of the work."""

    PREFILL = "prefill"
    DECODE = "decode"


class DeploymentRef(Model):
    """The InferenceDeployment that the role is of."""

    name: ObjectName
    """Name of the InferenceDeployment, in the same namespace."""


class InferenceRoleSpec(Model):
    """How many engines the role should have."""

    deployment_ref: DeploymentRef
    """The InferenceDeployment that the role is of."""
    role: RoleName
    """prefill reads prompts, decode writes answers."""
    replicas: Replicas = 1
    """How many engines; `kubectl scale` and autoscalers change it."""

    TRANSITIONS = (
        Transition(
            cel="self.role == oldSelf.role && self.deploymentRef == oldSelf.deploymentRef",
            message="role and deploymentRef can't be changed; the operator makes an InferenceRole for each role of an InferenceDeployment",
            holds=lambda old, new: old.role == new.role and old.deployment_ref == new.deployment_ref,
        ),
    )
