// Some of the chunks, in memory and behind it: where they are, and taking them away.
#include <algorithm>

#include "tiers/manager_impl.h"

namespace kvcommons {
namespace {

constexpr std::size_t kPageItems = 4'096;
constexpr std::size_t kPagesMax = 1 << 14;  // of an inventory that grows while it is read
constexpr std::size_t kKeysPerFind = 64;

template <typename Visit>
void each_of(Tier& tier, const Selection& selection, Visit visit) {
  std::uint64_t cursor = 0;
  for (std::size_t page = 0; page < kPagesMax; ++page) {
    for (const ShardMeta& meta : tier.inventory(&cursor, kPageItems)) {
      const bool other = selection.fingerprint && meta.id.fingerprint != *selection.fingerprint;
      if (!other && (!selection.tenant || meta.tenant == *selection.tenant)) visit(meta);
    }
    if (cursor == 0) return;
  }
}

}  // namespace

bool TierManager::Impl::Cleared::covers(const ShardId& id, std::uint64_t tenant) const {
  if (selection.fingerprint && id.fingerprint != *selection.fingerprint) return false;
  if (selection.tenant && tenant != *selection.tenant) return false;
  return keys == nullptr || keys->contains(id.key);
}

// The keys that are meant and all that follow them on this tier.
TierManager::Impl::KeySet TierManager::Impl::with_what_follows(Tier& tier, const Selection& selection) {
  KeySet meant(selection.keys.begin(), selection.keys.end());
  std::vector<std::pair<Key, Key>> links;  // parent, child
  const auto by_parent = [](const auto& one, const auto& other) { return one.first.bytes < other.first.bytes; };
  each_of(tier, selection, [&](const ShardMeta& meta) { links.emplace_back(meta.parent, meta.id.key); });
  std::sort(links.begin(), links.end(), by_parent);
  std::vector<Key> todo = selection.keys;
  while (!todo.empty()) {
    const std::pair<Key, Key> parent{todo.back(), {}};
    todo.pop_back();
    for (auto at = std::lower_bound(links.begin(), links.end(), parent, by_parent);
         at != links.end() && at->first == parent.first; ++at) {
      if (meant.insert(at->second).second) todo.push_back(at->second);
    }
  }
  return meant;
}

// keys: null for any.
std::uint64_t TierManager::Impl::clear_tier(Tier& tier, const Selection& selection, const KeySet* keys) {
  std::uint64_t removed = 0;
  std::vector<ShardId> ids;
  const auto flush = [&] {
    if (!ids.empty()) removed += tier.remove(ids);
    ids.clear();
  };
  // Told first, removed then: an inventory may skip what moves within it.
  std::vector<ShardId> all;
  each_of(tier, selection, [&](const ShardMeta& meta) {
    if (keys == nullptr || keys->contains(meta.id.key)) all.push_back(meta.id);
  });
  for (const ShardId& id : all) {
    ids.push_back(id);
    if (ids.size() == kPageItems) flush();
  }
  flush();
  return removed;
}

// Tiers first: what a read that is under way brings back from there is in memory by the time that memory is cleared.
std::uint64_t TierManager::Impl::clear_places(const Selection& selection, Places places,
                                              std::span<std::uint64_t> tier_shards, KeySet* gone) {
  const auto each_tier = [&](auto act) {
    for (std::size_t i = 0; i < tiers_.size(); ++i) {
      if ((places & place_of_tier(i)) != 0) tier_shards[i] += act(*tiers_[i]);
    }
  };
  const Key* fingerprint = selection.fingerprint ? &*selection.fingerprint : nullptr;
  if (selection.whole()) {
    each_tier([&](Tier& tier) { return tier.clear(fingerprint); });
    return (places & kInMemory) != 0 ? store_->clear(fingerprint) : 0;
  }
  if (!selection.keys.empty()) {
    each_tier([&](Tier& tier) {
      const KeySet meant = with_what_follows(tier, selection);
      gone->insert(meant.begin(), meant.end());
      return selection.age_ms_min == 0 ? clear_tier(tier, selection, &meant) : 0;
    });
  } else if (selection.age_ms_min == 0) {
    each_tier([&](Tier& tier) { return clear_tier(tier, selection, nullptr); });
  }
  if ((places & kInMemory) == 0) return 0;
  std::vector<Key> removed;
  const std::uint64_t chunks = store_->clear(selection, &removed);
  if (selection.age_ms_min != 0) gone->clear();
  gone->insert(removed.begin(), removed.end());
  if (selection.age_ms_min != 0 && !gone->empty()) {
    each_tier([&](Tier& tier) { return clear_tier(tier, selection, gone); });
  }
  return chunks;
}

std::uint64_t TierManager::Impl::clear(const Selection& selection, Places places,
                                       std::span<std::uint64_t> tier_shards) {
  const auto meant = [&](const Key& of) { return !selection.fingerprint || of == *selection.fingerprint; };
  const bool tiers_too = (places & ~kInMemory) != 0;
  {
    const std::lock_guard lock(mutex_);
    ++clearing_;
    // What waits to be written is written from memory: of what stays there, it is given up where it is not known which
    // of it is meant.
    if (selection.whole() || (places & kInMemory) == 0) {
      for (WayOut& way : ways_) {
        add(counters_.write_dropped, std::erase_if(way.waiting, [&](const SealedShard& shard) {
              return tiers_too && meant(shard.fingerprint);
            }));
      }
    }
    for (const ChainPtr& chain : chains_) {
      if (meant(chain->layout->spec.fingerprint)) chain->given_up.store(true);
    }
  }
  const auto gone = std::make_shared<KeySet>();
  const std::uint64_t chunks = clear_places(selection, places, tier_shards, gone.get());
  const std::lock_guard lock(mutex_);
  ++epoch_;
  --clearing_;
  if (!writing_.empty() && tiers_too) {
    Selection without_keys{selection.fingerprint, selection.tenant, {}, 0};
    const bool by_key = !selection.keys.empty() || selection.age_ms_min != 0;
    cleared_.push_back({epoch_, std::move(without_keys), places, by_key ? gone : nullptr});
  }
  add(counters_.clears);
  wake_locked();
  return chunks;
}

// Of a fingerprint that no engine has asked for in this life, a tier's inventory tells.
std::vector<Rect> TierManager::Impl::rects_of(const Key& fingerprint) {
  const auto known = [&] {
    const std::lock_guard lock(mutex_);
    const auto at = rects_.find(fingerprint);
    return at == rects_.end() ? std::vector<Rect>{} : at->second;
  };
  std::vector<Rect> rects = known();
  for (std::size_t i = 0; i < tiers_.size() && rects.empty(); ++i) {
    std::uint64_t cursor = 0;
    for (std::size_t page = 0; page < kPagesMax && rects.empty(); ++page) {
      for (const ShardMeta& meta : tiers_[i]->inventory(&cursor, kPageItems)) {
        if (meta.id.fingerprint == fingerprint) know(meta.id);
      }
      rects = known();
      if (cursor == 0) break;
    }
  }
  return rects;
}

std::vector<Places> TierManager::Impl::places(const Key& fingerprint, std::span<const Key> keys) {
  std::vector<Places> out(keys.size(), 0);
  const auto here = store_->present(fingerprint, keys);
  for (std::size_t i = 0; i < keys.size(); ++i) out[i] = here[i] != 0 ? kInMemory : 0;
  const std::vector<Rect> rects = rects_of(fingerprint);
  std::vector<std::vector<std::pair<std::size_t, std::uint64_t>>> layouts;  // each: which rect, how many bytes
  {
    const std::lock_guard lock(mutex_);
    for (const LayoutPtr& layout : layouts_) {
      if (layout->spec.fingerprint != fingerprint) continue;
      auto& of = layouts.emplace_back();
      for (const ShardSpec& shard : layout->spec.shards) {
        const auto at = std::find(rects.begin(), rects.end(), shard.rect);
        of.emplace_back(static_cast<std::size_t>(at - rects.begin()), shard.slot_bytes);
      }
    }
  }
  const auto whole = [&](const std::uint64_t* bytes) {
    const auto has = [&](const auto& part) { return part.first < rects.size() && bytes[part.first] == part.second; };
    const auto all = [&](const auto& layout) { return std::all_of(layout.begin(), layout.end(), has); };
    if (!layouts.empty()) return std::any_of(layouts.begin(), layouts.end(), all);
    return std::any_of(bytes, bytes + rects.size(), [](std::uint64_t n) { return n != 0; });
  };
  std::vector<ShardId> ids;
  std::vector<std::uint64_t> bytes;
  for (std::size_t from = 0; from < keys.size() && !rects.empty(); from += kKeysPerFind) {
    const std::size_t some = std::min(kKeysPerFind, keys.size() - from);
    ids.clear();
    for (std::size_t i = 0; i < some; ++i) {
      for (const Rect& rect : rects) ids.push_back({fingerprint, keys[from + i], rect});
    }
    bytes.resize(ids.size());
    for (std::size_t tier = 0; tier < tiers_.size(); ++tier) {
      tiers_[tier]->find(ids, bytes);
      for (std::size_t i = 0; i < some; ++i) {
        if (whole(&bytes[i * rects.size()])) out[from + i] |= place_of_tier(tier);
      }
    }
  }
  return out;
}

}  // namespace kvcommons
