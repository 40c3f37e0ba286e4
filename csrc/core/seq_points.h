// Named points in the core where a test can stop one thread until another has passed. Without a hook a point is one
// relaxed load. Order in tests comes from here, never from sleeping.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvcommons {

enum class SeqPoint : std::uint8_t {
  LookupWalked,   // the hits are counted, the deepest chunk is not held yet
  LookupHeld,     // the deepest chunk is held, the lease is not in the table yet
  EvictChosen,    // a victim was seen, its shard is unlocked again
  EvictRemoved,   // the victim left the index, its slots are not in a free list yet
  BeginClaimed,   // the part is COPYING, no slot has a reader yet
  BeginVerified,  // readers are counted and sampled checksums agreed
  ExpireRevoked,  // parts are revoked, the held chunk is not let go yet
  ReserveLinked,  // the parent knows the child, the child is not in the index yet
  ReservePlaced,  // the child is in the index without a slot
  CommitClaimed,  // the session gave up its claim on the slot, the slot is not sealed yet
  ClearFenced,    // the fingerprint's epoch has moved, no shard was swept yet

  PromoteReserved,   // memory has room for chunks that a tier holds, nothing of them is read
  PromoteRead,       // the tier has filled that room, nothing is committed
  PromoteCommitted,  // one of their shards is committed, the next one is not
  PromoteEnded,      // all of them are, nobody was told

  DiskPutBegun,       // an extent has its place, nothing of it is written
  DiskPutWritten,     // it is written, the index does not know it yet
  DiskFooterBegun,    // a segment is full and written, its table is not
  DiskFooterWritten,  // the table is written, nothing is synced
  DiskSealed,         // the segment is synced
  DiskReuseChosen,    // the index forgot the oldest segment, its old header still stands
  DiskReuseBegun,     // the new header is written, the first extent is not
  DiskRecovering,     // a part of the segments was read back
};

using SeqHook = void (*)(SeqPoint);

inline std::atomic<SeqHook>& seq_hook() noexcept {
  static std::atomic<SeqHook> hook{nullptr};
  return hook;
}

inline void seq_point(SeqPoint point) {
  if (SeqHook hook = seq_hook().load(std::memory_order_relaxed); hook != nullptr) [[unlikely]] {
    hook(point);
  }
}

}  // namespace kvcommons
