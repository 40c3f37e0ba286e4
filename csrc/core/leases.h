// The table of leases. A part is one shard's side of a lease: PENDING until begun, COPYING while a session reads, then
// done. What a lease names (slots, the held chunk) never changes after it is made; who copies does, under the mutex.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

#include "records.h"
#include "store.h"

namespace kvcommons::internal {

struct LeasedSlot {
  std::uint32_t offset_pages = 0;  // of kSlotAlignBytes
  std::uint32_t slot = kNoSlot;
  std::uint32_t generation = 0;
  std::uint32_t index_shard = 0;
  [[nodiscard]] std::uint64_t offset_bytes() const noexcept { return offset_pages * kSlotAlignBytes; }
};
static_assert(sizeof(LeasedSlot) == 16);

struct LeasePart {
  std::uint16_t rect = 0;
  std::uint32_t begins_left = 1;  // more than one where ranks share a shard (MLA); 0 = not PENDING any more
  std::vector<SessionId> copying;
};

struct Lease {
  LeaseId id = 0;
  SessionId session = 0;
  std::uint32_t fingerprint = 0;
  std::uint64_t created_ms = 0;
  std::uint32_t chunks = 0;
  std::uint64_t held_id = 0;      // deepest chunk: holding it keeps all before it, for a parent is never evicted
  std::vector<LeasedSlot> slots;  // chunk by chunk, within it as parts
  std::vector<LeasePart> parts;   // guarded by the table
  std::list<LeaseId>::iterator place;
};
using LeasePtr = std::shared_ptr<Lease>;

class Leases {
 public:
  explicit Leases(std::uint32_t leases_max) : leases_max_(leases_max) {}

  // 0 if the table is full. Fills in the id.
  LeaseId add(const LeasePtr& lease);

  enum class Claim : std::uint8_t { Ok, Gone, Busy, Denied };
  // PENDING -> COPYING for the part of `rect`.
  Claim claim(LeaseId id, SessionId session, std::uint32_t fingerprint, std::uint16_t rect, LeasePtr* lease,
              std::size_t* part);
  // What `session` copies of the lease; nothing changes. The slots' readers are let go, then finished() is called.
  struct Copying {
    LeasePtr lease;
    std::size_t part = 0;
  };
  std::optional<Copying> copying(LeaseId id, SessionId session);
  std::vector<Copying> copying_all(SessionId session);
  // Functions below return the leases that ended by them: out of the table, their held chunk to be let go.
  LeasePtr finished(const Copying& copying, SessionId session, bool revoke_rest);
  // Scheduler: revokes what nobody began. Worker: gives up its own part.
  LeasePtr revoke(LeaseId id, SessionId session, std::uint32_t fingerprint, std::optional<std::uint16_t> own_rect,
                  bool* found);
  std::vector<LeasePtr> revoke_of(SessionId session);
  std::vector<LeasePtr> expire(std::uint64_t created_before_ms);

  struct Counts {
    std::uint64_t pending = 0, copying = 0, revoked = 0;
  };
  [[nodiscard]] Counts counts() const;

 private:
  using Table = std::unordered_map<LeaseId, LeasePtr>;
  LeasePtr end_if_done(Table::iterator it);
  bool revoke_pending(Lease& lease);
  void count(const Lease& lease, bool add);

  const std::uint32_t leases_max_;
  mutable std::mutex mutex_;
  Table table_;
  std::list<LeaseId> by_age_;
  Counts counts_;
};

// Unpredictable, never 0.
std::uint64_t random_id();

}  // namespace kvcommons::internal
