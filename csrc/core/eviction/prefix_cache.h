// A cache of chunks without their bytes: the index of a store that runs one policy. Shadows and simulations are made of
// it. Single-threaded.
#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>

#include "eviction/policy.h"

namespace kvcommons::eviction {

struct Item {
  std::uint64_t key = 0;
  std::uint64_t space = 1;  // what it occupies, in the unit of the capacity
};

class PrefixCache {
 public:
  // `chunks`: how many it holds, about.
  PrefixCache(Kind kind, std::uint64_t capacity, std::uint64_t chunks);
  PrefixCache(const PrefixCache&) = delete;  // candidates point into it

  // Leading items that are here; they are used now.
  std::size_t use(std::span<const Item> chain);
  // Puts items [from, end) below item from - 1, which must be here. Stops where no room can be made.
  void put(std::span<const Item> chain, std::size_t from, const Hints& hints = {});
  // The request as a whole: what is not here is computed and kept.
  std::size_t request(std::span<const Item> chain, const Hints& hints = {}) {
    const std::size_t hit = use(chain);
    put(chain, hit, hints);
    return hit;
  }
  [[nodiscard]] bool contains(std::uint64_t key) const { return nodes_.contains(key); }
  void follow(Kind kind);
  // This conversation is over: of its chunks, those that no other conversation shares are the first to go.
  void ended(std::span<const Item> chain);

  [[nodiscard]] Policy& policy() noexcept { return policy_; }
  [[nodiscard]] std::uint64_t used() const noexcept { return used_; }
  [[nodiscard]] std::size_t size() const noexcept { return nodes_.size(); }
  [[nodiscard]] std::uint64_t evicted() const noexcept { return evicted_; }

 private:
  struct Node {
    Chunk chunk;
    std::uint64_t key = 0;
    std::uint64_t space = 0;
    Node* parent = nullptr;
    std::uint32_t children = 0;
    bool held = false;
    bool candidate = false;
  };
  bool make_room(std::uint64_t space);
  [[nodiscard]] Node* victim() const;
  void refresh(Node& node);
  void forget(Node& node);
  void remove(Node& node);

  Policy policy_;
  std::uint64_t capacity_;
  std::uint64_t used_ = 0, tick_ = 0, evicted_ = 0;
  std::unordered_map<std::uint64_t, Node> nodes_;
  std::set<std::pair<Rank, Node*>> candidates_;
};

}  // namespace kvcommons::eviction
