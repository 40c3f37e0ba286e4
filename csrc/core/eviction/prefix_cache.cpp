#include "eviction/prefix_cache.h"

#include <algorithm>

namespace kvcommons::eviction {

PrefixCache::PrefixCache(Kind kind, std::uint64_t capacity, std::uint64_t chunks)
    : policy_(kind, chunks), capacity_(capacity) {}

void PrefixCache::forget(Node& node) {
  if (node.candidate) {
    candidates_.erase({policy_.rank(node.chunk), &node});
    node.candidate = false;
  }
}

void PrefixCache::refresh(Node& node) {
  if (node.candidate || node.children != 0 || node.held) return;
  candidates_.insert({policy_.rank(node.chunk), &node});
  node.candidate = true;
}

std::size_t PrefixCache::use(std::span<const Item> chain) {
  std::size_t hit = 0;
  std::uint64_t parent = 0;
  for (; hit < chain.size(); ++hit) {
    const auto found = nodes_.find(chain[hit].key);
    if (found == nodes_.end()) break;
    Node& node = found->second;
    if (hit != 0 && (node.parent == nullptr || node.parent->key != parent)) break;
    forget(node);
    policy_.used(node.chunk, tick_ + chain.size() - hit);  // the shallowest is the newest
    refresh(node);
    parent = node.key;
  }
  tick_ += chain.size();
  return hit;
}

PrefixCache::Node* PrefixCache::victim() const {
  if (candidates_.empty()) return nullptr;
  Node* least = candidates_.begin()->second;
  if (least->chunk.first) return least;
  const auto from = candidates_.lower_bound({policy_.start(), nullptr});
  return from != candidates_.end() ? from->second : least;
}

bool PrefixCache::make_room(std::uint64_t space) {
  int spared = 0;
  while (used_ + space > capacity_) {
    Node* node = victim();
    if (node == nullptr) return false;
    forget(*node);
    if (spared < kSparedMax && policy_.spared(node->chunk, ++tick_)) {
      ++spared;
      refresh(*node);
      continue;
    }
    spared = 0;
    policy_.evicted(node->chunk, node->key);
    ++evicted_;
    remove(*node);
  }
  return true;
}

void PrefixCache::remove(Node& node) {
  forget(node);
  policy_.went(node.chunk);
  used_ -= node.space;
  Node* parent = node.parent;
  nodes_.erase(std::uint64_t{node.key});
  if (parent != nullptr) {
    --parent->children;
    refresh(*parent);
  }
}

void PrefixCache::put(std::span<const Item> chain, std::size_t from, const Hints& hints) {
  Node* parent = nullptr;
  if (from != 0) {
    const auto found = nodes_.find(chain[from - 1].key);
    if (found == nodes_.end()) return;
    parent = &found->second;
  }
  for (std::size_t i = from; i < chain.size(); ++i) {
    if (parent != nullptr) {  // the request's own: it may not push itself out
      forget(*parent);
      parent->held = true;
    }
    const bool room = !nodes_.contains(chain[i].key) && make_room(chain[i].space);
    if (parent != nullptr) {
      parent->held = false;
      refresh(*parent);
    }
    if (!room) return;
    Node& node = nodes_[chain[i].key];
    node.key = chain[i].key;
    node.parent = parent;
    node.chunk.set_position(i);
    node.chunk.pages = 1;
    node.space = chain[i].space;
    node.chunk.set_priority(hints.priority);
    node.chunk.first = hints.one_shot;
    policy_.came(node.chunk, node.key, ++tick_);
    used_ += node.space;
    if (parent != nullptr) {
      forget(*parent);
      ++parent->children;
    }
    refresh(node);
    parent = &node;
  }
}

void PrefixCache::follow(Kind kind) {
  if (kind == policy_.kind()) return;
  policy_.follow(kind);
  std::set<std::pair<Rank, Node*>> ranked;
  for (const auto& [rank, node] : candidates_) ranked.insert({policy_.rank(node->chunk), node});
  candidates_ = std::move(ranked);
}

void PrefixCache::ended(std::span<const Item> chain) {
  for (std::size_t i = chain.size(); i-- > 0;) {
    const auto found = nodes_.find(chain[i].key);
    if (found == nodes_.end()) continue;
    Node& node = found->second;
    if (node.children > 1) return;
    forget(node);
    node.chunk.first = true;
    refresh(node);
  }
}

}  // namespace kvcommons::eviction
