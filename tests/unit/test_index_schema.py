"""The index's schema without a server: packing, ages and epochs at their wraps, records, depths from probes."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvcommons_core import limits
from kvcommons_core.errors import ConfigurationError, CorruptRecordError
from kvcommons_core.index import (
    Holder,
    MemberInfo,
    MemberKind,
    Names,
    Tenure,
    fold,
    gallop,
    text_key8,
    token_key8,
    unpack_holders,
)
from kvcommons_core.index.connection import IndexConnection
from kvcommons_core.index.schema import (
    age_units,
    age_units_max,
    born_of,
    decode_member,
    encode_info,
    epoch_is_newer,
    lease_value,
    slot_rest_seconds,
)
from kvcommons_core.settings import IndexSettings

u16 = st.integers(0, 65_535)
holders = st.builds(Holder, slot=u16, epoch=u16, tier=st.integers(0, 255), flags=st.integers(0, 255), born=u16)


@given(some=st.lists(holders, max_size=64))
def test_holders_survive_packing(some: list[Holder]) -> None:
    """Eight bytes a holder, and back."""
    packed = b"".join(one.pack() for one in some)
    assert len(packed) == 8 * len(some)
    assert unpack_holders(packed) == some


def test_a_holder_lies_as_the_schema_says() -> None:
    """Slot, epoch, tier, flags, born; little-endian: other languages read the same."""
    assert Holder(0x0102, 0x0304, 5, 6, 0x0708).pack().hex() == "0201040305060807"


def test_a_length_that_is_no_holders_is_refused() -> None:
    """Foreign bytes are told, not guessed at."""
    with pytest.raises(CorruptRecordError, match="9 bytes"):
        unpack_holders(bytes(9))


def test_names_are_the_prefix_and_raw_bytes() -> None:
    """A holder's key is the prefix, an h and eight raw bytes."""
    names = Names("kvc:default:")
    assert names.holders(text_key8(0x0102030405060708)) == b"kvc:default:h\x08\x07\x06\x05\x04\x03\x02\x01"
    assert names.holders(token_key8(bytes(range(32)))) == b"kvc:default:h" + bytes(range(8))
    assert (names.members, names.lease(7), names.feedback) == (b"kvc:default:m", b"kvc:default:l7", b"kvc:default:fb")
    with pytest.raises(ConfigurationError):
        Names("")


@given(at=st.integers(0, 2**40), later=st.integers(0, 16 * 2**15 - 32))
def test_ages_are_right_across_the_wrap_of_16_bits(at: int, later: int) -> None:
    """A birth tells its age for six days, whenever it was; a clock slightly behind sees age 0."""
    age = age_units(born_of(at), born_of(at + later))
    assert abs(age * limits.BORN_UNIT_SECONDS - later) < limits.BORN_UNIT_SECONDS
    assert age_units(born_of(at + 60), born_of(at)) == 0


@given(cap=st.integers(1, 16 * 2**15 - 1), at=st.integers(0, 2**40), age=st.integers(0, 2**20))
def test_the_age_cap_never_drops_too_soon(cap: int, at: int, age: int) -> None:
    """What is younger than the cap is believed, roundings included."""
    if age <= cap and age < 16 * 2**15 - 32:
        assert age_units(born_of(at), born_of(at + age)) <= age_units_max(cap)


@given(epoch=u16, distance=st.integers(1, 32_767))
def test_newer_is_newer_across_the_wrap(epoch: int, distance: int) -> None:
    """Epochs compare by their distance modulo 2**16."""
    assert epoch_is_newer((epoch + distance) % 65_536, epoch)
    assert not epoch_is_newer(epoch, (epoch + distance) % 65_536)
    assert not epoch_is_newer(epoch, epoch)


@given(epoch=u16, steps=st.lists(st.integers(1, limits.EPOCH_JUMP_MAX), max_size=200))
def test_no_epoch_comes_round_within_one_tenancy(epoch: int, steps: list[int]) -> None:
    """However a member advances, it leaves its slot before any epoch is used twice."""
    tenure: Tenure | None = Tenure(9, epoch)
    seen = {epoch}
    for step in steps:
        assert tenure is not None
        tenure = tenure.advanced(step)
        if tenure is None:
            break
        assert tenure.epoch not in seen
        seen.add(tenure.epoch)


@given(cap=st.integers(1, 500_000))
def test_a_slot_rests_longer_than_any_holder_lives(cap: int) -> None:
    """Rest covers the cap, the roundings of birth and the minute by which a record's last sign of life may lag."""
    assert slot_rest_seconds(cap) > age_units_max(cap) * limits.BORN_UNIT_SECONDS + limits.MEMBER_SEEN_SECONDS


INFO = MemberInfo(name="n1", kind=MemberKind.NODE, address="a:1", zone="z", capacity_bytes=5)


def test_a_record_is_read_as_it_was_written() -> None:
    """Epoch, distance, last sign of life, incarnation and description."""
    member = decode_member(3, f"7 2 1700000000 abcd {encode_info(INFO)}".encode())
    assert (member.slot, member.epoch, member.used, member.incarnation) == (3, 7, 2, "abcd")
    assert member.info == INFO
    assert lease_value("abcd", 7) == b"abcd 7"


@given(record=st.binary(max_size=80))
def test_any_bytes_are_a_record_or_a_clear_error(record: bytes) -> None:
    """Nothing else than CorruptRecordError comes of foreign bytes."""
    try:
        decode_member(1, record)
    except CorruptRecordError:
        return


@pytest.mark.parametrize(
    "text", ["{}", "[]", '{"name":"x"}', '{"name":"x","kind":"cat","address":""}', '{"name":"x","kind":"node"}']
)
def test_records_that_lack_a_part_are_refused(text: str) -> None:
    """A description without its name, kind or address is none."""
    with pytest.raises(CorruptRecordError):
        decode_member(1, f"1 1 1 a {text}".encode())


# depths --------------------------------------------------------------------------------------------------------------


def test_dead_old_and_foreign_holders_do_not_count() -> None:
    """Only (slot, epoch) pairs that live now, and holders under the cap, give a hit."""
    packed = b"".join(
        Holder(slot, epoch, 1, 0, born).pack() for slot, epoch, born in ((1, 1, 50), (2, 9, 50), (3, 1, 10))
    )
    assert set(fold([(0, packed)], {1: 1, 2: 1, 3: 1}, 50, 20)) == {1}


def test_a_gap_ends_a_members_run() -> None:
    """A member that lacks one chunk is not credited with those behind it."""
    one, both = Holder(1, 1, 1, 0, 0).pack(), Holder(1, 1, 1, 0, 0).pack() + Holder(2, 1, 1, 0, 0).pack()
    hits = fold([(0, both), (1, one), (2, both)], {1: 1, 2: 1}, 0, 5)
    assert {slot: hit.depth for slot, hit in hits.items()} == {1: 3, 2: 1}


def test_probes_that_do_not_begin_at_the_beginning_tell_nothing() -> None:
    """Without the first key there is no prefix."""
    assert fold([(3, Holder(1, 1, 1, 0, 0).pack())], {1: 1}, 0, 5) == {}
    assert fold([], {1: 1}, 0, 5) == {}


@given(depths=st.dictionaries(st.integers(1, 50), st.integers(0, 400), max_size=10), count=st.integers(0, 400))
async def test_the_clients_gallop_finds_every_depth(depths: dict[int, int], count: int) -> None:
    """With few probes and few round trips it finds what reading all would find."""
    world = [
        b"".join(Holder(slot, 1, 1, 0, 0).pack() for slot, depth in sorted(depths.items()) if depth > at)
        for at in range(count)
    ]
    trips = 0

    async def fetch(indices: list[int]) -> list[bytes]:
        nonlocal trips
        trips += 1
        return [world[index] for index in indices]

    alive = dict.fromkeys(depths, 1)
    probes = await gallop(count, fetch, 10_000)
    assert fold(probes, alive, 0, 5) == fold(list(enumerate(world)), alive, 0, 5)
    assert trips <= 6


async def test_the_clients_gallop_keeps_to_its_budget() -> None:
    """Never more probes than allowed, whatever it would take."""
    rng = random.Random(3)
    world = [bytes(rng.randbytes(8)) for _ in range(2_000)]

    async def fetch(indices: list[int]) -> list[bytes]:
        return [world[index] for index in indices]

    assert len(await gallop(2_000, fetch, 50)) <= 50


@pytest.mark.parametrize("url", ["redis://h:notaport", "redis://:geheim@h:99999", "redis+sentinel://a:1,b:x/m/0"])
def test_an_address_with_a_port_that_can_be_none_is_refused_at_once(url: str) -> None:
    """Bad input stops the start, with its remedy and without the password, instead of a background task later."""
    with pytest.raises(ConfigurationError, match=r"index\.url: .*HOST:PORT") as caught:
        IndexConnection(IndexSettings(url=url))
    assert "geheim" not in str(caught.value)
