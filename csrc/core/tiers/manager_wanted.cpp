// Promotion, asked for: what of a chain is on a tier, and so may be expected.
#include <algorithm>

#include "tiers/manager_impl.h"

namespace kvcommons {
namespace {

constexpr std::size_t kLayoutsMax = 256;
constexpr std::size_t kKeysPerFind = 64;
constexpr std::size_t kTouchesMax = 64;  // lookups; more are not told to the tiers

}  // namespace

TierManager::Impl::LayoutPtr TierManager::Impl::layout_locked(const SessionSpec& spec) {
  const auto same = [&](const LayoutPtr& layout) {
    return layout->spec.fingerprint == spec.fingerprint && layout->spec.shards == spec.shards;
  };
  const auto found = std::find_if(layouts_.begin(), layouts_.end(), same);
  if (found != layouts_.end()) return *found;
  if (layouts_.size() >= kLayoutsMax) std::erase_if(layouts_, [](const LayoutPtr& one) { return one->chains == 0; });
  if (layouts_.size() >= kLayoutsMax) return nullptr;
  auto layout = std::make_shared<Layout>();
  layout->spec = spec;
  for (const ShardSpec& shard : spec.shards) know_rect_locked(spec.fingerprint, shard.rect);
  layouts_.push_back(layout);
  return layout;
}

// How many leading chunks have every shard on one tier, and on which.
std::size_t TierManager::Impl::on_tiers(const Asked& asked, std::span<const Key> keys,
                                        std::vector<std::uint8_t>* tier) {
  const auto& shards = asked.spec.shards;
  const std::size_t step = std::max<std::size_t>(1, kKeysPerFind / shards.size());
  std::vector<ShardId> ids;
  std::vector<std::uint64_t> bytes;
  while (tier->size() < keys.size()) {
    const auto some = keys.subspan(tier->size(), std::min(step, keys.size() - tier->size()));
    ids.clear();
    for (const Key& key : some) {
      for (const ShardSpec& shard : shards) ids.push_back({asked.spec.fingerprint, key, shard.rect});
    }
    bytes.resize(ids.size());
    std::vector<std::uint8_t> where(some.size(), static_cast<std::uint8_t>(tiers_.size()));
    for (std::size_t t = tiers_.size(); t-- > 0;) {
      if (asked.by_peer && (tiers_[t]->others() || tiers_[t]->shared())) continue;
      tiers_[t]->find(ids, bytes);
      for (std::size_t i = 0; i < some.size(); ++i) {
        bool all = true;
        for (std::size_t s = 0; s < shards.size(); ++s) all &= bytes[i * shards.size() + s] == shards[s].slot_bytes;
        if (all) where[i] = static_cast<std::uint8_t>(t);
      }
    }
    const auto missing = std::find(where.begin(), where.end(), static_cast<std::uint8_t>(tiers_.size()));
    tier->insert(tier->end(), where.begin(), missing);
    if (missing != where.end()) break;
  }
  return tier->size();
}

// What is read from memory again and again is read from no tier, and would leave it as if nobody wanted it.
bool TierManager::Impl::touch_some() {
  std::pair<LayoutPtr, std::vector<Key>> hit;
  {
    const std::lock_guard lock(mutex_);
    if (touches_.empty() || quiet_) return false;
    hit = std::move(touches_.front());
    touches_.pop_front();
  }
  std::vector<ShardId> ids;
  for (const Key& key : hit.second) {
    for (const ShardSpec& shard : hit.first->spec.shards) ids.push_back({hit.first->spec.fingerprint, key, shard.rect});
  }
  for (const auto& tier : tiers_) tier->touch(ids);
  return true;
}

// What no tier is known to have may be known to be somewhere soon.
bool TierManager::Impl::seek(const Asked& asked, std::span<const Key> keys) {
  if (asked.by_peer || keys.empty()) return false;
  Sought sought{asked.spec.fingerprint, asked.spec.chunk_tokens, asked.spec.shards, keys, 0, asked.from};
  if (asked.from.empty()) {
    const std::lock_guard lock(mutex_);
    sought.tokens_per_second = meter_.tokens_per_second(asked.spec.fingerprint);
  }
  bool any = false;
  for (const auto& tier : tiers_) any = tier->seek(sought) || any;
  return any;
}

double TierManager::Impl::tokens_per_second() const {
  const std::lock_guard lock(mutex_);
  return meter_.best();
}

Expected TierManager::Impl::wanted(SessionId session, std::uint64_t tenant, std::span<const Key> keys,
                                   std::uint32_t hit_chunks) {
  Asked asked;
  asked.tenant = tenant;
  if (keys.empty() || !store_->session_spec(session, &asked.spec) || asked.spec.shards.empty()) return {};
  const Expected expected = wanted_for(asked, keys, hit_chunks);
  if (expected.chunks == 0 && hit_chunks < keys.size()) {
    const std::lock_guard lock(mutex_);
    meter_.begun(asked.spec.fingerprint, keys.back(), std::uint64_t{keys.size() - hit_chunks} * asked.spec.chunk_tokens,
                 now_ms());
  }
  return expected;
}

Expected TierManager::Impl::wanted_by_peer(const SessionSpec& spec, std::span<const Key> keys,
                                           std::uint32_t hit_chunks) {
  return wanted_as(spec, 0, keys, hit_chunks);
}

// Of this node's own media only.
Expected TierManager::Impl::wanted_as(const SessionSpec& spec, std::uint64_t tenant, std::span<const Key> keys,
                                      std::uint32_t hit_chunks) {
  return keys.empty() || spec.shards.empty() ? Expected{} : wanted_for({spec, tenant, true}, keys, hit_chunks);
}

Expected TierManager::Impl::wanted_for(const Asked& asked, std::span<const Key> keys, std::uint32_t hit_chunks) {
  const SessionSpec& spec = asked.spec;
  const std::uint64_t now = now_ms();
  LayoutPtr layout;
  std::uint64_t epoch = 0;
  std::size_t at = hit_chunks;
  // No more than can be in memory at one time, beside what others read.
  const std::size_t end = std::min<std::size_t>(keys.size(), at + config_.arena_bytes / 2 / room_of(spec));
  {
    const std::lock_guard lock(mutex_);
    layout = layout_locked(spec);
    if (!layout || stopping_) return {};
    if (hit_chunks > 0 && touches_.size() < kTouchesMax) {
      touches_.emplace_back(layout, std::vector<Key>(keys.begin(), keys.begin() + hit_chunks));
      wake_locked();
    }
    if (hit_chunks >= keys.size() || fenced_locked()) return {};
    epoch = epoch_;
    const auto sour = layout->sour.find(keys[at]);
    if (sour != layout->sour.end() && sour->second > now) return {};
    while (at < end && layout->coming.contains(keys[at])) ++at;
  }
  const auto shared = static_cast<std::uint32_t>(at - hit_chunks);
  auto chain = std::make_shared<Chain>();
  const std::size_t found = at < end ? on_tiers(asked, keys.subspan(at, end - at), &chain->tier) : 0;
  const std::uint32_t sought = seek(asked, keys.subspan(at + found, end - at - found)) ? 1 : 0;
  if (found == 0) return {shared + sought};
  chain->layout = layout;
  chain->tenant = asked.tenant;
  chain->parent = at == 0 ? Key{} : keys[at - 1];
  chain->keys.assign(keys.begin() + static_cast<std::ptrdiff_t>(at),
                     keys.begin() + static_cast<std::ptrdiff_t>(at + chain->tier.size()));
  const std::lock_guard lock(mutex_);
  if (stopping_ || fenced_locked() || epoch != epoch_) return {};
  if (chains_.size() >= config_.chains_max) {
    add(counters_.read_refused);
    return {shared + sought};
  }
  add(counters_.read_chains);
  layout->coming.insert(chain->keys.begin(), chain->keys.end());
  ++layout->chains;
  chains_.push_back(chain);
  wake_locked();
  return {shared + static_cast<std::uint32_t>(chain->keys.size()) + sought};
}

}  // namespace kvcommons
