"""The client: JSON in and out of the API server, over the asynchronous half of the `kubernetes` package.

Its typed models are not used: one thousand nodes' pods as model objects cost more memory than the whole operator may. Every request is
bounded in time and tried a bounded number of times; what is left is an error that says what the caller must do.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlencode

import aiohttp
import orjson
import yarl
from kubernetes.aio.client import ApiClient

from kvcommons_operator.kube.errors import ConflictError, KubeError, UnavailableError, of_status
from kvcommons_operator.kube.kinds import LEASE, POD, Kind, kind_of

FIELD_MANAGER: Final = "kvcommons-operator"
REQUEST_SECONDS_MAX: Final = 30.0
CONNECT_SECONDS_MAX: Final = 10.0
ATTEMPTS_MAX: Final = 5
BACKOFF_SECONDS: Final = 0.2
BACKOFF_SECONDS_MAX: Final = 5.0
RETRY_AFTER_SECONDS_MAX: Final = 30.0
PAGE_ITEMS_MAX: Final = 500
REQUESTS_AT_ONCE_MAX: Final = 32

APPLY: Final = "application/apply-patch+yaml"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
"""A merge that knows what names the entries of Kubernetes' own lists."""
JSON: Final = "application/json"
VERSION_OF_NONE: Final = "1"
"""No object has it: the first write of all, which nobody's object is, has the second. An apply that names a version changes an object of that
version or none, and makes one where there is none."""
METADATA_ONLY: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST_ONLY: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Document = dict[str, Any]


class Meter(Protocol):
    """Counts what was asked of the API server."""

    def request(self, verb: str, kind: str, status: int, seconds: float) -> None: ...


class NoMeter:
    """Counts nothing."""

    def request(self, verb: str, kind: str, status: int, seconds: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list."""

    items: list[Document]
    resource_version: str
    following: str
    """Token of the next page; empty on the last."""


class KubeClient:
    """All requests of the operator but kopf's own."""

    def __init__(self, api: ApiClient, *, meter: Meter | None = None, rng: Callable[[], float] = random.random) -> None:
        self._api = api
        self._meter = meter or NoMeter()
        self._rng = rng
        self._at_once = asyncio.Semaphore(REQUESTS_AT_ONCE_MAX)

    async def close(self) -> None:
        """Closes its connections; it is not used after that."""
        await self._api.close()  # type: ignore[no-untyped-call]

    # verbs -----------------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str | None, name: str, *, metadata_only: bool = False) -> Document:
        """:raises NotFoundError: if there is none."""
        accept = METADATA_ONLY if metadata_only else JSON
        return await self.request("GET", kind.path(namespace, name), kind=kind, accept=accept)

    async def apply(
        self,
        manifest: Mapping[str, Any],
        *,
        subresource: str = "",
        manager: str = FIELD_MANAGER,
        only_new: bool = False,
    ) -> Document:
        """Server-side apply, by force: what the operator wants to own, it owns. Answers with the object as it is now.

        :param only_new: makes the object, or changes nothing. :raises ConflictError: if there is one of that name already."""
        kind, metadata = kind_of(manifest), manifest["metadata"]
        if only_new:
            manifest = {**manifest, "metadata": {**metadata, "resourceVersion": VERSION_OF_NONE}}
        path = kind.path(metadata.get("namespace"), metadata["name"], subresource)
        # Who ignores what the server has to say of unknown and doubled fields has the body parsed once, not twice; an apply refuses unknown ones anyway.
        query = {"fieldManager": manager, "force": "true", "fieldValidation": "Ignore"}
        return await self.request("PATCH", path, kind=kind, query=query, body=manifest, content_type=APPLY)

    async def merge(self, kind: Kind, namespace: str | None, name: str, change: Mapping[str, Any]) -> Document:
        """A merge patch, for fields of objects that others make."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request(
            "PATCH", kind.path(namespace, name), kind=kind, query=query, body=change, content_type=MERGE
        )

    async def resize(
        self, namespace: str, name: str, uid: str, container: str, resources: Mapping[str, Any]
    ) -> Document:
        """Has the kubelet change what a running container has. :raises NotFoundError: if there is no such pod, or if servers of this version
        can't do it. :raises RejectedError: if it is not possible for this pod."""
        change = {"metadata": {"uid": uid}, "spec": {"containers": [{"name": container, "resources": resources}]}}
        query, path = {"fieldManager": FIELD_MANAGER}, POD.path(namespace, name, "resize")
        return await self.request("PATCH", path, kind=POD, query=query, body=change, content_type=STRATEGIC)

    async def metadata(self, kind: Kind, namespace: str | None, name: str) -> Document:
        """An object's metadata by the right to patch it: an empty patch that is only tried, answered without the object's content.
        :raises NotFoundError: if there is none."""
        query = {"fieldManager": FIELD_MANAGER, "dryRun": "All"}
        answer = await self.request(
            "PATCH",
            kind.path(namespace, name),
            kind=kind,
            query=query,
            body={"metadata": {}},
            content_type=MERGE,
            accept=METADATA_ONLY,
        )
        return dict(answer["metadata"])

    async def create(self, kind: Kind, namespace: str | None, body: Mapping[str, Any]) -> Document:
        """:raises ConflictError: if there is one already."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request("POST", kind.path(namespace), kind=kind, query=query, body=body)

    async def replace(self, kind: Kind, namespace: str | None, name: str, body: Mapping[str, Any]) -> Document:
        """:raises ConflictError: if the object's version is another than the body's. Not tried again by itself."""
        query = {"fieldManager": FIELD_MANAGER}
        return await self.request(
            "PUT", kind.path(namespace, name), kind=kind, query=query, body=body, retry_conflicts=False
        )

    async def delete(
        self, kind: Kind, namespace: str | None, name: str, *, uid: str = "", propagation: str = "Background"
    ) -> None:
        """:param uid: deletes only the object that the caller knew, not another of the same name.
        :raises NotFoundError: if there is none. :raises ConflictError: if it is another one."""
        body: Document = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid:
            body["preconditions"] = {"uid": uid}
        await self.request("DELETE", kind.path(namespace, name), kind=kind, body=body, retry_conflicts=False)

    async def pages(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        metadata_only: bool = False,
        page_items_max: int = PAGE_ITEMS_MAX,
    ) -> AsyncIterator[Page]:
        """A list, a page at a time. :raises ExpiredError: if the list took too long: begin anew."""
        query = {"limit": str(page_items_max)}
        if labels:
            query["labelSelector"] = labels
        if fields:
            query["fieldSelector"] = fields
        accept = METADATA_LIST_ONLY if metadata_only else JSON
        while True:
            answer = await self.request("GET", kind.path(namespace), kind=kind, query=query, accept=accept)
            metadata = answer.get("metadata") or {}
            following = str(metadata.get("continue") or "")
            yield Page(answer.get("items") or [], str(metadata.get("resourceVersion") or ""), following)
            if not following:
                return
            query["continue"] = following

    async def list(
        self, kind: Kind, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Document]:
        """A whole list, for what is known to be small."""
        return [item async for page in self.pages(kind, namespace, labels=labels, fields=fields) for item in page.items]

    # one request -----------------------------------------------------------------------------------------------------

    async def request(
        self,
        method: str,
        path: str,
        *,
        kind: Kind | None = None,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        accept: str = JSON,
        retry_conflicts: bool = True,
        attempts_max: int = ATTEMPTS_MAX,
        seconds_max: float = REQUEST_SECONDS_MAX,
    ) -> Document:
        """One request, tried again where only time helps, and on conflicts of an apply (another writer was faster).

        :raises KubeError: the class says what to do.
        """
        retry_conflicts = retry_conflicts and method == "PATCH" and not _names_one(body)
        attempt = 0
        while True:
            attempt += 1
            try:
                # A lease waits for nothing else: who is slow for a moment is not to lose it.
                async with contextlib.nullcontext() if kind is LEASE else self._at_once:
                    return await self._once(method, path, kind, query, body, content_type, accept, seconds_max)
            except UnavailableError as error:
                if attempt >= attempts_max:
                    raise
                await asyncio.sleep(self._pause(attempt, error.retry_after_seconds))
            except ConflictError:
                if not retry_conflicts or attempt >= attempts_max:
                    raise
                await asyncio.sleep(self._pause(attempt, None))

    def _pause(self, attempt: int, told: float | None) -> float:
        """Full jitter below a doubling bound; never shorter than what the server asked for."""
        bound = min(BACKOFF_SECONDS_MAX, BACKOFF_SECONDS * 2.0 ** (attempt - 1))
        jittered = bound * (0.5 + self._rng() / 2)
        return jittered if told is None else min(told, RETRY_AFTER_SECONDS_MAX) + jittered / 2

    async def _once(
        self,
        method: str,
        path: str,
        kind: Kind | None,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
        seconds_max: float,
    ) -> Document:
        what = f"{method} {path}"
        started, status = time.monotonic(), 0
        try:
            limits = aiohttp.ClientTimeout(total=seconds_max, sock_connect=CONNECT_SECONDS_MAX)
            response = await self.open(method, path, query, body, content_type, accept, limits)
            async with response:
                status = response.status
                raw = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UnavailableError(0, type(error).__name__, str(error) or "no answer in time", what) from error
        finally:
            self._meter.request(method, kind.name if kind else "", status, time.monotonic() - started)
        document = _parsed(raw)
        if status < 400:
            return document
        failure = of_status(status, document or {"message": raw[:200].decode(errors="replace")}, what)
        if isinstance(failure, UnavailableError):
            failure.retry_after_seconds = _retry_after(response.headers.get("Retry-After"), document)
        raise failure

    async def open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Mapping[str, Any] | None,
        content_type: str,
        accept: str,
        limits: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        """The response, unread. The caller closes it; errors are aiohttp's."""
        headers = {"Accept": accept, "Content-Type": content_type, "User-Agent": FIELD_MANAGER}
        await self._api.update_params_for_auth(headers, [], ["BearerToken"], path, method, body)
        url = self._api.configuration.host.rstrip("/") + path
        if query:
            url += "?" + urlencode(query)
        ask: Any = self._api.rest_client.request
        answer = await ask(method, yarl.URL(url, encoded=True), headers=headers, body=body, _request_timeout=limits)
        response: aiohttp.ClientResponse = answer.response
        return response


def _names_one(body: Mapping[str, Any] | None) -> bool:
    """A conflict about a uid or a version says that the object is another one: sending the same again is useless."""
    metadata = (body.get("metadata") or {}) if body else {}
    return bool(metadata.get("uid") or metadata.get("resourceVersion"))


def _parsed(raw: bytes) -> Document:
    try:
        document = orjson.loads(raw) if raw else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _retry_after(header: str | None, document: Mapping[str, Any]) -> float | None:
    told = header if header is not None else (document.get("details") or {}).get("retryAfterSeconds")
    try:
        return max(0.0, float(told)) if told is not None else None
    except (TypeError, ValueError):
        return None


def is_gone(error: KubeError) -> bool:
    """The object that the caller meant is not there any more, or is another one."""
    return error.status in (404, 409)
