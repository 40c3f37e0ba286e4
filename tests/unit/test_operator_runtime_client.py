"""The operator's client against a server that fails in every way: what is tried again, how long, and what the caller is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from fake_api import Failure, fake_api, until
from kvcommons_operator.kube import kinds
from kvcommons_operator.kube.client import ATTEMPTS_MAX, REQUESTS_AT_ONCE_MAX
from kvcommons_operator.kube.discovery import Discovery
from kvcommons_operator.kube.errors import (
    ConflictError,
    ExpiredError,
    ForbiddenError,
    KubeError,
    NotFoundError,
    RejectedError,
    UnavailableError,
)
from kvcommons_operator.kube.events import Recorder

MAPS = "/api/v1/namespaces/ns/configmaps"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"
ONE: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": "ns"}}


async def test_an_apply_is_forced_and_names_its_manager() -> None:
    """Server-side apply under one field manager, by force."""
    async with fake_api() as (api, client):
        await client.apply({**ONE, "data": {"a": "1"}})
        assert api.asked == [
            (
                "PATCH",
                f"{MAPS}/one",
                {"fieldManager": "kvcommons-operator", "force": "true", "fieldValidation": "Ignore"},
            )
        ]


async def test_what_is_only_to_be_made_changes_nothing_that_is_there() -> None:
    """In one request: it is made where there is none, and where there is one the answer says so, once."""
    async with fake_api() as (api, client):
        await client.apply({**ONE, "data": {"a": "1"}}, only_new=True)
        assert api.objects[MAPS]["one"]["data"] == {"a": "1"}
        with pytest.raises(ConflictError):
            await client.apply({**ONE, "data": {"a": "2"}}, only_new=True)
        assert api.objects[MAPS]["one"]["data"] == {"a": "1"}
        assert len(api.asked) == 2


async def test_a_list_is_read_page_by_page() -> None:
    """No answer is larger than a page, and none is lost."""
    async with fake_api() as (api, client):
        for number in range(7):
            api.put(MAPS, f"map-{number}")
        pages = [page async for page in client.pages(kinds.CONFIG_MAP, "ns", labels="a=b", page_items_max=3)]
        assert [len(page.items) for page in pages] == [3, 3, 1]
        assert [query.get("continue") for query in api.requests("GET")] == [None, "3", "6"]
        assert {query["labelSelector"] for query in api.requests("GET")} == {"a=b"}


async def test_a_lease_does_not_wait_behind_other_requests() -> None:
    """With as many requests under way as there may be, the lease is still renewed: a leader that is busy stays the leader."""
    async with fake_api() as (api, client):
        api.put(MAPS, "one")
        api.put(LEASES, "operator")
        api.held = "configmaps"
        work = [asyncio.create_task(client.get(kinds.CONFIG_MAP, "ns", "one")) for _ in range(REQUESTS_AT_ONCE_MAX + 8)]
        await until(lambda: len(api.asked) == REQUESTS_AT_ONCE_MAX)
        assert (await client.get(kinds.LEASE, "ns", "operator"))["metadata"]["name"] == "operator"
        assert not any(one.done() for one in work)
        api.held = ""
        await asyncio.gather(*work)


async def test_retry_after_is_honoured() -> None:
    """A server that is busy says when to come again, and is not asked before."""
    async with fake_api() as (api, client):
        api.put(MAPS, "one")
        api.failures.append(Failure(429, {"Retry-After": "1"}))
        begun = time.monotonic()
        assert (await client.get(kinds.CONFIG_MAP, "ns", "one"))["metadata"]["name"] == "one"
        assert time.monotonic() - begun >= 1.0


@pytest.mark.parametrize("status", [500, 502, 503, 504, 0])
async def test_what_only_time_helps_is_tried_again_a_bounded_number_of_times(status: int) -> None:
    """Errors of the server and cut connections: again with pauses, then an error that says to come later."""
    async with fake_api() as (api, client):
        api.put(MAPS, "one")
        api.failures.append(Failure(status))
        assert await client.get(kinds.CONFIG_MAP, "ns", "one")
        api.failures.extend(Failure(status) for _ in range(2 * ATTEMPTS_MAX))
        before = len(api.asked)
        with pytest.raises(UnavailableError):
            await client.get(kinds.CONFIG_MAP, "ns", "one")
        # aiohttp itself sends once more what was cut on a connection that it had used before.
        assert ATTEMPTS_MAX <= len(api.asked) - before <= 2 * ATTEMPTS_MAX


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, RejectedError), (422, RejectedError), (401, ForbiddenError), (403, ForbiddenError), (404, NotFoundError),
     (410, ExpiredError)],
)  # fmt: skip
async def test_what_time_does_not_help_is_told_at_once(status: int, error: type[KubeError]) -> None:
    """The class says what the caller must do; the message says what the server said."""
    async with fake_api() as (api, client):
        api.failures.append(Failure(status, body={"reason": "Because", "message": "in words"}))
        with pytest.raises(error, match="in words"):
            await client.apply(ONE)
        assert len(api.asked) == 1


async def test_a_conflict_of_an_apply_is_tried_again_and_one_about_the_object_is_not() -> None:
    """Another writer was faster: again. Another object of the same name: the caller must look anew."""
    async with fake_api() as (api, client):
        api.failures.append(Failure(409))
        await client.apply(ONE)
        assert len(api.asked) == 2
        api.failures.append(Failure(409))
        with pytest.raises(ConflictError):
            await client.apply({**ONE, "metadata": {**ONE["metadata"], "uid": "u"}})
        assert len(api.asked) == 3


async def test_a_deletion_names_the_object_that_was_meant() -> None:
    """Its uid is a precondition: another object of the same name survives."""
    async with fake_api() as (api, client):
        api.put(MAPS, "one")
        await client.delete(kinds.CONFIG_MAP, "ns", "one", uid="uid-1")
        assert api.bodies[-1]["preconditions"] == {"uid": "uid-1"}
        with pytest.raises(NotFoundError):
            await client.delete(kinds.CONFIG_MAP, "ns", "one")


async def test_an_answer_that_never_comes_is_an_error_in_time() -> None:
    """A request has an end, whatever the server does."""
    async with fake_api() as (api, client):
        api.put(MAPS, "one")
        path = f"{MAPS}?watch=1&resourceVersion=0"
        with pytest.raises(UnavailableError):
            await client.request("GET", path, seconds_max=0.2, attempts_max=1)


async def test_optional_apis_are_discovered_and_not_asked_for_again_and_again() -> None:
    """One question for all groups, one for each that is there; the answers are remembered for a while."""
    groups = {"groups": [{"versions": [{"groupVersion": "monitoring.coreos.com/v1"}]}]}
    resources = {"resources": [{"name": "servicemonitors"}]}
    now = [0.0]
    async with fake_api() as (api, client):
        discovery = Discovery(client, kinds.OPTIONAL, ttl_seconds=60, clock=lambda: now[0])
        api.failures.extend((Failure(200, body=groups), Failure(200, body=resources)))
        assert await discovery.refresh() == {kinds.SERVICE_MONITOR}
        assert await discovery.refresh() == {kinds.SERVICE_MONITOR}
        assert [path for _, path, _ in api.asked] == ["/apis", "/apis/monitoring.coreos.com/v1"]
        now[0] = 61.0
        api.failures.append(Failure(200, body={"groups": []}))
        assert await discovery.refresh() == frozenset()


async def test_the_same_event_is_told_once_in_a_while() -> None:
    """Repeats within ten minutes are kept; later ones count up in a series; a failure to tell is nobody's error."""
    now = [0.0]
    about = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": "ns", "uid": "u"}}
    async with fake_api() as (api, client):
        recorder = Recorder(client, "me", clock=lambda: now[0])
        for _ in range(5):
            await recorder.tell(about, "Normal", "Because", "in words")
        assert len(api.asked) == 1
        assert api.asked[0][0] == "POST"
        now[0] = 601.0
        await recorder.tell(about, "Normal", "Because", "in words")
        assert api.bodies[-1]["series"]["count"] == 2
        api.failures.append(Failure(403))
        await recorder.tell(about, "Warning", "Another", "words")


async def test_an_event_that_was_told_before_this_operator_began_is_told_again() -> None:
    """It is there already, under the same name: then it is applied."""
    about = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one", "namespace": "ns", "uid": "u"}}
    async with fake_api() as (api, client):
        for name in ("before", "after"):
            await Recorder(client, name).tell(about, "Normal", "Because", "in words")
        assert [method for method, _, _ in api.asked] == ["POST", "POST", "PATCH"]
        assert api.bodies[-1]["reportingInstance"] == "after"
