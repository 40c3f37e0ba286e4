"""Fixed bounds, the unit last in each name. The relations between them are checked here, where they are defined."""

from __future__ import annotations

from typing import Final

KEY_BYTES: Final = 32
CHUNK_TOKENS_DEFAULT: Final = 256
CHUNK_TOKENS_MAX: Final = 65_536
CHUNKS_PER_REQUEST_MAX: Final = 65_536  # a full lookup must fit one frame of the wire
TOKEN_ID_MAX: Final = 2**32 - 1

IDENTITY_RECORD_BYTES_MAX: Final = 65_535  # u16 length
IDENTITY_HASH_BYTES_MAX: Final = 1_024

TEXT_STEP_BYTES: Final = 2_048
TEXT_KEYS_PER_REQUEST_MAX: Final = 8_192  # 16 MiB of text; what is longer is routed by its first part
TEXT_KEYS_PER_CHUNK_MAX: Final = 64

WEIGHT_FILES_MAX: Final = 10_000
WEIGHT_READ_BYTES: Final = 4 << 20
WEIGHT_READERS_MAX: Final = 8

# The index.
HOLDERS_PER_KEY_MAX: Final = 64
HOLDER_BYTES: Final = 8
BORN_UNIT_SECONDS: Final = 16
LEASE_SECONDS: Final = 3.0
LEASE_RENEW_SECONDS: Final = 1.0
HOLDER_TTL_SECONDS_DEFAULT: Final = 3_600
HOLDER_AGE_SECONDS_MAX_DEFAULT: Final = 21_600
SLOT_MIN: Final = 1
SLOT_MAX: Final = 65_534
# After so many epochs a member moves to another slot, so that no (slot, epoch) is used twice in one tenancy.
EPOCHS_PER_SLOT_MAX: Final = 60_000
# A restart that has lost its own counter leaps over the epochs that a stale copy of Redis may have missed.
EPOCH_JUMP_MAX: Final = 2_048
MEMBER_SEEN_SECONDS: Final = 60  # how often a member's record says that it lives
STREAM_OPS_MAX: Final = 262_144
STREAM_BATCH_OPS_MAX: Final = 1_024
SCRIPT_KEYS_MAX: Final = 64
LOOKUP_KEYS_MAX: Final = TEXT_KEYS_PER_REQUEST_MAX
LOOKUP_MGET_KEYS_MAX: Final = 64
LOOKUP_PROBES_MAX: Final = 256
MIRROR_KEYS_MAX_DEFAULT: Final = 131_072
FEEDBACK_BYTES_MAX: Final = 16_384

if not LEASE_RENEW_SECONDS * 2 < LEASE_SECONDS:
    raise AssertionError("one lost renewal must not cost a member its lease")
if not HOLDER_AGE_SECONDS_MAX_DEFAULT < BORN_UNIT_SECONDS * 2**15:
    raise AssertionError("the 16-bit birth of a holder must tell its age from its future")
if not EPOCHS_PER_SLOT_MAX + EPOCH_JUMP_MAX < 2**16:
    raise AssertionError("an epoch must not come round within one tenancy of a slot")
if not LOOKUP_MGET_KEYS_MAX <= LOOKUP_PROBES_MAX:
    raise AssertionError("a chain short enough for MGET never needs more probes than a script may make")
