// What the control API and the daemon read of the store: nothing here changes it.
#include <algorithm>
#include <unordered_map>
#include <utility>

#include "store_impl.h"

namespace kvcommons {

std::uint32_t Store::Impl::lookup_any(const Key& fingerprint, std::span<const Key> keys) const {
  const auto row = fingerprints_.find(fingerprint);
  if (!row) {
    return 0;
  }
  std::uint32_t hit = 0;
  std::uint64_t previous_id = 0;
  for (const Key& key : keys) {
    const IndexShard& shard = index_.of(key);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.find(key);
    if (e == nullptr || e->fingerprint != *row || !e->announced || (hit != 0 && e->parent_id != previous_id)) {
      break;
    }
    previous_id = IndexShard::id_of(*e);
    ++hit;
  }
  return hit;
}

// By place in the arena: what stays is listed once, however much comes and goes meanwhile.
std::vector<InventoryItem> Store::Impl::inventory(std::uint64_t* cursor, std::size_t max) const {
  std::vector<InventoryItem> out;
  std::uint64_t next = *cursor;
  std::uint32_t slot = 0;
  while (out.size() < max && slabs_.next_given(next, &slot)) {
    next = std::uint64_t{slot} + 1;
    const auto key = sealed_key(slot);
    if (!key) {
      continue;
    }
    const IndexShard& shard = index_.of(*key);
    const std::lock_guard lock(shard.mutex);
    const Entry* e = shard.find(*key);
    const bool its_own =
        e != nullptr && e->announced && shard.any_part(*e, [&](const Part& p) { return p.slot == slot && p.sealed; });
    if (its_own && records_.slot(slot).completes != 0) {
      out.push_back({*key, fingerprints_.key(e->fingerprint), text_keys(shard, *e)});
    }
  }
  *cursor = slabs_.next_given(next, &slot) ? next : 0;
  return out;
}

std::vector<FingerprintInfo> Store::Impl::fingerprints() const {
  const auto used = slabs_.used_by_fingerprint();
  std::unordered_map<std::uint32_t, std::vector<std::uint32_t>> pids;
  {
    const std::shared_lock lock(sessions_mutex_);
    for (const auto& [id, s] : sessions_) {
      const std::uint32_t pid = records_.session(s->row).pid.load(std::memory_order_acquire);
      if (pid != 0) {
        pids[s->fingerprint].push_back(pid);
      }
    }
  }
  std::vector<FingerprintInfo> out;
  for (const auto& known : fingerprints_.known()) {
    const auto bytes = used.find(known.row);
    auto& of_row = pids[known.row];
    std::sort(of_row.begin(), of_row.end());
    of_row.erase(std::unique(of_row.begin(), of_row.end()), of_row.end());
    out.push_back({known.key, known.chunks, bytes == used.end() ? 0 : bytes->second, std::move(of_row)});
  }
  return out;
}

StoreStats Store::Impl::stats() const {
  StoreStats s{};
  const auto get = [](const std::atomic<std::uint64_t>& c) { return c.load(std::memory_order_relaxed); };
  const internal::Slabs::Usage usage = slabs_.usage();
  const internal::Leases::Counts leases = leases_.counts();
  s.arena_bytes = config_.arena_bytes;
  s.used_bytes = usage.used_bytes;
  s.free_bytes = config_.arena_bytes - usage.used_bytes;
  s.slabs = records_.geometry().slabs;
  s.slabs_free = usage.slabs_free;
  s.chunks = get(counters_.chunks);
  s.slots_free = usage.slots_free;
  s.slots_filling = get(counters_.filling);
  s.slots_sealed = get(counters_.sealed);
  s.slots_draining = get(counters_.draining);
  s.slots_quarantined = get(counters_.quarantined);
  {
    const std::shared_lock lock(sessions_mutex_);
    s.sessions = open_sessions_;
    s.engines = open_engines_;
    s.sessions_unresolved = former_.size() + sessions_.size() - open_sessions_ - internal_sessions_;
  }
  s.leases_pending = leases.pending;
  s.leases_copying = leases.copying;
  s.leases_revoked = leases.revoked;
  s.fingerprints = fingerprints_.in_use();
  s.pinned_chunks = get(counters_.pinned_chunks);
  s.lookups = get(counters_.lookups);
  s.lookup_chunks = get(counters_.lookup_chunks);
  s.hit_chunks = get(counters_.hit_chunks);
  s.reserved = get(counters_.reserved);
  s.committed = get(counters_.committed);
  s.aborted = get(counters_.aborted);
  s.evicted = get(counters_.evicted);
  s.cleared = get(counters_.cleared);
  s.reserve_full = get(counters_.reserve_full);
  s.reserve_busy = get(counters_.reserve_busy);
  s.reserve_exists = get(counters_.reserve_exists);
  s.checksum_failures = get(counters_.checksum_failures);
  s.events_dropped = events_.dropped();
  s.text_keys_dropped = get(counters_.text_keys_dropped);
  s.cold_starts = records_.cold_start() ? 1 : 0;
  s.slabs_taken_back = get(counters_.slabs_taken_back);
  s.eviction_policy = static_cast<std::uint64_t>(policy_.kind());
  s.hinted_chunks = get(counters_.hinted);
  s.expired_chunks = get(counters_.expired);
  if (watch_) {
    const auto [shadows, dropped] = watch_->stats();
    s.shadow_asked_chunks = shadows.asked;
    s.shadow_hit_chunks_lru = shadows.hits[static_cast<std::size_t>(eviction::Kind::Lru)];
    s.shadow_hit_chunks_s3fifo = shadows.hits[static_cast<std::size_t>(eviction::Kind::S3Fifo)];
    s.shadow_hit_chunks_cost = shadows.hits[static_cast<std::size_t>(eviction::Kind::Cost)];
    s.shadow_one_in = shadows.one_in;
    s.shadow_dropped = dropped;
    s.eviction_policy_changes = config_.eviction == "auto" ? shadows.switches : 0;
  }
  return s;
}

}  // namespace kvcommons
