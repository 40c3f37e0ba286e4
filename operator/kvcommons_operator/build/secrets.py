"""What the operator makes up: secrets derived from one root secret, so that they can be written again without being read."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping

from kvcommons_operator import names
from kvcommons_operator.build.meta import Child, Owner
from kvcommons_operator.observed import Manifest

ROOT_BYTES_MIN = 32
NAMESPACE_SECRET = "namespace.secret"
CONTROL_TOKEN = "control.token"
SALT_SECRET = "salt.secret"
PASSWORD = "password"


def derived(root: bytes, purpose: str, uid: str) -> bytes:
    """32 bytes that only who has the root secret can make: other purposes and other resources have other ones.

    :raises ValueError: if the root secret is too short to be one."""
    if len(root) < ROOT_BYTES_MIN:
        raise ValueError(
            f"the operator's root secret holds {len(root)} bytes; put {ROOT_BYTES_MIN} random ones or more"
        )
    return hmac.new(root, f"kvcommons/{purpose}/1\0{uid}".encode(), hashlib.sha256).digest()


def control_token(root: bytes, pool_uid: str) -> str:
    """What opens the control API of a pool's nodes: the operator makes it anew whenever it calls one."""
    return derived(root, "control", pool_uid).hex()


def password(root: bytes, user: str, pool_uid: str) -> str:
    """The password of a user of the managed index."""
    return derived(root, f"index/{user}", pool_uid).hex()


def secret(child: Child, values: Mapping[str, bytes | str]) -> Manifest:
    """A Secret of these values."""
    raw = {key: value.encode() if isinstance(value, str) else value for key, value in values.items()}
    data = {key: base64.b64encode(value).decode() for key, value in sorted(raw.items())}
    return child.manifest("v1", "Secret", {"type": "Opaque", "data": data})


def node_keys(owner: Owner, root: bytes) -> Manifest:
    """What cache nodes mount: the namespace secret, which they all share, and the control API's token."""
    child = Child(owner=owner, component=names.CACHE_NODE, name=names.child(owner.name, "node-keys"))
    namespace_secret = derived(root, "namespace", owner.uid)
    return secret(child, {NAMESPACE_SECRET: namespace_secret.hex(), CONTROL_TOKEN: control_token(root, owner.uid)})


def salt_name(owner: Owner) -> str:
    """A pool and a deployment may have one name: their salts have not."""
    return names.child(owner.name, "salt" if owner.is_pool else "router-salt")


def salt(owner: Owner, root: bytes) -> Manifest:
    """What routers make tenants' salts with: one for all routers of an owner."""
    child = Child(owner=owner, component=names.ROUTER, name=salt_name(owner))
    return secret(child, {SALT_SECRET: derived(root, "salt", owner.uid).hex()})
