// A tier in this process' own memory: for tests and simulations, where a medium is to be fast and to forget nothing by
// itself. It is first in, first out within its capacity.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>

#include "tier.h"
#include "tiers/tier_thread.h"

namespace kvcommons::tiers {

struct MemoryTierConfig {
  std::uint64_t capacity_bytes = 64ull << 20;  // of slots: payloads rounded up to kSlotAlignBytes
  std::size_t batches_max = 64;                // that may wait
  std::size_t events_max = 65'536;
  std::string name = "memory";
};

using kvcommons::ShardIdHash;

class MemoryTier final : public Tier {
 public:
  explicit MemoryTier(MemoryTierConfig config);
  ~MemoryTier() override;

  [[nodiscard]] std::string_view name() const noexcept override { return config_.name; }
  bool put(std::vector<PutItem> batch, PutDone done) override;
  bool get(std::vector<GetItem> batch, GetDone done) override;
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) override;
  bool describe(const ShardId& id, ShardMeta* out) override;
  void touch(std::span<const ShardId> ids) override;
  std::uint64_t remove(std::span<const ShardId> ids) override;
  std::uint64_t clear(const Key* fingerprint) override;
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override;
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override;
  [[nodiscard]] TierHealth health(std::string* why) const override;
  [[nodiscard]] TierStats stats() const override;

  // For tests: flips one byte of what is kept, as a medium that rots.
  bool rot(const ShardId& id, std::size_t at_byte);

 private:
  struct Kept {
    ShardMeta meta;
    std::vector<std::byte> bytes;
    std::uint64_t number = 0;  // order of arrival, and the inventory's
  };
  using List = std::list<Kept>;  // oldest first

  template <typename Item, typename Result, typename Done>
  bool post(std::vector<Item> batch, Done done, Result (MemoryTier::*one)(const Item&), const Result& closed);
  TierStatus put_one(const PutItem& item);
  GetResult get_one(const GetItem& item);
  bool make_room(std::uint64_t bytes);
  void drop(List::iterator kept);
  void tell(TierEvent::Kind kind, const ShardMeta& meta);

  MemoryTierConfig config_;
  mutable std::mutex mutex_;
  List kept_;
  std::unordered_map<ShardId, List::iterator, ShardIdHash> found_;
  std::uint64_t next_number_ = 1;
  std::deque<TierEvent> events_;
  bool gap_ = false;
  TierStats stats_;
  TierThread thread_;  // last: its jobs use the others
};

}  // namespace kvcommons::tiers
