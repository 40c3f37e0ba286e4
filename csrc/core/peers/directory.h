// What is known to be on peers, bounded: where a shard was found a moment ago, and what this node has put there itself.
// Not thread-safe.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "peers/peer_link.h"
#include "tier.h"
#include "tiers/memory_tier.h"

namespace kvcommons::peers {

using LinkPtr = std::shared_ptr<PeerLink>;

// Found on a peer: believed for a short time, and verified by its owner when it is fetched.
struct Location {
  LinkPtr link;
  std::uint32_t epoch = 0, generation = 0;
  std::uint64_t payload_bytes = 0, until_ms = 0;
  bool spare = false;  // as many nodes as are meant to have it
};

class Directory {
 public:
  Directory(std::size_t locations_max, std::uint64_t capacity_bytes)
      : locations_max_(locations_max), capacity_bytes_(capacity_bytes) {}

  void found(const ShardId& id, Location location) {
    if (const auto known = located_.find(id); known != located_.end()) {
      known->second->second = std::move(location);
      order_.splice(order_.end(), order_, known->second);
      return;
    }
    if (located_.size() >= locations_max_) {
      located_.erase(order_.front().first);
      order_.pop_front();
    }
    order_.emplace_back(id, std::move(location));
    located_[id] = std::prev(order_.end());
  }
  [[nodiscard]] const Location* at(const ShardId& id, std::uint64_t now_ms) {
    const auto known = located_.find(id);
    if (known == located_.end()) return nullptr;
    if (known->second->second.until_ms > now_ms) return &known->second->second;
    order_.erase(known->second);
    located_.erase(known);
    return nullptr;
  }
  void forget(const ShardId& id) {
    if (const auto known = located_.find(id); known != located_.end()) {
      order_.erase(known->second);
      located_.erase(known);
    }
  }
  template <typename Meant>
  void forget_if(Meant meant) {
    for (auto it = order_.begin(); it != order_.end();) {
      if (meant(it->first, it->second)) {
        located_.erase(it->first);
        it = order_.erase(it);
      } else {
        ++it;
      }
    }
  }

  // What was put on a peer, the oldest first.
  struct Copy {
    ShardMeta meta;
    LinkPtr link;
    std::uint64_t number = 0;
  };
  [[nodiscard]] const Copy* copy(const ShardId& id) const {
    const auto known = copied_.find(id);
    return known == copied_.end() ? nullptr : &*known->second;
  }
  // What had to go for it is moved to *out.
  bool copied(const ShardMeta& meta, LinkPtr link, std::vector<Copy>* out) {
    if (copied_.contains(meta.id)) return true;
    const std::uint64_t bytes = room(meta.payload_bytes);
    if (bytes > capacity_bytes_) return false;
    while (used_bytes_ + bytes > capacity_bytes_) out->push_back(drop(copies_.begin()));
    copies_.push_back({meta, std::move(link), next_number_++});
    copied_[meta.id] = std::prev(copies_.end());
    used_bytes_ += bytes;
    return true;
  }
  bool uncopy(const ShardId& id, Copy* out) {
    const auto known = copied_.find(id);
    if (known == copied_.end()) return false;
    *out = drop(known->second);
    return true;
  }
  [[nodiscard]] const std::list<Copy>& copies() const noexcept { return copies_; }
  [[nodiscard]] std::uint64_t used_bytes() const noexcept { return used_bytes_; }
  [[nodiscard]] std::size_t locations() const noexcept { return located_.size(); }

  static std::uint64_t room(std::uint64_t payload_bytes) {
    return (payload_bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes;
  }

 private:
  using Order = std::list<std::pair<ShardId, Location>>;
  Copy drop(std::list<Copy>::iterator it) {
    Copy out = std::move(*it);
    used_bytes_ -= room(out.meta.payload_bytes);
    copied_.erase(out.meta.id);
    copies_.erase(it);
    return out;
  }

  std::size_t locations_max_;
  std::uint64_t capacity_bytes_, used_bytes_ = 0, next_number_ = 1;
  Order order_;
  std::unordered_map<ShardId, Order::iterator, tiers::ShardIdHash> located_;
  std::list<Copy> copies_;
  std::unordered_map<ShardId, std::list<Copy>::iterator, tiers::ShardIdHash> copied_;
};

}  // namespace kvcommons::peers
