"""The model that an InferenceDeployment serves, and where its files come from."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import Field

from kvcommons_operator.api.base import Model, Rule
from kvcommons_operator.api.common import AbsolutePath, Image, ObjectName, RelativePath, SecretKeyRef
from kvcommons_operator.api.quantities import Spelt
from kvcommons_operator.api.volumes import PullPolicy

ModelName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")]
Repository = Annotated[
    str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9._-]+)?$")
]

NEVER_CHANGE: Final = (
    "revision must name weights that never change: a commit or a digest (7 characters or more), not a branch or a tag"
)
Revision = Annotated[str, Spelt(r"^[A-Za-z0-9][A-Za-z0-9._:+-]{6,127}$", NEVER_CHANGE, 128)]


class ClaimSource(Model):
    """Files in a PersistentVolumeClaim."""

    claim_name: ObjectName
    """A claim in the same namespace that all engine pods can mount for reading."""
    path: RelativePath | None = None
    """Directory of the model in the volume; its root when left out."""


class ImageSource(Model):
    """Files in an OCI image, mounted as an image volume (Kubernetes 1.33 with the feature gate ImageVolume, 1.35 without)."""

    reference: Image
    """The image; best with its digest."""
    path: RelativePath | None = None
    """Directory of the model in the image; its root when left out."""
    pull_policy: PullPolicy | None = None
    """When it is pulled; Kubernetes decides by the tag when left out."""


class HubSource(Model):
    """Files of a repository on a model hub, loaded by each engine when it starts."""

    repo: Repository
    """The repository, such as Qwen/Qwen3-8B."""
    token_secret_ref: SecretKeyRef | None = None
    """Key of a Secret whose value is a token for the hub."""
    endpoint: Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")] | None = None
    """URL of a mirror; the hub itself when left out."""


class LocalSource(Model):
    """Files that are in the engine's container already: in its image, or in a volume of podTemplate."""

    path: AbsolutePath
    """Directory of the model in the container."""


class ModelSource(Model):
    """Where the model's files come from; exactly one."""

    pvc: ClaimSource | None = None
    """A PersistentVolumeClaim."""
    image: ImageSource | None = None
    """An OCI image."""
    hub: HubSource | None = None
    """A repository on a model hub."""
    local: LocalSource | None = None
    """A directory of the engine's container."""

    RULES = (
        Rule(
            cel="(has(self.pvc) ? 1 : 0) + (has(self.image) ? 1 : 0) + (has(self.hub) ? 1 : 0) + (has(self.local) ? 1 : 0) == 1",
            message="give exactly one of pvc, image, hub and local",
            holds=lambda it: sum(x is not None for x in (it.pvc, it.image, it.hub, it.local)) == 1,
        ),
    )


def _commit(text: str | None) -> bool:
    return text is not None and len(text) == 40 and all(char in "0123456789abcdef" for char in text)


class ServedModel(Model):
    """The model that is served."""

    name: ModelName
    """Name that clients ask for."""
    revision: Revision | None = None
    """What never stands for other weights: a commit (40 hex digits, needed for hub) or a digest. A branch such as main is none. When left
    out, engines take a digest of every weight file when they start. KV is shared only between equal revisions; a new one restarts the
    engines."""
    source: ModelSource
    """Where its files come from."""

    RULES = (
        Rule(
            cel="!has(self.source.hub) || (has(self.revision) && self.revision.matches('^[0-9a-f]{40}$'))",
            message="source hub needs revision to be a commit of 40 hex digits, since a branch or a tag can move to other weights; "
            "the repository's page shows it beside each commit",
            holds=lambda it: it.source.hub is None or _commit(it.revision),
            field=".revision",
        ),
        Rule(
            cel="!has(self.revision) || !(self.revision in ['default', 'develop', 'release'])",
            message=NEVER_CHANGE,
            holds=lambda it: it.revision not in ("default", "develop", "release"),
            field=".revision",
        ),
    )
