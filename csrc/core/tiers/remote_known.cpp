#include "tiers/remote_known.h"

namespace kvcommons::tiers {

RemoteKnown::Entry* RemoteKnown::find(const ShardId& id, std::uint64_t now_ms) {
  const auto found = known_.find(id);
  if (found == known_.end()) return nullptr;
  Entry& entry = found->second;
  const bool ends = entry.state == State::Absent || (entry.state == State::Here && !entry.own);
  if (!ends || entry.until_ms > now_ms) return &entry;
  erase(id);
  return nullptr;
}

RemoteKnown::Entry& RemoteKnown::set(const ShardMeta& meta, State state, bool own, std::uint64_t until_ms,
                                     std::vector<ShardMeta>* dropped) {
  if (!known_.contains(meta.id) && known_.size() >= shards_max_) {
    auto& first = other_.empty() ? own_ : other_;
    const ShardId oldest = first.begin()->second;
    if (&first == &own_) dropped->push_back(known_.at(oldest).meta);
    erase(oldest);
  }
  Entry& entry = known_[meta.id];
  if (entry.number != 0) unlink(entry);
  entry = {meta, state, own, until_ms, next_number_++};
  (own ? own_ : other_).emplace(entry.number, meta.id);
  if (own) own_bytes_ += object_bytes(meta);
  return entry;
}

void RemoteKnown::unlink(const Entry& entry) {
  (entry.own ? own_ : other_).erase(entry.number);
  if (entry.own) own_bytes_ -= object_bytes(entry.meta);
}

void RemoteKnown::erase(const ShardId& id) {
  const auto found = known_.find(id);
  if (found == known_.end()) return;
  unlink(found->second);
  known_.erase(found);
}

std::uint64_t RemoteKnown::metadata_bytes() const noexcept {
  constexpr std::uint64_t kNodes = 6 * sizeof(void*) + sizeof(ShardId) + 2 * sizeof(std::uint64_t);  // of both maps
  return known_.size() * (sizeof(Map::value_type) + kNodes) + known_.bucket_count() * sizeof(void*);
}

const RemoteKnown::Entry* RemoteKnown::oldest_own() const {
  return own_.empty() ? nullptr : &known_.at(own_.begin()->second);
}

std::vector<ShardMeta> RemoteKnown::own_page(std::uint64_t* cursor, std::size_t max) const {
  std::vector<ShardMeta> out;
  auto at = own_.upper_bound(*cursor);
  for (; at != own_.end() && out.size() < max; ++at) {
    out.push_back(known_.at(at->second).meta);
    *cursor = at->first;
  }
  if (at == own_.end()) *cursor = 0;
  return out;
}

std::vector<ShardMeta> RemoteKnown::forget(const Key* fingerprint) {
  std::vector<ShardMeta> own;
  for (auto it = known_.begin(); it != known_.end();) {
    if (fingerprint != nullptr && !(it->first.fingerprint == *fingerprint)) {
      ++it;
      continue;
    }
    if (it->second.own) own.push_back(it->second.meta);
    unlink(it->second);
    it = known_.erase(it);
  }
  return own;
}

}  // namespace kvcommons::tiers
