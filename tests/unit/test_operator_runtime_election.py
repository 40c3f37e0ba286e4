"""Who leads, by a Lease at the wire and by clocks of the test's own: two candidates never lead at once."""

from __future__ import annotations

import asyncio

import pytest
from fake_api import Failure, FakeApi, fake_api
from kvcommons_operator.kube.client import KubeClient
from kvcommons_operator.kube.election import Election, Term

LEASES = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"
TERM = Term(lease_seconds=15, renew_seconds_max=10, renew_every_seconds=4, retry_seconds=2)
QUICK = Term(lease_seconds=1, renew_seconds_max=0.5, renew_every_seconds=0.05, retry_seconds=0.05)


class Clock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def candidate(client: KubeClient, name: str, clock: Clock, term: Term = TERM) -> Election:
    return Election(client, "ns", "operator", name, term, clock=clock)


def holder(api: FakeApi) -> str:
    return str(api.objects[LEASES]["operator"]["spec"]["holderIdentity"])


async def test_the_first_leads_and_the_second_waits_for_the_whole_lease() -> None:
    """A candidate counts by its own clock how long the record has not changed, whatever times stand in it."""
    clock = Clock()
    async with fake_api() as (api, client):
        first, second = candidate(client, "first", clock), candidate(client, "second", clock)
        await first.acquire()
        assert not await second._try()
        clock.now += 14
        assert await first._try()
        clock.now += 14
        assert not await second._try()
        clock.now += 16
        assert await second._try()
        assert holder(api) == "second"
        assert api.objects[LEASES]["operator"]["spec"]["leaseTransitions"] == 2


async def test_a_release_lets_the_next_lead_at_once() -> None:
    """Nobody waits for a leader that ended in order."""
    clock = Clock()
    async with fake_api() as (api, client):
        first, second = candidate(client, "first", clock), candidate(client, "second", clock)
        await first.acquire()
        await first.release()
        assert holder(api) == ""
        assert await second._try()


async def test_of_two_that_take_an_expired_lease_one_wins() -> None:
    """The record's version decides: the slower write is refused, and its writer does not lead."""
    clock = Clock()
    async with fake_api() as (api, client):
        await candidate(client, "dead", clock).acquire()
        first, second = candidate(client, "first", clock), candidate(client, "second", clock)
        assert not await first._try()
        assert not await second._try()
        clock.now += 20
        results = await asyncio.gather(first._try(), second._try())
        assert sorted(results) == [False, True]
        assert holder(api) == ("first" if results[0] else "second")


async def test_a_leader_whose_lease_another_holds_stops() -> None:
    """It finds out with its next renewal."""
    clock = Clock()
    async with fake_api() as (api, client):
        first = candidate(client, "first", clock, QUICK)
        await first.acquire()
        api.put(LEASES, "operator", spec={"holderIdentity": "intruder", "leaseDurationSeconds": 15})
        await asyncio.wait_for(first.lead(), 5)
        assert not first.leading


async def test_a_leader_that_can_not_renew_stops_before_the_lease_is_over() -> None:
    """Errors are tried again until two thirds of the lease are gone; then it leads no more."""
    async with fake_api() as (api, client):
        first = Election(client, "ns", "operator", "first", QUICK)
        await first.acquire()
        api.failures.extend(Failure(503) for _ in range(1_000))
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await asyncio.wait_for(first.lead(), 5)
        assert loop.time() - begun < QUICK.lease_seconds
        assert not first.leading


def test_terms_that_would_allow_two_leaders_are_refused() -> None:
    """The relations between the times are checked where they are set."""
    with pytest.raises(ValueError, match="must hold"):
        Term(lease_seconds=10, renew_seconds_max=10, renew_every_seconds=4, retry_seconds=2)


async def test_a_renewal_is_one_request() -> None:
    """The leader writes on the version that it wrote last, and looks only when that is refused."""
    async with fake_api() as (api, client):
        first = candidate(client, "first", Clock())
        await first.acquire()
        before = len(api.asked)
        for _ in range(3):
            assert await first._try()
        assert [method for method, _, _ in api.asked[before:]] == ["PUT"] * 3
        api.put(LEASES, "operator", spec=dict(api.objects[LEASES]["operator"]["spec"]))
        assert await first._try()
        assert [method for method, _, _ in api.asked[before + 3 :]] == ["PUT", "GET", "PUT"]
