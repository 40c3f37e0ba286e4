// Moved because somebody asked for it, and not because an engine stored or wanted it: the same queues and budgets.
#include <algorithm>

#include "tiers/manager_impl.h"

namespace kvcommons {

std::uint64_t TierManager::Impl::write(const Key& fingerprint, std::span<const Key> keys) {
  std::vector<SealedShard> shards;
  for (const Rect& rect : rects_of(fingerprint)) {
    for (const Key& key : keys) {
      Borrowed borrowed;
      if (!store_->borrow(fingerprint, key, rect, &borrowed)) continue;
      shards.push_back({fingerprint, key, rect, borrowed.payload_bytes});
      store_->give_back(borrowed);
    }
  }
  const std::lock_guard lock(mutex_);
  std::size_t most = 0;
  for (const WayOut& way : ways_) most = std::max(most, way.waiting.size());
  const std::size_t room = quiet_ || most >= config_.write_queue_max ? 0 : config_.write_queue_max - most;
  shards.resize(std::min(shards.size(), room));
  for (WayOut& way : ways_) way.waiting.insert(way.waiting.end(), shards.begin(), shards.end());
  wake_locked();
  return shards.size();
}

// Those of the known rectangles that memory or a tier has of this chunk; an engine's own layout, where one that it
// asked for is there whole.
bool TierManager::Impl::layout_of(const Key& fingerprint, const Key& key, SessionSpec* spec, std::uint64_t* tenant) {
  spec->fingerprint = fingerprint;
  const auto add = [&](const Rect& rect, std::uint64_t bytes, std::uint32_t tokens, std::uint64_t of) {
    spec->shards.push_back({rect, bytes});
    spec->chunk_tokens = tokens;
    *tenant = of;
  };
  for (const Rect& rect : rects_of(fingerprint)) {
    Borrowed borrowed;
    if (store_->borrow(fingerprint, key, rect, &borrowed)) {
      store_->give_back(borrowed);
      add(rect, borrowed.payload_bytes, borrowed.chunk_tokens, borrowed.tenant);
      continue;
    }
    for (const auto& tier : tiers_) {
      ShardMeta meta;
      if (!tier->describe({fingerprint, key, rect}, &meta)) continue;
      add(rect, memory_bytes(meta), meta.chunk_tokens, meta.tenant);
      break;
    }
  }
  const std::lock_guard lock(mutex_);
  for (const LayoutPtr& layout : layouts_) {
    const auto there = [&](const ShardSpec& shard) {
      return std::find(spec->shards.begin(), spec->shards.end(), shard) != spec->shards.end();
    };
    const auto& shards = layout->spec.shards;
    if (layout->spec.fingerprint == fingerprint && std::all_of(shards.begin(), shards.end(), there)) {
      *spec = layout->spec;
      break;
    }
  }
  return !spec->shards.empty();
}

Expected TierManager::Impl::bring(const Key& fingerprint, std::span<const Key> keys) {
  const std::uint32_t hit = store_->lookup_any(fingerprint, keys);
  if (hit >= keys.size()) return {};
  SessionSpec spec;
  std::uint64_t tenant = 0;
  if (!layout_of(fingerprint, keys[hit], &spec, &tenant)) return {};
  return wanted_as(spec, tenant, keys, hit);
}

Expected TierManager::Impl::bring_from(std::string_view peer, const SessionSpec& spec, std::uint64_t tenant,
                                       std::span<const Key> keys) {
  const std::uint32_t hit = store_->lookup_any(spec.fingerprint, keys);
  if (hit >= keys.size() || spec.shards.empty() || peer.empty()) return {};
  Asked asked;
  asked.spec = spec;
  asked.tenant = tenant;
  asked.from = peer;
  return wanted_for(asked, keys, hit);
}

std::uint64_t TierManager::Impl::remove(std::size_t tier, const Key& fingerprint, std::span<const Key> keys) {
  if (tier >= tiers_.size()) return 0;
  std::vector<ShardId> ids;
  for (const Rect& rect : rects_of(fingerprint)) {
    for (const Key& key : keys) ids.push_back({fingerprint, key, rect});
  }
  return tiers_[tier]->remove(ids);
}

}  // namespace kvcommons
