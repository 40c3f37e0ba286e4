"""kopf's part: bringing our three kinds. Its handlers are of one sort only, `on.event`: they need no finalizer, write no annotation, and
keep no progress in the resource, so that removing the operator leaves nothing behind that only it could clear."""

from __future__ import annotations

import datetime
import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Final

import kopf
from kubernetes.aio.client import Configuration

from kvcommons_operator import names
from kvcommons_operator.kube.kinds import OWN_KINDS

SERVER_SECONDS: Final = 1_500
REQUEST_SECONDS_MAX: Final = 30.0
PAGE_ITEMS_MAX: Final = 200
LOGIN_SECONDS: Final = 600
"""Tokens of ServiceAccounts are renewed on disk well before they end; kopf asks again this often."""
BACKOFFS_SECONDS: Final = (1, 1, 2, 3, 5, 8, 13, 21, *([30] * 20))
"""kopf gives up after these, and the process with it: about ten minutes without an API server."""

ResourceEvent = Callable[[str, str | None, dict[str, Any]], None]


def registry(configuration: Configuration, on_event: ResourceEvent) -> kopf.OperatorRegistry:
    """The handlers: one for each kind, and the login that shares our own client's credentials."""
    found = kopf.OperatorRegistry()

    async def login(**_: object) -> kopf.ConnectionInfo:
        return await connection_info(configuration)

    kopf.on.login(registry=found)(login)
    for kind in OWN_KINDS:
        kopf.on.event(kind.group, kind.version, kind.plural, registry=found)(_handler(kind.name, on_event))
    return found


def _handler(kind: str, on_event: ResourceEvent) -> Callable[..., Any]:
    async def handle(event: Mapping[str, Any], **_: object) -> None:
        on_event(kind, event["type"], dict(event["object"]))

    return handle


def settings(pages_items_max: int = PAGE_ITEMS_MAX) -> kopf.OperatorSettings:
    """kopf's own settings: our names, bounded requests, streams that are watched for silence, nothing posted, no peering."""
    found = kopf.OperatorSettings()
    found.process.ultimate_exiting_timeout = 20.0
    found.posting.enabled = False
    found.posting.level = logging.WARNING
    # We elect by a Lease and leave the process when it is lost: peering would pause both.
    found.peering.standalone = True
    found.scanning.disabled = True
    found.watching.server_timeout = SERVER_SECONDS
    found.watching.chunk_size = pages_items_max
    found.networking.request_timeout = REQUEST_SECONDS_MAX
    found.networking.connect_timeout = 10.0
    found.networking.error_backoffs = BACKOFFS_SECONDS
    found.networking.enforce_retry_after = True
    found.execution.default_backoff = 15
    found.persistence.finalizer = f"{names.GROUP}/kopf"
    found.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    found.persistence.diffbase_storage = NoDiffs()
    return found


class NoDiffs(kopf.DiffBaseStorage):
    """kopf takes each object of each event apart for handlers of changes, of which there are none here: a fifth of the operator's time
    while a large cluster converges."""

    def build(self, *, body: kopf.Body, extra_fields: object = None) -> kopf.BodyEssence:
        """The essence that kopf would compare: none."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        """What was kept of the last time: nothing."""
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Nothing is kept in the object."""


async def connection_info(configuration: Configuration) -> kopf.ConnectionInfo:
    """What our client uses, for kopf's."""
    header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
    scheme, _, token = header.rpartition(" ")
    until = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=LOGIN_SECONDS)
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert or None,
        insecure=not configuration.verify_ssl,
        username=configuration.username or None,
        password=configuration.password or None,
        scheme=(scheme or "Bearer") if token else None,
        token=token or None,
        certificate_path=os.fspath(configuration.cert_file) if configuration.cert_file else None,
        private_key_path=os.fspath(configuration.key_file) if configuration.key_file else None,
        expiration=until,
    )
