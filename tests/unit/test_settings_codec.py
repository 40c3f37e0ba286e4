"""The codec of a tier: what is taken, and what is refused by name, value and remedy."""

from __future__ import annotations

import pytest
from kvcommons_core.settings_tiers import DiskTier
from kvcommons_node.plan import disk_of
from pydantic import ValidationError


def disk(**values: object) -> DiskTier:
    return DiskTier.model_validate({"type": "disk", "paths": ["/d"], "capacity_bytes": "1GiB", **values})


@pytest.mark.parametrize(
    ("given", "kept"),
    [("none", "none"), ("lossless", "lossless"), ("int4", "int4:group=32"), ("int4:group=64", "int4:group=64")],
)
def test_a_codec_is_kept_with_its_parameters(given: str, kept: str) -> None:
    """What reaches the core says all that it needs to know, also what was left out."""
    tier = disk(codec=given, lossy="allow")
    assert tier.codec == kept
    assert disk_of([tier])["codec"] == kept


def test_without_a_word_nothing_is_changed() -> None:
    """The engine's own bytes are written, and nothing that a codec changed may answer."""
    assert (disk().codec, disk().lossy) == ("none", "deny")


@pytest.mark.parametrize("codec", ["int8", "int4:group=16", "fp8-e4m3", "k16v8"])
def test_loss_is_refused_until_it_is_allowed(codec: str) -> None:
    """A codec with loss alone is no consent: the refusal says which two settings would be."""
    with pytest.raises(ValidationError, match="set lossy to allow, or codec to lossless"):
        disk(codec=codec)
    assert disk(codec=codec, lossy="allow").lossy == "allow"


@pytest.mark.parametrize(("codec", "remedy"), [("zip", "choose of fp8-e4m3"), ("int4:group=33", "power of two")])
def test_an_unknown_codec_is_refused_with_those_that_are_known(codec: str, remedy: str) -> None:
    """The refusal names what may be written instead."""
    with pytest.raises(ValidationError, match=remedy):
        disk(codec=codec, lossy="allow")
