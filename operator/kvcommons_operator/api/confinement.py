"""What the processes of pods and containers may do, as Kubernetes spells it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import EnvName, ListType, RelativePath, StrictBool, StrictInt

UserId = Annotated[StrictInt, Field(ge=0, le=2**31 - 1)]


class SeccompType(StrEnum):
    """Which seccomp profile confines the processes."""

    RUNTIME_DEFAULT = "RuntimeDefault"
    LOCALHOST = "Localhost"
    UNCONFINED = "Unconfined"


class SeccompProfile(Model):
    """Which system calls are allowed."""

    type: SeccompType
    """RuntimeDefault, a profile on the node (Localhost), or Unconfined."""
    localhost_profile: RelativePath | None = None
    """Path of the profile under the kubelet's seccomp directory, for type Localhost."""

    RULES = (
        Rule(
            cel="has(self.localhostProfile) == (self.type == 'Localhost')",
            message="localhostProfile goes with type Localhost, and only with it",
            holds=lambda it: (it.localhost_profile is not None) == (it.type == "Localhost"),
            field=".localhostProfile",
        ),
    )


class PodSecurity(Model):
    """Who the pod's processes run as."""

    run_as_user: UserId | None = None
    """User id of the processes."""
    run_as_group: UserId | None = None
    """Group id of the processes."""
    run_as_non_root: StrictBool | None = None
    """Whether the kubelet refuses to start a process as root."""
    fs_group: UserId | None = None
    """Group that owns the volumes' files."""
    supplemental_groups: Annotated[tuple[UserId, ...], Field(max_length=16), ListType("atomic")] = ()
    """More groups of the processes."""
    seccomp_profile: SeccompProfile | None = None
    """Which system calls are allowed."""


class Capabilities(Model):
    """Linux capabilities over and under the container runtime's own set."""

    add: Annotated[tuple[EnvName, ...], Field(max_length=16), ListType("atomic")] = ()
    """Capabilities to add, such as IPC_LOCK."""
    drop: Annotated[tuple[EnvName, ...], Field(max_length=16), ListType("atomic")] = ()
    """Capabilities to drop; ALL for every one."""


class ContainerSecurity(Model):
    """What the container's processes may do."""

    run_as_user: UserId | None = None
    """User id of the processes; over the pod's."""
    run_as_group: UserId | None = None
    """Group id of the processes; over the pod's."""
    run_as_non_root: StrictBool | None = None
    """Whether the kubelet refuses to start a process as root."""
    allow_privilege_escalation: StrictBool | None = None
    """Whether a process may gain more rights than its parent."""
    read_only_root_filesystem: StrictBool | None = None
    """Whether the image's own files can't be written."""
    capabilities: Capabilities | None = None
    """Linux capabilities to add and drop."""
    seccomp_profile: SeccompProfile | None = None
    """Which system calls are allowed; over the pod's."""
