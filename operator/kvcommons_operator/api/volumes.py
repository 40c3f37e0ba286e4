"""Volumes that a user adds to engines' pods, as Kubernetes spells them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import (
    EMPTY,
    AbsolutePath,
    Image,
    KeyName,
    Label,
    ListType,
    LocalRef,
    ObjectName,
    QualifiedName,
    RelativePath,
    StrictBool,
    StrictInt,
)
from kvcommons_operator.api.quantities import Size

Mode = Annotated[StrictInt, Field(ge=0, le=0o777)]


class KeyToPath(Model):
    """A key and the file that it becomes."""

    key: KeyName
    """Key in the data."""
    path: RelativePath
    """Name of the file in the volume."""


Items = Annotated[tuple[KeyToPath, ...], Field(max_length=64), ListType("atomic")]


class ConfigMapVolume(Model):
    """Files from a ConfigMap."""

    name: ObjectName
    """Name of the ConfigMap."""
    items: Items = ()
    """Which keys, and as what; all when empty."""
    default_mode: Mode | None = None
    """Permissions of the files, as a decimal number."""
    optional: StrictBool | None = None
    """Whether pods start without it."""


class SecretVolume(Model):
    """Files from a Secret."""

    secret_name: ObjectName
    """Name of the Secret."""
    items: Items = ()
    """Which keys, and as what; all when empty."""
    default_mode: Mode | None = None
    """Permissions of the files, as a decimal number."""
    optional: StrictBool | None = None
    """Whether pods start without it."""


class Medium(StrEnum):
    """Where an emptyDir is."""

    DISK = ""
    MEMORY = "Memory"
    HUGE_PAGES = "HugePages"


class EmptyDirVolume(Model):
    """An empty directory that ends with the pod."""

    medium: Medium = Medium.DISK
    """Memory for a tmpfs, HugePages for huge pages, empty for the node's disk."""
    size_limit: Annotated[str, Size("1", "1Pi")] | None = None
    """Size at which the pod is evicted."""


class ClaimVolume(Model):
    """A PersistentVolumeClaim."""

    claim_name: ObjectName
    """Name of the claim."""
    read_only: StrictBool = False
    """Whether it is mounted for reading alone."""


class HostPathType(StrEnum):
    """What a host path must be."""

    ANY = ""
    DIRECTORY_OR_CREATE = "DirectoryOrCreate"
    DIRECTORY = "Directory"
    FILE_OR_CREATE = "FileOrCreate"
    FILE = "File"
    SOCKET = "Socket"
    CHAR_DEVICE = "CharDevice"
    BLOCK_DEVICE = "BlockDevice"


class HostPathVolume(Model):
    """A path of the node. Pod Security levels baseline and restricted forbid it."""

    path: AbsolutePath
    """Path on the node."""
    type: HostPathType | None = None
    """What must be there, or is made."""


class NfsVolume(Model):
    """A directory of an NFS server."""

    server: Annotated[str, Field(min_length=1, max_length=253)]
    """Name or address of the server."""
    path: AbsolutePath
    """Path that it exports."""
    read_only: StrictBool = False
    """Whether it is mounted for reading alone."""


class CsiVolume(Model):
    """A volume that a CSI driver makes for the pod."""

    driver: ObjectName
    """Name of the driver."""
    read_only: StrictBool | None = None
    """Whether it is mounted for reading alone."""
    fs_type: Annotated[str, Field(max_length=64)] | None = None
    """File system."""
    volume_attributes: Annotated[dict[QualifiedName, Annotated[str, Field(max_length=1_024)]], Field(max_length=32)] = (
        EMPTY
    )
    """What the driver wants to know."""
    node_publish_secret_ref: LocalRef | None = None
    """A Secret for the driver."""


class PullPolicy(StrEnum):
    """When an image is pulled."""

    ALWAYS = "Always"
    IF_NOT_PRESENT = "IfNotPresent"
    NEVER = "Never"


class ImageVolume(Model):
    """The files of an OCI image."""

    reference: Image
    """The image; best with its digest."""
    pull_policy: PullPolicy | None = None
    """When it is pulled."""


SOURCES: Final = ("configMap", "secret", "emptyDir", "persistentVolumeClaim", "hostPath", "nfs", "csi", "image")


class Volume(Model):
    """A volume of the pod; exactly one source."""

    name: Label
    """Name, for volumeMounts. Names that begin with kvcommons- belong to the operator."""
    config_map: ConfigMapVolume | None = None
    """Files from a ConfigMap."""
    secret: SecretVolume | None = None
    """Files from a Secret."""
    empty_dir: EmptyDirVolume | None = None
    """An empty directory."""
    persistent_volume_claim: ClaimVolume | None = None
    """A PersistentVolumeClaim."""
    host_path: HostPathVolume | None = None
    """A path of the node."""
    nfs: NfsVolume | None = None
    """A directory of an NFS server."""
    csi: CsiVolume | None = None
    """A volume that a CSI driver makes."""
    image: ImageVolume | None = None
    """The files of an image."""

    RULES = (
        Rule(
            cel=" + ".join(f"(has(self.{source}) ? 1 : 0)" for source in SOURCES) + " == 1",
            message=f"give exactly one source: {', '.join(SOURCES)}",
            holds=lambda it: len(it.to_dict()) == 2,
        ),
        Rule(
            cel="!self.name.startsWith('kvcommons-')",
            message="volume names that begin with kvcommons- belong to the operator; take another name",
            holds=lambda it: not it.name.startswith("kvcommons-"),
            field=".name",
            reason="FieldValueForbidden",
        ),
    )


class VolumeMount(Model):
    """Where a volume is in the container."""

    name: Label
    """Name of the volume."""
    mount_path: AbsolutePath
    """Path in the container. /kvcommons, /run/kvcommons and what is under them belong to the operator."""
    sub_path: RelativePath | None = None
    """Path in the volume; its root when left out."""
    read_only: StrictBool = False
    """Whether it is mounted for reading alone."""

    RULES = (
        Rule(
            cel="!(self.mountPath + '/').startsWith('/kvcommons/') && !(self.mountPath + '/').startsWith('/run/kvcommons/')",
            message="/kvcommons and /run/kvcommons belong to the operator; mount the volume elsewhere",
            holds=lambda it: not f"{it.mount_path}/".startswith(("/kvcommons/", "/run/kvcommons/")),
            field=".mountPath",
            reason="FieldValueForbidden",
        ),
    )


Volumes = Annotated[tuple[Volume, ...], Field(max_length=32), ListType("map", "name")]
Mounts = Annotated[tuple[VolumeMount, ...], Field(max_length=32), ListType("map", "mount_path")]
