// What a node knows of a store that it shares with others: what it has put there itself, first in, first out within its
// capacity, and for a while what it was told about the rest. Not thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <unordered_map>
#include <vector>

#include "tier.h"
#include "tiers/remote_object.h"

namespace kvcommons::tiers {

class RemoteKnown {
 public:
  enum class State : std::uint8_t {
    Here,
    Putting,  // a write is under way
    Leaving,  // a removal is under way: not here
    Absent,   // the store said that it has it not
    Asked,
  };
  struct Entry {
    ShardMeta meta;  // whole of what this node has put or read; else the identity and payload_bytes
    State state{};
    bool own = false;            // Here: put by this node in this life, and counted within its capacity
    std::uint64_t until_ms = 0;  // Here, Absent: unknown again then. Asked: a lookup waits for the answer until then
    std::uint64_t number = 0;    // of this state: another one, and it has changed
  };

  explicit RemoteKnown(std::size_t shards_max) : shards_max_(shards_max) {}

  // Null: unknown. What was known until now is forgotten first.
  Entry* find(const ShardId& id, std::uint64_t now_ms);
  // Changes or adds. Where there is no room, what was known longest is forgotten; own ones are told in *dropped.
  Entry& set(const ShardMeta& meta, State state, bool own, std::uint64_t until_ms, std::vector<ShardMeta>* dropped);
  void erase(const ShardId& id);

  [[nodiscard]] std::uint64_t own_shards() const noexcept { return own_.size(); }
  [[nodiscard]] std::uint64_t own_bytes() const noexcept { return own_bytes_; }
  [[nodiscard]] std::uint64_t metadata_bytes() const noexcept;
  // The own one that was put first; null: none. Forgets nothing.
  [[nodiscard]] const Entry* oldest_own() const;
  // Own ones behind `cursor`, in the order in which they were put; 0 starts, and 0 ends.
  std::vector<ShardMeta> own_page(std::uint64_t* cursor, std::size_t max) const;
  // Forgets what is of this fingerprint (nullptr: all); returns the own ones.
  std::vector<ShardMeta> forget(const Key* fingerprint);

  static std::uint64_t object_bytes(const ShardMeta& meta) { return kObjectHeaderBytes + meta.payload_bytes; }

 private:
  using Map = std::unordered_map<ShardId, Entry, ShardIdHash>;
  void unlink(const Entry& entry);

  std::size_t shards_max_;
  Map known_;
  std::map<std::uint64_t, ShardId> own_, other_;  // by number: in the order in which they came to be so
  std::uint64_t own_bytes_ = 0, next_number_ = 1;
};

}  // namespace kvcommons::tiers
