"""The one secret that every generated secret is derived from: a mounted file, or a Secret made once in the operator's namespace."""

from __future__ import annotations

import asyncio
import base64
import binascii
import secrets
from pathlib import Path
from typing import Final

from kvcommons_core.errors import ConfigurationError

from kvcommons_operator.build.secrets import ROOT_BYTES_MIN
from kvcommons_operator.kube.client import Document, KubeClient
from kvcommons_operator.kube.errors import ConflictError, NotFoundError
from kvcommons_operator.kube.kinds import SECRET

KEY: Final = "root.secret"
MADE_BYTES: Final = 64


async def root_secret(client: KubeClient, namespace: str, name: str, file: str) -> bytes:
    """:raises ConfigurationError: if it is there and too short. :raises KubeError: if it can be neither read nor made."""
    if file:
        try:
            return _checked(await asyncio.to_thread(Path(file).read_bytes), "root_secret_file", file)
        except OSError as error:
            raise ConfigurationError("root_secret_file", file, f"make it readable ({error.strerror})") from error
    try:
        return _of(await client.get(SECRET, namespace, name))
    except NotFoundError:
        made: Document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": "Opaque",
            "immutable": True,
            "data": {KEY: base64.b64encode(secrets.token_bytes(MADE_BYTES)).decode()},
        }
        try:
            return _of(await client.create(SECRET, namespace, made))
        except ConflictError:  # another operator was faster: it is that one's
            return _of(await client.get(SECRET, namespace, name))


def _of(document: Document) -> bytes:
    name = f"{document['metadata'].get('namespace')}/{document['metadata'].get('name')}"
    try:
        value = base64.b64decode((document.get("data") or {}).get(KEY, ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ConfigurationError("root_secret_name", name, f"put base64 under {KEY}: {error}") from error
    return _checked(value, "root_secret_name", name)


def _checked(value: bytes, field: str, shown: str) -> bytes:
    if len(value) < ROOT_BYTES_MIN:
        raise ConfigurationError(field, shown, f"it holds {len(value)} bytes; put {ROOT_BYTES_MIN} random ones or more")
    return value
