"""What stands in Redis: names of keys, packed holders, epochs, members. Pure: no client, no clock.

    <prefix>h<8 raw bytes>   string   holders of one text or token key, 8 bytes each, ascending by slot, at most 64
    <prefix>m                hash     slot -> member (JSON), "@<name>" -> slot, "#v" -> version of the hash, "#g" -> its random generation
    <prefix>l<slot>          string   a member's lease of 3 s: "<incarnation> <epoch>"
    <prefix>fb               channel  what requests really reused

A holder is believed only while its (slot, epoch) is a living member's and it is younger than the age cap. A member that restarts, clears
its cache, loses its lease or misses events takes a new epoch, which voids at once everything that it ever published. No (slot, epoch) is
used twice within one tenancy of a slot (at most 60,000 epochs, counted by distance), and a slot rests for longer than the age cap before
another tenant gets it; tenancies begin at a random slot and a random epoch. So neither a flush nor a failover to a stale copy revives one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from kvcommons_core import limits
from kvcommons_core.errors import ConfigurationError, CorruptRecordError

RECORD_VERSION: Final = 1
_HOLDER: Final = struct.Struct("<HHBBH")
_KEY: Final = struct.Struct("<Q")
_BORN_MASK: Final = 0xFFFF


class Tier(IntEnum):
    """Where a holder has it; a lower one is nearer to the computation."""

    ENGINE = 0
    MEMORY = 1
    DISK = 2
    PEER = 3


class MemberKind(StrEnum):
    """Who holds."""

    NODE = "node"
    ENGINE = "engine"


class Names:
    """The keys of one pool."""

    def __init__(self, prefix: str) -> None:
        if not prefix or len(prefix) > 128:
            raise ConfigurationError("index.prefix", prefix, "give 1 to 128 characters")
        raw = prefix.encode()
        self.prefix = prefix
        self.members = raw + b"m"
        self.feedback = raw + b"fb"
        self.routers = raw + b"rt"
        self._holders = raw + b"h"
        self._lease = raw + b"l"

    def holders(self, key8: bytes) -> bytes:
        return self._holders + key8

    def lease(self, slot: int) -> bytes:
        return self._lease + str(slot).encode()


def text_key8(key: int) -> bytes:
    """A text key as the index names it."""
    return _KEY.pack(key)


def token_key8(key: bytes) -> bytes:
    """A token key as the index names it: its first 8 bytes, for a hint needs no more."""
    return key[:8]


class Holder(NamedTuple):
    """One member's claim on a key."""

    slot: int
    epoch: int
    tier: int
    flags: int
    born: int
    """When it was last published, in units of 16 s modulo 2**16."""

    def pack(self) -> bytes:
        return _HOLDER.pack(*self)


def unpack_holders(packed: bytes) -> list[Holder]:
    """Every holder of one key.

    :raises CorruptRecordError: if the length is not a whole number of holders.
    """
    return [Holder(*item) for item in iter_holders(packed)]


def iter_holders(packed: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """The same as plain tuples (slot, epoch, tier, flags, born), for the hot path."""
    if len(packed) % limits.HOLDER_BYTES:
        raise CorruptRecordError(f"holders of {len(packed)} bytes: not a multiple of {limits.HOLDER_BYTES}")
    return _HOLDER.iter_unpack(packed)


def born_of(unix_seconds: float) -> int:
    """A moment as a holder's birth."""
    return int(unix_seconds) // limits.BORN_UNIT_SECONDS & _BORN_MASK


def age_units(born: int, now: int) -> int:
    """Age in units of 16 s; a birth slightly in the future (another clock) is age 0."""
    age = now - born & _BORN_MASK
    return 0 if age >= 1 << 15 else age


def age_units_max(age_seconds_max: int) -> int:
    """The age cap in units, rounded up by one for the two roundings."""
    return age_seconds_max // limits.BORN_UNIT_SECONDS + 1


# epochs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tenure:
    """A member's hold on a slot: its present epoch, and the distance that it has gone since it got the slot."""

    slot: int
    epoch: int
    used: int = 0

    def advanced(self, distance: int = 1) -> Tenure | None:
        """The next epoch, or None when this slot's epochs are used up and another slot is needed."""
        used = self.used + distance
        if used > limits.EPOCHS_PER_SLOT_MAX:
            return None
        return Tenure(self.slot, (self.epoch + distance) & 0xFFFF, used)


def epoch_is_newer(epoch: int, than: int) -> bool:
    """Modulo 2**16; right while the two are less than half of that apart."""
    return 0 < (epoch - than & 0xFFFF) < 1 << 15


def slot_rest_seconds(age_seconds_max: int) -> int:
    """How long a dead member's slot stays untouched: until nothing that it published can be believed, clocks and roundings included."""
    return age_seconds_max + 4 * limits.BORN_UNIT_SECONDS + 2 * limits.MEMBER_SEEN_SECONDS


# members -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    """What a member says of itself. `name` is unique in the pool and outlives restarts."""

    name: str
    kind: MemberKind
    address: str
    node: str = ""
    """The cache node that it is, or that it is attached to."""
    zone: str = ""
    model: str = ""
    fingerprint: str = ""
    dp_rank: int = -1
    capacity_bytes: int = 0
    capacity_tokens: int = 0
    peer: str = ""
    """HOST:PORT where a node answers other nodes; empty: it does not."""


@dataclass(frozen=True, slots=True)
class Member:
    """One living entry of the members' hash."""

    slot: int
    epoch: int
    used: int
    incarnation: str
    """Random word of the registration; a lease with another one is another process'."""
    seen: int
    """Unix seconds when it last said so, to within a minute."""
    info: MemberInfo


def lease_value(incarnation: str, epoch: int) -> bytes:
    return f"{incarnation} {epoch}".encode()


def encode_info(info: MemberInfo) -> str:
    """A member's description as it stands in its record.

    :raises ConfigurationError: if the name is empty, long or holds what the scripts can't tell from syntax.
    """
    if not 0 < len(info.name) <= 253 or set('"\\ \n\r\t') & set(info.name) or not info.name.isascii():
        raise ConfigurationError(
            "member name", info.name, "give 1 to 253 ASCII characters without quotes, backslashes or spaces"
        )
    return json.dumps({"v": RECORD_VERSION} | asdict(info), separators=(",", ":"), sort_keys=True)


def decode_member(slot: int, record: bytes) -> Member:
    """A member's record as the registering script wrote it: "epoch used seen incarnation json".

    :raises CorruptRecordError: if it is not one.
    """
    try:
        epoch, used, seen, incarnation, text = record.decode().split(" ", 4)
        document = json.loads(text)
        known = {field.name for field in fields(MemberInfo)}  # a newer writer's fields are not ours to judge
        values = {name: value for name, value in document.items() if name in known}
        info = MemberInfo(**(values | {"kind": MemberKind(values["kind"])}))
        return Member(slot, int(epoch), int(used), incarnation, int(seen), info)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptRecordError(f"member {slot}: {record[:80]!r}: {error}") from error
