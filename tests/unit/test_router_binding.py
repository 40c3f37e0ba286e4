"""Who waits in the router, in which order, and where they go, with literals."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_router.binding import Binder, Binding, Rival, Ticket
from kvcommons_router.picker import NO_HIT, Candidate, Hit, Prefill, Shape, Weights

TOKENS_A_SECOND = 10_000
WEIGHTS = Weights(decode_seconds=0.0)


class Asked:
    """A request: its name, its length, and what each replica holds of it."""

    def __init__(self, name: str, tokens: int, held: Sequence[int] = ()) -> None:
        self.name = name
        self.tokens = tokens
        self.held = held

    def hits(self, replicas: int) -> list[Hit]:
        return [Hit(t, t, t, t) if t else NO_HIT for t in (*self.held, *[0] * (replicas - len(self.held)))]


class Fleet:
    """Replicas that prefill 10,000 tokens a second, and the queue before them."""

    def __init__(self, replicas: int, binding: Binding | None = None) -> None:
        prefill = Prefill(0.0, 1 / TOKENS_A_SECOND)
        self.replicas = [Candidate(b"r%d" % at, prefill=prefill) for at in range(replicas)]
        self.binder: Binder[Asked] = Binder(binding or Binding(), WEIGHTS, lambda asked: asked.hits(replicas))
        self.binder.follow(self.replicas, 0.0)
        self.tickets: dict[str, Ticket[Asked]] = {}

    def busy(self, *seconds: float) -> None:
        """So much waits at each replica."""
        for replica, waits in zip(self.replicas, seconds, strict=True):
            replica.waiting_tokens = int(waits * TOKENS_A_SECOND)

    def ask(
        self,
        name: str,
        seconds: float,
        *,
        at: float = 0.0,
        now: float | None = None,
        held: Sequence[float] = (),
        tenant: str = "",
        weight: float = 1.0,
        priority: int = 0,
    ) -> str | None:
        """A request of so many seconds of prefill; whoever is refused for it."""
        asked = Asked(name, int(seconds * TOKENS_A_SECOND), [int(one * TOKENS_A_SECOND) for one in held])
        ticket = Ticket(asked, Shape(asked.tokens, 7), at, tenant, priority)
        self.tickets[name] = ticket
        refused = self.binder.offer(ticket, at if now is None else now, weight)
        return refused.what.name if refused is not None else None

    def bind(self, now: float = 0.0, rho: float = 0.0) -> list[tuple[str, int]]:
        """Who goes now, and where to; what is under way has just begun."""
        for replica in self.replicas:
            replica.head_at = now
        return [(ticket.what.name, position) for ticket, position in self.binder.bind(rho, now)]

    def order(self) -> list[str]:
        """Who waits, in turn."""
        return [ticket.what.name for ticket in self.binder.in_order()]


def test_with_room_a_request_goes_at_once_to_who_holds_it() -> None:
    """An idle fleet queues nothing: late binding then is the cost score."""
    fleet = Fleet(3)
    fleet.ask("one", 1.0, held=(0.0, 0.9))
    assert fleet.bind() == [("one", 1)]
    assert len(fleet.binder) == 0


def test_past_the_window_on_every_replica_requests_wait() -> None:
    """Nobody takes more than the window; who is done first takes the next."""
    fleet = Fleet(2, Binding(window_seconds=0.1, window_tokens=1))
    fleet.busy(0.5, 0.3)
    fleet.ask("one", 1.0)
    assert fleet.bind() == []
    fleet.busy(0.5, 0.05)
    assert fleet.bind() == [("one", 1)]


def test_a_replica_may_always_have_what_engines_prefill_in_one_step() -> None:
    """Below so many tokens it is open, however long they take: engines prefill small prompts together."""
    fleet = Fleet(1, Binding(window_seconds=0.001, window_tokens=2048))
    fleet.replicas[0].waiting_tokens = 2000
    fleet.ask("one", 1.0)
    fleet.ask("two", 1.0)
    assert fleet.bind() == [("one", 0)]


def test_nobody_is_kept_waiting_by_a_guess() -> None:
    """A replica whose rate was not learnt yet takes everything: how long its queue is can't be told."""
    fleet = Fleet(1, Binding(window_tokens=1))
    fleet.replicas[0].prefill.known = False
    fleet.busy(100.0)
    fleet.ask("one", 1.0)
    fleet.ask("two", 1.0)
    assert fleet.bind() == [("one", 0), ("two", 0)]


def test_the_shortest_uncached_work_goes_first() -> None:
    """What counts is what is left to do where most of it is held."""
    fleet = Fleet(1)
    fleet.busy(1.0)
    fleet.ask("long", 2.0)
    fleet.ask("short", 0.5, at=0.1)
    fleet.ask("held", 3.0, at=0.2, held=(2.9,))
    assert fleet.order() == ["held", "short", "long"]


def test_waiting_makes_up_for_work() -> None:
    """Ageing: a second of work is ten seconds of waiting, so nobody waits for ever."""
    fleet = Fleet(1, Binding(ageing=10.0, target_seconds=1.0))
    fleet.busy(1.0)
    fleet.ask("long", 1.0)
    fleet.ask("short", 0.6, at=3.9, now=4.0)
    fleet.ask("shorter", 0.6, at=4.1, now=4.2)
    assert fleet.order() == ["short", "long", "shorter"]


def test_who_would_just_miss_the_target_goes_first() -> None:
    """Shortly before it is too late a request is next; once it is too late it has its old place again."""
    fleet = Fleet(1, Binding(target_seconds=8.0))
    fleet.busy(1.0)
    fleet.ask("late", 2.0)
    fleet.ask("short", 0.1, at=4.5)
    fleet.bind(4.6)
    assert fleet.order() == ["short", "late"]
    fleet.bind(4.8)
    assert fleet.order() == ["late", "short"]
    fleet.bind(6.5)
    assert fleet.order() == ["short", "late"]


def test_what_needs_over_half_of_the_target_for_itself_is_not_pulled_forward() -> None:
    """One long prefill in time would cost many short ones theirs."""
    fleet = Fleet(1, Binding(target_seconds=8.0))
    fleet.busy(1.0)
    fleet.ask("huge", 5.0)
    fleet.ask("short", 0.1, at=2.0)
    fleet.bind(2.5)
    assert fleet.order() == ["short", "huge"]


def test_a_request_waits_for_who_holds_it_while_others_go() -> None:
    """While the warm replica is soon free, the other one takes what is held nowhere."""
    fleet = Fleet(2, Binding(window_tokens=1))
    fleet.busy(0.3, 0.0)
    fleet.ask("warm", 1.0, held=(0.9,))
    fleet.ask("cold", 1.5)
    assert fleet.bind(rho=0.9) == [("cold", 1)]
    fleet.busy(0.0, 1.5)
    assert fleet.bind(rho=0.9) == [("warm", 0)]


def test_an_idle_replica_takes_what_it_serves_sooner() -> None:
    """Where nothing else waits, doing work twice is better than idling, unless the holder is about as quick."""
    fleet = Fleet(2, Binding(window_tokens=1))
    fleet.busy(3.0, 0.0)
    fleet.ask("warm", 1.0, held=(0.9,))
    assert fleet.bind(rho=0.95) == [("warm", 1)]
    fleet.busy(0.5, 0.0)
    fleet.ask("again", 1.0, held=(0.9,))
    assert fleet.bind(rho=0.95) == []


def test_priority_is_a_head_start() -> None:
    """A step is two seconds; it can't starve anybody."""
    fleet = Fleet(1)
    fleet.busy(1.0)
    fleet.ask("first", 0.5, at=0.0)
    fleet.ask("urgent", 0.5, at=1.0, priority=1)
    fleet.ask("patient", 0.5, at=0.0, priority=-1)
    assert fleet.order() == ["urgent", "first", "patient"]


def test_tenants_share_by_weight() -> None:
    """One tenant's thousand requests don't hold up another's one; who has twice the weight gets twice the work."""
    fleet = Fleet(1, Binding(window_tokens=1))
    for number in range(30):
        fleet.ask(f"a{number}", 0.3, at=number / 1000, tenant="a", weight=2.0)
    for number in range(30):
        fleet.ask(f"b{number}", 0.3, at=1.0 + number / 1000, tenant="b")
    went = []
    for _ in range(18):
        fleet.busy(0.0)
        went += [name[0] for name, _ in fleet.bind(2.0)]
    assert went.count("a") == 12
    assert went.count("b") == 6


def test_a_tenant_that_rested_has_nothing_saved_up() -> None:
    """Who comes late begins where the others stand: it does not get all of the time that it did not use."""
    fleet = Fleet(1, Binding(window_tokens=1))
    for number in range(40):
        fleet.ask(f"a{number}", 0.3, at=number / 1000, tenant="a")
    for _ in range(20):
        fleet.busy(0.0)
        fleet.bind(1.0)
    for number in range(20):
        fleet.ask(f"b{number}", 0.3, at=1.0, tenant="b")
    went = []
    for _ in range(10):
        fleet.busy(0.0)
        went += [name[0] for name, _ in fleet.bind(2.0)]
    assert went.count("b") == 5


def test_the_queue_is_bounded_and_the_greediest_tenant_gives_way() -> None:
    """When it is full the newcomer is refused, or the last of whoever has most for its weight."""
    fleet = Fleet(1, Binding(requests_max=3))
    fleet.busy(1.0)
    for number in range(3):
        assert fleet.ask(f"a{number}", 0.3 + number / 10, tenant="a") is None
    assert fleet.ask("a3", 0.1, tenant="a") == "a3"
    assert fleet.ask("b0", 5.0, tenant="b") == "a2"
    assert len(fleet.binder) == 3
    assert sorted(fleet.order()) == ["a0", "a1", "b0"]


def test_what_is_learnt_while_waiting_counts() -> None:
    """A request whose text somebody now holds is looked at again, and goes there."""
    fleet = Fleet(2, Binding(window_tokens=1))
    fleet.busy(1.0, 1.0)
    fleet.ask("one", 1.0)
    fleet.tickets["one"].what.held = (0, 9_000)
    fleet.binder.refresh(fleet.tickets["one"], 0.1)
    fleet.busy(0.0, 0.0)
    assert fleet.bind(0.2) == [("one", 1)]


def test_replicas_that_come_and_go_are_followed() -> None:
    """What waits is weighed anew for the replicas that there are now."""
    fleet = Fleet(2, Binding(window_tokens=1))
    fleet.busy(1.0, 1.0)
    fleet.ask("one", 1.0)
    more = [*fleet.replicas, Candidate(b"new", prefill=Prefill(0.0, 1 / TOKENS_A_SECOND))]
    fleet.binder._hits_of = lambda asked: asked.hits(3)
    fleet.binder.follow(more, 0.1)
    assert fleet.bind(0.2) == [("one", 2)]


def test_who_leaves_is_forgotten() -> None:
    """A withdrawn request is sent nowhere, at no later moment either."""
    fleet = Fleet(1)
    fleet.busy(1.0)
    fleet.ask("one", 1.0)
    fleet.ask("two", 1.0, at=0.5)
    fleet.binder.withdraw(fleet.tickets["one"])
    fleet.busy(0.0)
    assert fleet.bind(5.9) == [("two", 0)]
    assert fleet.bind(20.0) == []


def rival(order: float, *works: float, tenant: str = "") -> Rival:
    """A request that waits in another router."""
    return Rival(Shape(0, 7), tenant, order, works)


def test_what_waits_elsewhere_has_its_turn() -> None:
    """A free replica is left to a request that another router is about to send there, and only as long as that waits."""
    fleet = Fleet(2, Binding(window_tokens=1))
    fleet.busy(0.0, 1.0)
    fleet.binder.hear([rival(-5.0, 0.2, 0.2)])
    fleet.ask("ours", 0.5, at=0.0)
    assert fleet.bind(0.01) == []
    fleet.binder.hear([])
    assert fleet.bind(0.02) == [("ours", 0)]
    assert not fleet.binder.anybody


def test_ours_goes_before_what_comes_after_it_elsewhere() -> None:
    """The order is one for all routers: shortest and oldest first, wherever it waits."""
    fleet = Fleet(2, Binding(window_tokens=1))
    fleet.busy(0.0, 1.0)
    fleet.binder.hear([rival(9.0, 0.8, 0.8)])
    fleet.ask("ours", 0.5, at=0.0)
    assert fleet.bind(0.01) == [("ours", 0)]


def test_nobody_waits_for_long_for_what_another_router_does_not_send() -> None:
    """Routers may see the fleet differently: a replica that has idled is taken by whoever has something for it."""
    fleet = Fleet(1, Binding(window_tokens=1))
    fleet.busy(0.0)
    fleet.binder.hear([rival(-5.0, 0.2)])
    fleet.ask("ours", 0.5, at=0.0)
    assert fleet.bind(0.01) == []
    assert [(one.what.name, at) for one, at in fleet.binder.bind(0.0, 1.5)] == [("ours", 0)]


def test_what_another_router_has_sent_counts_for_its_tenant() -> None:
    """Tenants share all routers: who is served by another one gives way here."""
    fleet = Fleet(1, Binding(window_tokens=1))
    fleet.busy(1.0)
    fleet.ask("a0", 0.5, at=0.0, tenant="a")
    fleet.ask("b0", 0.5, at=1.0, tenant="b")
    assert fleet.order() == ["a0", "b0"]
    elsewhere = rival(0.0, 2.0, tenant="a")
    fleet.binder.hear([elsewhere])
    fleet.binder.hear([])
    assert fleet.order() == ["b0", "a0"]


def test_bad_settings_name_what_they_must_be() -> None:
    """A window of nothing would send nobody anywhere."""
    with pytest.raises(ValueError, match="window and target must be over 0"):
        Binding(window_seconds=0.0)
    with pytest.raises(ValueError, match="at least one request"):
        Binding(requests_max=0)


@settings(deadline=None, max_examples=60)  # the machine may be busy
@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 20.0), st.floats(0.01, 6.0), st.integers(0, 3), st.floats(0.0, 1.0), st.sampled_from("abc")
        ),
        min_size=1,
        max_size=40,
    )
)
def test_everybody_goes_once(asked: list[tuple[float, float, int, float, str]]) -> None:
    """Whatever comes, an idle fleet sends every request exactly once, and keeps nothing of it."""
    fleet = Fleet(4, Binding(window_tokens=1))
    for number, (at, seconds, holder, share, tenant) in enumerate(sorted(asked)):
        held = [0.0] * 4
        held[holder] = seconds * share
        fleet.ask(f"{number}", seconds, at=at, now=at, held=held, tenant=tenant)
    went: list[str] = []
    for step in range(200):
        fleet.busy(0.0, 0.0, 0.0, 0.0)
        went += [name for name, _ in fleet.bind(20.0 + step / 10, rho=0.9)]
        if len(went) == len(asked):
            break
    assert sorted(went, key=int) == [str(number) for number in range(len(asked))]
    assert len(fleet.binder) == 0
    assert not fleet.binder.anybody
