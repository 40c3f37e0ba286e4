"""Which replica gets a request, with literals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kvcommons_router.picker import (
    NO_HIT,
    Candidate,
    Credits,
    Hit,
    Policy,
    Prefill,
    Shape,
    Weights,
    cost,
    pick,
    pick_bounded_hash,
    pick_cost,
    rendezvous,
    uncached_tokens,
    wait_seconds,
)

WEIGHTS = Weights(Credits(), decode_seconds=0.004)
SHAPE = Shape(length=4000, affinity=7)
SHAPE_400 = Shape(length=400, affinity=7)


def candidate(name: str, *, waiting: int = 0, decoding: int = 0, requests: int = 0) -> Candidate:
    """A replica that prefills 5,000 tokens a second after 20 ms."""
    return Candidate(name.encode(), waiting, decoding, requests, Prefill(0.02, 0.0002))


def choose(
    candidates: list[Candidate], hits: list[Hit] | None, *, rho: float = 0.0, policy: Policy = Policy.COST
) -> int:
    """The position that `pick` chooses."""
    return pick(policy, candidates, hits, SHAPE, rho=rho, weights=WEIGHTS, turn=0)


def test_the_holder_of_the_prefix_wins() -> None:
    """Of idle replicas the one that holds most of the prompt in its own cache is chosen."""
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    assert choose(candidates, [NO_HIT, Hit(3000, 3000, 3000, 3000), Hit(1000, 1000, 1000, 1000)]) == 1


def test_tiers_are_worth_less_with_distance() -> None:
    """The same depth counts most in the engine's cache, then on its node, on disk and at a peer."""
    hits = [Hit(0, 0, 0, 2000), Hit(0, 0, 2000, 2000), Hit(0, 2000, 2000, 2000), Hit(2000, 2000, 2000, 2000)]
    left = [uncached_tokens(hit, 4000, Credits()) for hit in hits]
    assert left == [2600.0, 2400.0, 2100.0, 2000.0]
    candidates = [candidate(name) for name in "abcd"]
    assert choose(candidates, hits) == 3
    assert choose(candidates[:3], hits[:3]) == 2


def test_a_long_queue_outweighs_a_hit_while_the_fleet_is_idle() -> None:
    """Waiting 2 s to save 0.6 s of prefill is not worth it when nobody else is held up."""
    candidates = [candidate("a", waiting=10_000), candidate("b")]
    assert choose(candidates, [Hit(3000, 3000, 3000, 3000), NO_HIT]) == 1


def test_a_busy_fleet_saves_work() -> None:
    """At 90 % utilisation the same hit is worth ten times as much, and the queue is borne."""
    candidates = [candidate("a", waiting=10_000), candidate("b")]
    hits = [Hit(3000, 3000, 3000, 3000), NO_HIT]
    assert choose(candidates, hits, rho=0.9) == 0


def test_the_cost_is_the_documented_sum() -> None:
    """wait + (1 + rho / (1 - rho)) * prefill + d * decoding, in seconds."""
    one = candidate("a", waiting=1000, decoding=5)
    assert cost(one, Hit(2000, 2000, 2000, 2000), SHAPE, 0.5, WEIGHTS) == pytest.approx(
        1000 * 0.0002 + 2 * (0.02 + 2000 * 0.0002) + 5 * 0.004
    )


def test_utilisation_near_one_stays_finite() -> None:
    """A utilisation of 1 and more is taken as 0.97."""
    one = candidate("a")
    assert cost(one, NO_HIT, SHAPE, 1.0, WEIGHTS) == cost(one, NO_HIT, SHAPE, 0.97, WEIGHTS)


def test_of_equal_costs_the_one_decoding_least_wins() -> None:
    """Where decoding costs nothing it still breaks the tie."""
    weights = Weights(Credits(), decode_seconds=0.0)
    candidates = [candidate("a", decoding=3), candidate("b", decoding=1), candidate("c", decoding=2)]
    assert pick_cost(candidates, [NO_HIT] * 3, SHAPE, 0.0, weights) == 1


def test_ties_go_by_rendezvous_so_that_equal_texts_meet() -> None:
    """Idle equals are told apart by the text's hash, and the choice does not depend on their order."""
    names = ["a", "b", "c", "d"]
    chosen = set()
    for affinity in range(64):
        shape = Shape(100, affinity)
        first = pick_cost([candidate(n) for n in names], [NO_HIT] * 4, shape, 0.0, WEIGHTS)
        turned = pick_cost([candidate(n) for n in reversed(names)], [NO_HIT] * 4, shape, 0.0, WEIGHTS)
        assert names[first] == list(reversed(names))[turned]
        chosen.add(first)
    assert chosen == {0, 1, 2, 3}


def test_a_replica_that_leaves_moves_only_its_own_texts() -> None:
    """Rendezvous hashing: texts of the others stay where they were."""
    names = [b"a", b"b", b"c"]
    for affinity in range(200):
        before = max(names, key=lambda name: rendezvous(affinity, name))
        after = max(names[:2], key=lambda name: rendezvous(affinity, name))
        assert before == b"c" or before == after


def test_without_an_index_texts_meet_by_a_bounded_hash() -> None:
    """The same beginning goes to the same replica until that one has over 1.25 times the mean."""
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    favourite = choose(candidates, None)
    assert all(choose(candidates, None) == favourite for _ in range(5))
    candidates[favourite].requests = 30
    assert choose(candidates, None) != favourite


def test_prefix_hash_does_not_look_at_hits() -> None:
    """`prefixHash` is for comparison: it sends by the first text alone."""
    candidates = [candidate("a"), candidate("b")]
    by_hash = pick_bounded_hash(candidates, SHAPE.affinity)
    hits = [NO_HIT, NO_HIT]
    hits[1 - by_hash] = Hit(4000, 4000, 4000, 4000)
    assert choose(candidates, hits, policy=Policy.PREFIX_HASH) == by_hash


def test_round_robin_takes_turns() -> None:
    """Every replica gets its turn, whatever it holds."""
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    turns = [
        pick(Policy.ROUND_ROBIN, candidates, None, SHAPE, rho=0.0, weights=WEIGHTS, turn=turn) for turn in range(6)
    ]
    assert turns == [0, 1, 2, 0, 1, 2]


def test_least_load_takes_the_shortest_wait() -> None:
    """The shortest queue wins, then the fewest requests."""
    candidates = [candidate("a", waiting=10), candidate("b", requests=2), candidate("c", requests=1)]
    assert choose(candidates, None, policy=Policy.LEAST_LOAD) == 2


def test_nobody_to_pick_is_an_error() -> None:
    """The caller has to refuse the request; no position would be right."""
    with pytest.raises(ValueError, match="no candidate"):
        choose([], [])


def test_credits_must_fall() -> None:
    """A disk worth more than memory is a mistake in the settings."""
    with pytest.raises(ValueError, match="credits"):
        Credits(1.0, 0.5, 0.8, 0.1)


depths = st.lists(st.integers(0, 4000), min_size=4, max_size=4).map(sorted).map(lambda four: Hit(*four))


@settings(deadline=None)  # the machine may be busy
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 50), depths), min_size=1, max_size=8),
    st.floats(0.0, 1.0),
    st.integers(0, 2**64 - 1),
)
def test_the_pick_is_a_cheapest_one(replicas: list[tuple[int, int, Hit]], rho: float, affinity: int) -> None:
    """No replica is cheaper than the chosen one by more than the tie allows, whatever the load."""
    candidates = [candidate(f"r{at}", waiting=w, decoding=d) for at, (w, d, _) in enumerate(replicas)]
    hits = [hit for _, _, hit in replicas]
    shape = Shape(4000, affinity)
    position = pick(Policy.COST, candidates, hits, shape, rho=rho, weights=WEIGHTS, turn=0)
    costs = [cost(one, hit, shape, rho, WEIGHTS) for one, hit in zip(candidates, hits, strict=True)]
    assert costs[position] <= min(costs) + 0.0006


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.integers(0, 1000), min_size=1, max_size=16), st.integers(0, 2**64 - 1))
def test_the_bounded_hash_never_overloads(requests: list[int], affinity: int) -> None:
    """The chosen one is never over 1.25 times the mean load, the new request included."""
    candidates = [candidate(f"r{at}", requests=n) for at, n in enumerate(requests)]
    position = pick_bounded_hash(candidates, affinity)
    assert requests[position] < 1.25 * (sum(requests) + 1) / len(requests)


def test_a_session_breaks_ties() -> None:
    """Of equals, requests of one session go to the same replica whatever their texts; a difference in cost outweighs it."""
    candidates = [candidate(name) for name in "abcd"]
    for session in range(1, 40):
        chosen = {pick_cost(candidates, [NO_HIT] * 4, Shape(100, text, session), 0.0, WEIGHTS) for text in range(8)}
        assert len(chosen) == 1
        (usual,) = chosen
        busy = [candidate(name, waiting=5000 if at == usual else 0) for at, name in enumerate("abcd")]
        assert pick_cost(busy, [NO_HIT] * 4, Shape(100, 1, session), 0.0, WEIGHTS) != usual


def test_an_adapter_is_used_where_it_is_loaded() -> None:
    """Loading one costs 0.2 s: worth it against a longer queue, not against a shorter one."""
    candidates = [candidate("a"), candidate("b"), candidate("c")]
    candidates[1].adapters = {"poet"}
    poet = Shape(400, 7, adapter="poet")
    assert pick_cost(candidates, [NO_HIT] * 3, poet, 0.0, WEIGHTS) == 1
    candidates[1].waiting_tokens = 500
    assert pick_cost(candidates, [NO_HIT] * 3, poet, 0.0, WEIGHTS) == 1
    candidates[1].waiting_tokens = 2000
    assert pick_cost(candidates, [NO_HIT] * 3, poet, 0.0, WEIGHTS) != 1
    assert cost(candidates[0], NO_HIT, poet, 0.0, WEIGHTS) == pytest.approx(
        cost(candidates[0], NO_HIT, SHAPE_400, 0.0, WEIGHTS) + WEIGHTS.adapter_seconds
    )


def test_waiting_melts_away_while_it_is_prefilled() -> None:
    """What waits is what was sent less the time since the first of it began, of which a fifth is believed to be left."""
    one = candidate("a", waiting=5000, requests=1)
    one.head_at = 10.0
    assert wait_seconds(one, 10.0) == pytest.approx(1.0)
    assert wait_seconds(one, 10.4) == pytest.approx(0.6)
    assert wait_seconds(one, 99.0) == pytest.approx(0.2)
    assert wait_seconds(candidate("b"), 99.0) == 0.0
