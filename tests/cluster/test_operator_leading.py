"""Two operators on a real API server: one leads, the other takes over; a former leader is gone."""

from __future__ import annotations

import time

from kube_process import wait_for
from operator_process import DEPLOYMENTS, SECONDS_MAX, Operator, Operators, Place, deployment, pool

LEASES = "coordination.k8s.io/v1/leases"
LEASE = "kvcommons-operator"
LEASE_SECONDS = 4
LOST_STATUS = 3


def holder(place: Place) -> str:
    return str((place.get(LEASES, LEASE) or {"spec": {}})["spec"].get("holderIdentity") or "")


def ended(operator: Operator) -> bool:
    return not operator.process.alive


def test_one_leads_and_the_other_takes_over_from_a_dead_one(operators: Operators, place: Place) -> None:
    """kill -9 of the leader: within the lease and a little the standby leads and makes what is asked for."""
    first = operators.start("first", lease_seconds=LEASE_SECONDS).ready()
    second = operators.start("second", lease_seconds=LEASE_SECONDS).ready("standby")
    assert holder(place) == "first"
    assert second.total("kvcommons_operator_reconciles_total") == 0
    first.process.kill()
    killed = time.monotonic()
    place.apply(pool(), deployment())
    wait_for(lambda: holder(place) == "second", "the second leads", SECONDS_MAX)
    assert time.monotonic() - killed < 2 * LEASE_SECONDS
    place.have(DEPLOYMENTS, "chat-engine")
    second.ready("leader")


def test_one_that_is_told_to_stop_hands_over_at_once(operators: Operators, place: Place) -> None:
    """SIGTERM releases the Lease: the standby does not wait for it to run out."""
    first = operators.start("first", lease_seconds=60).ready()
    second = operators.start("second", lease_seconds=60).ready("standby")
    first.stop()
    stopped = time.monotonic()
    second.ready("leader")
    assert time.monotonic() - stopped < 15
    assert holder(place) == "second"


def test_a_leader_that_lost_its_lease_ends(operators: Operators, place: Place) -> None:
    """Whoever finds another in the Lease leaves the process at once, with a status of its own."""
    leader = operators.start("first", lease_seconds=LEASE_SECONDS).ready()
    place.merge(LEASES, LEASE, {"spec": {"holderIdentity": "intruder"}})
    wait_for(lambda: ended(leader), "the former leader has ended", SECONDS_MAX)
    assert leader.process.status == LOST_STATUS


def test_a_leader_that_can_not_renew_ends_before_another_may_lead(operators: Operators, place: Place) -> None:
    """Without an API server nobody knows who leads: it stops within the lease."""
    leader = operators.start("first", lease_seconds=LEASE_SECONDS).ready()
    place.apiserver.stop_apiserver()
    away = time.monotonic()
    try:
        wait_for(lambda: ended(leader), "the former leader has ended", SECONDS_MAX)
        assert time.monotonic() - away < LEASE_SECONDS + 1
    finally:
        place.apiserver.start_apiserver()
    assert leader.process.status == LOST_STATUS
