#include "eviction/replay.h"

#include <cstddef>
#include <limits>
#include <numeric>
#include <set>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "eviction/prefix_cache.h"
#include "eviction/shadows.h"

namespace kvcommons::eviction {
namespace {

constexpr std::uint64_t kNever = std::numeric_limits<std::uint64_t>::max();

template <typename Visit>
void each_request(const Trace& trace, Visit visit) {
  std::size_t at = 0;
  for (const std::uint32_t length : trace.lengths) {
    visit(trace.keys.subspan(at, length), at);
    at += length;
  }
}

void items_of(std::span<const std::uint64_t> chain, std::vector<Item>* items) {
  items->clear();
  for (const std::uint64_t key : chain) items->push_back({key, 1});
}

Replayed replay_static(const Trace& trace, Kind kind, std::uint64_t capacity) {
  PrefixCache cache(kind, capacity, capacity);
  Replayed out;
  std::vector<Item> items;
  each_request(trace, [&](auto chain, std::size_t) {
    items_of(chain, &items);
    out.hits += cache.request(items);
  });
  out.evicted = cache.evicted();
  return out;
}

Replayed replay_auto(const Trace& trace, std::uint64_t capacity) {
  Shadows shadows({.capacity_pages = capacity});
  PrefixCache cache(shadows.best(), capacity, capacity);
  Replayed out;
  std::vector<Item> items;
  each_request(trace, [&](auto chain, std::size_t) {
    items_of(chain, &items);
    out.hits += cache.request(items);
    shadows.request(chain, 1);
    cache.follow(shadows.best());
    if (shadows.best() != Kind::Cost) cache.policy().set_ageing(shadows.ageing());
  });
  out.evicted = cache.evicted();
  out.switches = shadows.stats().switches;
  return out;
}

// Knows of each chunk the request that uses it next.
class Belady {
 public:
  explicit Belady(std::uint64_t capacity) : capacity_(capacity) {}

  std::uint64_t request(std::span<const std::uint64_t> chain, std::span<const std::uint64_t> next) {
    std::size_t hit = 0;
    for (; hit < chain.size(); ++hit) {
      const auto found = nodes_.find(chain[hit]);
      if (found == nodes_.end()) break;
      forget(found->second);
      found->second.next = next[hit];
      refresh(found->second);
    }
    Node* parent = hit == 0 ? nullptr : &nodes_.at(chain[hit - 1]);
    for (std::size_t i = hit; i < chain.size() && next[i] != kNever && room(parent, next[i]); ++i) {
      Node& node = nodes_[chain[i]];
      node = {chain[i], next[i], i, parent, 0};
      if (parent != nullptr) {
        forget(*parent);
        ++parent->children;
      }
      refresh(node);
      parent = &node;
    }
    return hit;
  }
  [[nodiscard]] std::uint64_t evicted() const { return evicted_; }

 private:
  struct Node {
    std::uint64_t key = 0, next = 0, depth = 0;
    Node* parent = nullptr;
    std::uint32_t children = 0;
  };
  using Rank = std::tuple<std::uint64_t, std::uint64_t, Node*>;  // farthest, then deepest, last
  static Rank rank(Node& node) { return {node.next, node.depth, &node}; }
  void forget(Node& node) { candidates_.erase(rank(node)); }
  void refresh(Node& node) {
    if (node.children == 0) candidates_.insert(rank(node));
  }
  bool room(Node* parent, std::uint64_t next) {
    if (nodes_.size() < capacity_) return true;
    auto last = candidates_.rbegin();
    if (last != candidates_.rend() && std::get<Node*>(*last) == parent) ++last;  // its own
    if (last == candidates_.rend() || std::get<0>(*last) <= next) return false;
    Node& victim = *std::get<Node*>(*last);
    Node* above = victim.parent;
    forget(victim);
    nodes_.erase(std::uint64_t{victim.key});
    ++evicted_;
    if (above != nullptr && --above->children == 0) refresh(*above);
    return true;
  }

  std::uint64_t capacity_, evicted_ = 0;
  std::unordered_map<std::uint64_t, Node> nodes_;
  std::set<Rank> candidates_;
};

Replayed replay_belady(const Trace& trace, std::uint64_t capacity) {
  std::vector<std::uint64_t> next(trace.keys.size(), kNever);
  std::unordered_map<std::uint64_t, std::pair<std::size_t, std::uint64_t>> seen;
  std::uint64_t request = 0;
  each_request(trace, [&](auto chain, std::size_t at) {
    for (std::size_t i = 0; i < chain.size(); ++i) {
      const auto [found, inserted] = seen.try_emplace(chain[i], at + i, request);
      if (!inserted) {
        next[found->second.first] = request;
        found->second = {at + i, request};
      }
    }
    ++request;
  });
  Belady cache(capacity);
  Replayed out;
  each_request(trace, [&](auto chain, std::size_t at) {
    out.hits += cache.request(chain, std::span<const std::uint64_t>(next).subspan(at, chain.size()));
  });
  out.evicted = cache.evicted();
  return out;
}

}  // namespace

std::optional<Replayed> replay(const Trace& trace, std::string_view policy, std::uint64_t capacity_chunks) {
  const std::uint64_t total = std::accumulate(trace.lengths.begin(), trace.lengths.end(), std::uint64_t{0});
  if (total != trace.keys.size()) return std::nullopt;
  if (policy == "auto") return replay_auto(trace, capacity_chunks);
  if (policy == "belady") return replay_belady(trace, capacity_chunks);
  const auto kind = kind_of(policy);
  if (!kind) return std::nullopt;
  return replay_static(trace, *kind, capacity_chunks);
}

}  // namespace kvcommons::eviction
