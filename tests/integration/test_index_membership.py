"""Membership on a real server: nothing that a member published before a restart, a fence, a flush or a lost lease is believed again."""

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from index_support import HandClock, Held, RawClient, engine, hold, node, until
from kvcommons_core import limits
from kvcommons_core.errors import ConfigurationError
from kvcommons_core.index import IndexConnection, MembersView, Names, Tenure, scripts
from kvcommons_core.index.schema import decode_member, slot_rest_seconds
from kvcommons_core.settings import IndexSettings


class Pool:
    """Members and a router's view of one pool, all closed at the end."""

    def __init__(self, settings: IndexSettings) -> None:
        self.settings = settings
        self.clock = HandClock()
        self.names = Names(settings.prefix)
        self.voided: list[str] = []
        self.view = MembersView(IndexConnection(settings), settings, on_void=self.voided.append)
        self._opened: list[IndexConnection] = [self.view._connection]

    def hold(self, name: str, *, shared: bool = False, seed: int = 0) -> Held:
        held = hold(self.settings, engine(name) if shared else node(name), self.clock, shared=shared, seed=seed)
        self._opened.append(held.connection)
        return held

    async def alive(self) -> dict[str, tuple[int, int]]:
        """What a router believes now: name -> (slot, epoch)."""
        await self.view.poll()
        return {name: (member.slot, member.epoch) for name, member in self.view.by_name.items()}

    async def close(self) -> None:
        for connection in self._opened:
            await connection.close()


@pytest.fixture
async def pool(index_settings: IndexSettings, raw: RawClient) -> AsyncIterator[Pool]:
    made = Pool(index_settings)
    yield made
    await made.close()


async def test_a_member_is_seen_with_all_that_it_says(pool: Pool) -> None:
    """A registered member shows in the view with its description, and its owner hears that it may publish."""
    held = pool.hold("n1")
    await held.tick()
    assert await pool.alive() == {"n1": held.identity}
    assert pool.view.by_name["n1"].info == held.member.info
    assert held.reasons == ["registered"]
    assert held.member.settled


async def test_a_lease_that_is_renewed_keeps_the_epoch(pool: Pool) -> None:
    """Renewing changes nothing, however often."""
    held = pool.hold("n1")
    await held.tick()
    before = held.identity
    for _ in range(5):
        pool.clock.forward(1)
        await held.tick()
    assert held.identity == before
    assert held.reasons == ["registered"]


async def test_a_member_without_a_lease_is_not_believed(pool: Pool, raw: RawClient) -> None:
    """The lease lasts 3 s; a member whose lease has run out is not in the view, and comes back under a new epoch."""
    held = pool.hold("n1")
    await held.tick()
    before = held.identity
    lease = pool.names.lease(before[0])
    assert 2_000 < raw("PTTL", lease) <= 3_000
    raw("PEXPIRE", lease, 1)
    await until(lambda: not raw("EXISTS", lease), "the lease runs out")
    assert await pool.alive() == {}
    await held.tick()
    assert held.identity == (before[0], (before[1] + 1) % 65_536)
    assert held.reasons == ["registered", "lease_lost"]
    assert await pool.alive() == {"n1": held.identity}


async def test_a_restart_takes_the_same_slot_and_an_epoch_far_on(pool: Pool) -> None:
    """A new process under the old name voids what the old one published, at once and even if that one still lives on for a moment."""
    old, new = pool.hold("n1", seed=1), pool.hold("n1", seed=2)
    await old.tick()
    await new.tick()
    assert new.identity[0] == old.identity[0]
    jump = (new.identity[1] - old.identity[1]) % 65_536
    assert 1 <= jump <= limits.EPOCH_JUMP_MAX
    assert await pool.alive() == {"n1": new.identity}


async def test_of_two_processes_with_one_name_the_later_one_stays(pool: Pool, raw: RawClient) -> None:
    """The earlier one sees the conflict, stays out without taking turns, and takes over when the later one is gone."""
    old, new = pool.hold("n1", seed=1), pool.hold("n1", seed=2)
    await old.tick()
    await new.tick()
    identity = new.identity
    for _ in range(3):
        await old.tick()
        await new.tick()
    assert old.member.state.value == "conflict"
    assert not old.member.settled
    assert new.identity == identity
    raw("DEL", pool.names.lease(identity[0]))
    await old.tick()
    assert old.member.state.value == "joined"
    assert await pool.alive() == {"n1": old.identity}
    assert old.identity != identity


async def test_a_fence_voids_everything_at_once(pool: Pool) -> None:
    """A cleared cache is a new epoch under the same slot."""
    held = pool.hold("n1")
    await held.tick()
    slot, epoch = held.identity
    held.keeper.fence(held.member, "cleared")
    assert not held.member.settled
    await held.tick()
    assert held.identity == (slot, (epoch + 1) % 65_536)
    assert held.reasons == ["registered", "cleared"]
    assert await pool.alive() == {"n1": held.identity}


async def test_an_epoch_that_others_set_is_taken_over(pool: Pool) -> None:
    """The operator may fence a member; if it lives after all, it goes on under the epoch that was set."""
    held = pool.hold("n1")
    await held.tick()
    slot, epoch = held.identity
    reply = await held.connection.script(
        scripts.FENCE, [pool.names.members], [slot, "", "", limits.EPOCHS_PER_SLOT_MAX]
    )
    assert await pool.alive() == {}, "until the member has seen it, its lease is under an epoch that is no more"
    await held.tick()
    assert held.identity == (slot, reply[0]) == (slot, (epoch + 1) % 65_536)
    assert held.reasons == ["registered", "fenced_by_others"]
    assert await pool.alive() == {"n1": held.identity}


async def test_a_flush_revives_nothing(pool: Pool, raw: RawClient) -> None:
    """After FLUSHALL the member comes back under an epoch that it never had, and routers void their mirrors."""
    held = pool.hold("n1")
    await held.tick()
    before = held.identity
    await pool.alive()
    raw("FLUSHALL")
    assert await pool.alive() == {}
    await held.tick()
    assert held.identity == (before[0], (before[1] + 1) % 65_536)
    assert held.reasons == ["registered", "record_lost"]
    assert await pool.alive() == {"n1": held.identity}
    assert "flushed" in pool.voided


async def test_a_slot_that_another_got_after_a_flush_is_left_to_it(pool: Pool, raw: RawClient) -> None:
    """Two members can't share a slot: who comes back second takes another."""
    first = pool.hold("n1")
    await first.tick()
    slot = first.identity[0]
    raw("FLUSHALL")
    second = pool.hold("n2")
    second.member.tenure = Tenure(slot, 5, 0)
    await second.tick()
    assert second.identity[0] == slot
    await first.tick()
    assert first.identity[0] != slot
    assert first.reasons == ["registered", "slot_taken"]
    assert await pool.alive() == {"n1": first.identity, "n2": second.identity}


async def test_epochs_wrap_and_are_never_used_twice_in_one_tenancy(pool: Pool) -> None:
    """Counting on from 65,535 gives 0; after 60,000 epochs the member moves to another slot, so no epoch comes round."""
    held = pool.hold("n1")
    await held.tick()
    slot, _ = held.identity
    held.member.tenure = Tenure(slot, 65_534, limits.EPOCHS_PER_SLOT_MAX - 2)
    seen = {(slot, 65_534)}
    for expected in ((slot, 65_535), (slot, 0)):
        held.keeper.fence(held.member, "again")
        await held.tick()
        assert held.identity == expected
        assert held.identity not in seen
        seen.add(held.identity)
        assert await pool.alive() == {"n1": held.identity}
    held.keeper.fence(held.member, "again")
    await held.tick()
    assert held.identity[0] != slot
    assert held.member.tenure is not None
    assert held.member.tenure.used == 0
    assert await pool.alive() == {"n1": held.identity}


async def test_a_slot_rests_until_nothing_of_it_can_be_believed(pool: Pool, raw: RawClient) -> None:
    """A member that left keeps its slot from others for longer than any holder may live; then its record goes."""
    held = pool.hold("n1")
    await held.tick()
    slot = held.identity[0]
    await held.keeper.remove(held.member, leave=True)
    assert await pool.alive() == {}
    record = raw("HGET", pool.names.members, slot)
    assert record.endswith(b" - {}")
    rest = slot_rest_seconds(pool.settings.holder_age_seconds_max)
    assert rest > pool.settings.holder_age_seconds_max
    other = pool.hold("n2")
    pool.clock.forward(rest - 10)
    for _ in range(60 * 4):
        await other.tick()
    assert raw("HGET", pool.names.members, slot) is not None
    pool.clock.forward(20)

    async def swept() -> bool:
        await other.tick()
        return raw("HGET", pool.names.members, slot) is None

    await until(swept, "the record of the member that left is dropped")


async def test_a_clean_leave_is_seen_at_once_and_a_crash_within_the_lease(pool: Pool, raw: RawClient) -> None:
    """Leaving takes the lease and the name away; not leaving lets the lease run out."""
    left, crashed = pool.hold("n1"), pool.hold("n2")
    await left.tick()
    await crashed.tick()
    identity = crashed.identity
    await left.keeper.remove(left.member, leave=True)
    await crashed.keeper.remove(crashed.member, leave=False)
    assert await pool.alive() == {"n2": identity}
    assert raw("HGET", pool.names.members, "@n1") is None
    assert raw("PTTL", pool.names.lease(identity[0])) <= 3_000


# engines, kept by several routers -----------------------------------------------------------------------------------


async def test_routers_share_one_member(pool: Pool) -> None:
    """Two routers that register the same engine agree on its slot and epoch, and neither voids the other's records."""
    one, two = pool.hold("e1", shared=True, seed=1), pool.hold("e1", shared=True, seed=2)
    await one.tick()
    identity = one.identity
    await two.tick()
    for _ in range(3):
        await one.tick()
        await two.tick()
    assert one.identity == two.identity == identity
    assert await pool.alive() == {"e1": identity}


async def test_a_restart_seen_by_many_routers_is_one_new_epoch(pool: Pool) -> None:
    """Every router fences the engine that restarted; it moves on by one."""
    routers = [pool.hold("e1", shared=True, seed=n) for n in (1, 2, 3)]
    for router in routers:
        await router.tick()
    slot, epoch = routers[0].identity
    for router in routers:
        router.keeper.fence(router.member, "restarted")
    for router in routers:
        await router.tick()
    await routers[0].tick()
    assert {router.identity for router in routers} == {(slot, (epoch + 1) % 65_536)}
    assert await pool.alive() == {"e1": routers[0].identity}


async def test_an_engine_that_nobody_watched_begins_anew(pool: Pool, raw: RawClient) -> None:
    """If all routers were away for longer than a lease, the engine may have restarted unseen: a new epoch."""
    first = pool.hold("e1", shared=True, seed=1)
    await first.tick()
    slot, epoch = first.identity
    raw("DEL", pool.names.lease(slot))
    later = pool.hold("e1", shared=True, seed=2)
    await later.tick()
    assert later.identity == (slot, (epoch + 1) % 65_536)


async def test_routers_agree_again_after_a_flush(pool: Pool, raw: RawClient) -> None:
    """Whoever comes first registers the engine anew, the others join; the epoch is one that was never used."""
    one, two = pool.hold("e1", shared=True, seed=1), pool.hold("e1", shared=True, seed=2)
    await one.tick()
    await two.tick()
    before = one.identity
    raw("FLUSHALL")
    for _ in range(3):
        await one.tick()
        await two.tick()
    assert one.identity == two.identity != before
    assert await pool.alive() == {"e1": one.identity}


async def test_a_changed_address_reaches_the_record(pool: Pool) -> None:
    """A router that knows a newer description of an engine writes it into the shared record, without a new epoch."""
    one = pool.hold("e1", shared=True, seed=1)
    await one.tick()
    two = pool.hold("e1", shared=True, seed=2)
    two.member.info = replace(two.member.info, address="http://elsewhere:1")
    await two.tick()
    assert two.identity == one.identity
    await pool.alive()
    assert pool.view.by_name["e1"].info.address == "http://elsewhere:1"


# what others may do to the hash --------------------------------------------------------------------------------------


async def test_a_torn_record_is_counted_and_hurts_nobody_else(pool: Pool, raw: RawClient) -> None:
    """Somebody else's bytes under our prefix make no router fail."""
    held = pool.hold("n1")
    await held.tick()
    raw("HSET", pool.names.members, "7", "nonsense", "8", b"\xff\xfe", "9", '1 2 3 x {"name":5}')
    assert await pool.alive() == {"n1": held.identity}
    assert pool.view.corrupt_records >= 3


async def test_a_record_of_a_newer_version_is_read_as_far_as_it_is_known(pool: Pool, raw: RawClient) -> None:
    """Fields that a newer member adds are left alone."""
    held = pool.hold("n1")
    await held.tick()
    slot = held.identity[0]
    record = raw("HGET", pool.names.members, slot).replace(b'{"address"', b'{"future":[1],"address"')
    assert decode_member(slot, record).info == held.member.info


@pytest.mark.parametrize("name", ["", "a b", 'a"b', "a\\b", "ä", "x" * 300, "a\nb"])
def test_names_that_the_scripts_cannot_tell_from_syntax_are_refused(index_settings: IndexSettings, name: str) -> None:
    """A member's name is plain; anything else is refused before Redis sees it."""
    with pytest.raises(ConfigurationError, match="member name"):
        hold(index_settings, node(name), HandClock())
