#include "index.h"

#include <algorithm>

namespace kvcommons::internal {
namespace {
constexpr int kCandidatesSeenMax = 32;  // of other strides, before the search for a victim gives up in a shard
}

void Parts::push_back(const Part& part) {
  if (size_ == 0 && many_.empty()) {
    one_ = part;
  } else {
    if (many_.empty()) {
      many_.push_back(one_);
    }
    many_.push_back(part);
  }
  ++size_;
}

void Parts::erase(const Part* part) {
  if (!many_.empty()) {
    many_.erase(many_.begin() + (part - many_.data()));
  }
  --size_;
}

void Children::add(const Key& key) {
  if (!many_ && few_.size() < kFewMax) {
    few_.push_back(key);
    return;
  }
  if (!many_) {
    many_ = std::make_unique<std::unordered_multiset<Key, KeyHash>>(few_.begin(), few_.end());
    few_ = {};
  }
  many_->insert(key);
}

bool Children::remove(const Key& key) {
  if (many_) {
    const auto it = many_->find(key);
    if (it == many_->end()) {
      return false;
    }
    many_->erase(it);
    return true;
  }
  const auto it = std::find(few_.begin(), few_.end(), key);
  if (it == few_.end()) {
    return false;
  }
  *it = few_.back();
  few_.pop_back();
  return true;
}

std::vector<Key> Children::list() const { return many_ ? std::vector<Key>(many_->begin(), many_->end()) : few_; }

bool Entry::evictable() const noexcept {
  return children.empty() && holds == 0 && !pinned && !parts.empty() &&
         std::all_of(parts.begin(), parts.end(), [](const Part& p) { return p.sealed; });
}

void IndexShard::forget(Entry& e) {
  if (!e.candidate) {
    return;
  }
  const auto it = candidates.find(e.fingerprint);
  it->second.erase({e.tick, &e});
  if (it->second.empty()) {
    candidates.erase(it);
  }
  e.candidate = false;
}

void IndexShard::refresh(Entry& e) {
  const bool wanted = e.evictable();
  if (wanted && !e.candidate) {
    candidates[e.fingerprint].insert({e.tick, &e});
    e.candidate = true;
  } else if (!wanted) {
    forget(e);
  }
}

void IndexShard::access(Entry& e, std::uint64_t tick) {
  if (!e.candidate) {
    e.tick = tick;
    return;
  }
  auto& set = candidates[e.fingerprint];
  auto node = set.extract({e.tick, &e});
  e.tick = tick;
  node.value().first = tick;
  set.insert(std::move(node));
}

Entry* IndexShard::oldest(std::uint32_t fingerprint, std::uint32_t stride_pages) {
  const auto it = candidates.find(fingerprint);
  if (it == candidates.end()) {
    return nullptr;
  }
  int seen = 0;
  for (const auto& [tick, e] : it->second) {
    const auto usable = [&](const Part& p) { return p.stride_pages == stride_pages; };
    if (std::any_of(e->parts.begin(), e->parts.end(), usable)) {
      return e;
    }
    if (++seen == kCandidatesSeenMax) {
      break;
    }
  }
  return nullptr;
}

}  // namespace kvcommons::internal
