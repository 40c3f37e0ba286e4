// Protocol 1 between an engine's process and the node: frames over a Unix stream socket, little-endian, fixed layout.
// Every request gets exactly one reply of the same type with kReplyBit, the same request_id and a Status.
// A reply whose status is not Ok carries a UTF-8 message (<= 1 KiB) as its payload.
// Hashes travel, tokens never.
#pragma once

#include <cstdint>

#include "types.h"

namespace kvcommons::wire {

inline constexpr std::uint32_t kMagic = 0x3143564b;  // "KVC1"
inline constexpr std::uint16_t kVersionMin = 1;
inline constexpr std::uint16_t kVersionMax = 1;
inline constexpr std::uint16_t kReplyBit = 0x8000;

enum class Type : std::uint16_t {
  Hello = 1,
  Lookup = 2,
  Begin = 3,
  Reserve = 4,
  Commit = 5,
  Abort = 6,
  Release = 7,
  Touch = 8,
  Stat = 9,
  Feedback = 10,
  Drained = 11,
  Describe = 12,
};

struct Header {
  std::uint32_t payload_bytes;
  std::uint16_t type;
  std::uint16_t status;  // 0 in requests
  std::uint64_t request_id;
};
static_assert(sizeof(Header) == 16);

enum class Role : std::uint8_t { Scheduler = 0, Worker = 1, Tool = 2 };

// Followed by shards x HelloShard. Ancillary: optionally one pidfd of the sender (SCM_RIGHTS), for nodes in another
// PID namespace; the node prefers SO_PEERPIDFD, then pidfd_open(SO_PEERCRED pid), then this.
struct Hello {
  std::uint32_t magic;
  std::uint16_t version_min, version_max;
  std::uint8_t role;
  std::uint8_t options;     // HelloOptions; a node ignores what it does not know
  std::uint16_t shards;     // 0 for tools
  std::uint32_t own_shard;  // 0xffffffff: none
  std::uint32_t chunk_tokens;
  std::uint8_t fingerprint[kKeyBytes];
  std::uint32_t readers_per_shard;  // ranks that each begin the same shard of a lease; 0 means 1
  // A client that attaches again names its former session here, having waited for its own copies to end: what that
  // session still held is drained. 0 = none.
  std::uint64_t drained_session;
};
static_assert(sizeof(Hello) == 64);

enum HelloOptions : std::uint8_t {
  kOptionExact = 1,  // this engine takes no KV that a codec changed, whatever its node is set to
};

struct HelloShard {
  Rect rect;
  std::uint64_t slot_bytes;
};
static_assert(sizeof(HelloShard) == 16);

enum HelloFlags : std::uint32_t {
  kFlagMultiTenant = 1,  // the connector must not cache unsalted requests
  kFlagTiers = 2,        // there is more behind memory: an early lookup has it brought in
  kFlagLayouts = 4,      // the node wants a DESCRIBE of what has slots
};
// Bits 8 to 31 of the flags: a codec with loss that this node answers from (id in 8 to 15, group in 16 to 31); 0: none.
// The session is then one of the lossy identity of its fingerprint (docs/codecs.md), from which keys are derived.
inline constexpr unsigned kLossyCodecShift = 8, kLossyGroupShift = 16;

// Followed by node_id_bytes of UTF-8. Ancillary: the arena's fd (SCM_RIGHTS); a client maps it again only if arena_id
// changed. Workers and schedulers get namespace_secret; tools get zeros.
struct HelloReply {
  std::uint16_t version;
  std::uint16_t node_id_bytes;
  std::uint32_t flags;
  std::uint64_t session;
  std::uint64_t arena_bytes;
  std::uint8_t arena_id[16];
  std::uint8_t namespace_secret[32];
};
static_assert(sizeof(HelloReply) == 72);

enum LookupFlags : std::uint32_t { kLookupLease = 1 };

struct Lookup {  // followed by count x Key
  std::uint64_t tenant;
  std::uint32_t flags;
  std::uint32_t count;
};
struct LookupReply {
  std::uint64_t lease;
  std::uint32_t hit_chunks;      // in memory, covered by the lease
  std::uint32_t pending_chunks;  // further leading chunks that are being fetched (disk, peers): ask again
};

struct Begin {
  std::uint64_t lease;
};
struct SlotWire {
  std::uint64_t offset_bytes;
  std::uint32_t generation;
  std::uint32_t status;  // ReserveStatus in RESERVE replies, else 0
};
static_assert(sizeof(SlotWire) == 16);
// BeginReply: count u32, reserved u32, then count x SlotWire.

struct Reserve {  // followed by count x Key (consecutive chunks)
  std::uint64_t tenant;
  std::uint32_t count;
  std::uint32_t hints;  // for eviction (eviction/hints.h); 0 says nothing, unknown bits are ignored
  std::uint8_t parent[kKeyBytes];
};
// ReserveReply: count u32, reserved u32, then count x SlotWire.

struct CountPrefix {
  std::uint32_t count;
  std::uint32_t reserved;
};

struct CommitEntry {  // COMMIT: CountPrefix, count x CommitEntry, then all text keys (u64) in order
  std::uint64_t offset_bytes;
  std::uint32_t generation;
  std::uint32_t text_keys;
  std::uint64_t checksum;
};
static_assert(sizeof(CommitEntry) == 24);
// CommitReply: CountPrefix (how many were accepted).
// ABORT: CountPrefix, count x SlotWire. RELEASE: Begin. TOUCH: CountPrefix, count x Key. Replies: empty.
// DRAINED: Drained; the reply is empty. Says of a former session of the same process (or of this one, before closing)
// that all its copies have ended. Sessions of other processes are left alone.
struct Drained {
  std::uint64_t session;
};
// DESCRIBE: how the slots of this session's shards lie in memory; the reply is empty. Only to a node with kFlagLayouts.
struct Describe {
  std::uint8_t element;  // 1 float32, 2 float16, 3 bfloat16
  std::uint8_t order;    // of a block's axes, as in a codec's payload
  std::uint16_t reserved;
  std::uint32_t block_tokens, k_size, v_size;
};
static_assert(sizeof(Describe) == 16);
// STAT: empty; the reply is a JSON object of counters.
// FEEDBACK: a JSON object (<= 4 KiB): what one request really reused. No reply is awaited; one is sent all the same.

}  // namespace kvcommons::wire
