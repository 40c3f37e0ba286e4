#include <algorithm>
#include <map>

#include "tiers/disk_tier_impl.h"

namespace kvcommons::disk {
namespace {

bool aligned(const std::byte* data) { return reinterpret_cast<std::uintptr_t>(data) % kSlotAlignBytes == 0; }

bool can_take(const PutItem& item) {
  return item.data != nullptr && aligned(item.data) && item.meta.payload_bytes > 0 && item.meta.checksum != 0 &&
         item.meta.text_keys.size() <= kTextKeysPerChunkMax;
}

}  // namespace

// A batch that is larger than the bound is taken where nothing else waits: it would never be taken otherwise.
bool DiskTier::admit(std::atomic<std::uint64_t>* queued, std::uint64_t bytes, std::uint64_t bytes_max) {
  std::uint64_t now = queued->load();
  do {
    if (now > 0 && now + bytes > bytes_max) return false;
  } while (!queued->compare_exchange_weak(now, now + bytes));
  return true;
}

// `given`: what this batch gave each already.
std::size_t DiskTier::emptiest(const std::vector<std::uint64_t>& given) const {
  std::size_t best = 0;
  std::pair<bool, std::uint64_t> best_rank{true, UINT64_MAX};
  for (std::size_t i = 0; i < devices_.size(); ++i) {
    const std::pair rank{!devices_[i]->writable(), devices_[i]->waiting_put_bytes() + given[i]};
    if (rank < best_rank) {
      best_rank = rank;
      best = i;
    }
  }
  return best;
}

std::size_t DiskTier::device_of(std::uint32_t segment) const {
  for (std::size_t i = 0; i < devices_.size(); ++i) {
    if (devices_[i]->holds(segment)) return i;
  }
  return 0;
}

bool DiskTier::put(std::vector<PutItem> items, PutDone done) {
  std::uint64_t bytes = 0;
  for (const PutItem& item : items) bytes += item.meta.payload_bytes;
  Counters& c = shared_.counters;
  if (!admit(&c.queued_put_bytes, bytes, shared_.config.queue_bytes_max)) {
    c.refused_busy += items.size();
    return false;
  }
  c.puts += items.size();
  c.queued_puts += items.size();
  const std::uint64_t now = shared_.config.now_ms(), clears = shared_.clears.number();
  const auto batch = std::make_shared<PutBatch>(std::move(items), std::move(done));
  std::vector<std::vector<PutJob>> jobs(devices_.size());
  std::vector<std::uint64_t> given(devices_.size());
  std::vector<std::uint32_t> bad;
  for (std::uint32_t i = 0; i < batch->size(); ++i) {
    if (!can_take((*batch)[i])) {
      bad.push_back(i);
      continue;
    }
    const std::uint64_t payload = (*batch)[i].meta.payload_bytes;
    // In place of what is there: on the same device, where the newer of two is known after a restart.
    const auto old = (*batch)[i].replace ? shared_.index.find((*batch)[i].meta.id) : std::nullopt;
    const std::size_t device = old ? device_of(old->place.segment) : emptiest(given);
    given[device] += payload;
    jobs[device].push_back({batch, i, payload, now, clears});
  }
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    if (!jobs[i].empty()) devices_[i]->put(std::move(jobs[i]));
  }
  if (!bad.empty() || batch->size() == 0) devices_[0]->answer([this, batch, bad] { refuse(batch.get(), bad); });
  return true;
}

void DiskTier::refuse(PutBatch* batch, const std::vector<std::uint32_t>& bad) {
  if (batch->size() == 0) return batch->finish_empty();
  for (const std::uint32_t i : bad) {
    shared_.counters.failed += 1;
    shared_.counters.queued_puts -= 1;
    shared_.counters.queued_put_bytes -= (*batch)[i].meta.payload_bytes;
    batch->finish(i, TierStatus::Failed);
  }
}

bool DiskTier::get(std::vector<GetItem> items, GetDone done) {
  std::uint64_t bytes = 0;
  for (const GetItem& item : items) bytes += item.room_bytes;
  Counters& c = shared_.counters;
  if (!admit(&c.queued_get_bytes, bytes, shared_.config.queue_bytes_max)) {
    c.refused_busy += items.size();
    return false;
  }
  c.gets += items.size();
  c.queued_gets += items.size();
  const std::uint64_t now = shared_.config.now_ms();
  const auto batch = std::make_shared<GetBatch>(std::move(items), std::move(done));
  std::vector<std::vector<GetJob>> jobs(devices_.size());
  for (std::uint32_t i = 0; i < batch->size(); ++i) {
    const auto found = shared_.index.find((*batch)[i].id);
    // What is nowhere, and what has no proper buffer, is answered by the first device's thread.
    jobs[found ? device_of(found->place.segment) : 0].push_back({batch, i, (*batch)[i].room_bytes, now});
  }
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    if (!jobs[i].empty()) devices_[i]->get(std::move(jobs[i]));
  }
  if (batch->size() == 0) devices_[0]->answer([batch] { batch->finish_empty(); });
  return true;
}

void DiskTier::find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) {
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto found = shared_.index.find(ids[i]);
    bytes[i] = found ? found->memory_bytes : 0;
  }
}

bool DiskTier::describe(const ShardId& id, ShardMeta* out) {
  Resident found;
  if (!shared_.index.describe(id, &found)) return false;
  *out = std::move(found.meta);
  return true;
}

void DiskTier::touch(std::span<const ShardId> ids) {
  for (const ShardId& id : ids) shared_.index.touch(id);
}

// Also noted in the log of every device, so that the next life finds no copy of them, also none that was evicted and is
// not written over yet. Noted after they left the index: whatever is moved later asks the index first.
std::uint64_t DiskTier::remove(std::span<const ShardId> ids) {
  std::vector<RemovedId> removed;
  for (const ShardId& id : ids) {
    if (shared_.index.erase(id)) removed.push_back({id.fingerprint, id.key, id.rect});
  }
  if (removed.empty()) return 0;
  for (const auto& device : devices_) device->note_removed(removed);
  return removed.size();
}

std::uint64_t DiskTier::clear(const Key* fingerprint) {
  shared_.clears.add(fingerprint);  // first: what ends from now on and was put before is not kept
  const std::uint64_t cleared = shared_.index.clear(fingerprint);
  for (const auto& device : devices_) device->note_cleared(fingerprint);
  return cleared;
}

std::vector<ShardMeta> DiskTier::inventory(std::uint64_t* cursor, std::size_t max) {
  return shared_.index.inventory(cursor, max);
}

std::vector<TierEvent> DiskTier::drain_events(std::size_t max, bool* gap) { return shared_.events.drain(max, gap); }

// Gone where all are; degraded where any is not as it should be.
TierHealth DiskTier::health(std::string* why) const {
  why->clear();
  std::size_t gone = 0;
  TierHealth worst = TierHealth::Serving;
  for (const auto& device : devices_) {
    std::string text;
    const TierHealth health = device->health(&text);
    if (health == TierHealth::Serving) continue;
    worst = TierHealth::Degraded;
    gone += health == TierHealth::Gone ? 1 : 0;
    *why += (why->empty() ? "" : "; ") + text;
  }
  return gone == devices_.size() ? TierHealth::Gone : worst;
}

TierStats DiskTier::stats() const {
  const Counters& c = shared_.counters;
  TierStats s;
  for (const auto& device : devices_) s.capacity_bytes += device->capacity_bytes();
  shared_.index.add_up(&s.shards, &s.used_bytes, &s.metadata_bytes);
  s.puts = c.puts;
  s.put_bytes = c.put_bytes;
  s.gets = c.gets;
  s.get_bytes = c.get_bytes;
  s.misses = c.misses;
  s.evicted = c.evicted;
  s.reinserted = c.reinserted;
  s.corrupt = c.corrupt;
  s.failed = c.failed;
  s.refused_busy = c.refused_busy;
  s.refused_full = c.refused_full;
  s.queued_puts = c.queued_puts;
  s.queued_gets = c.queued_gets;
  s.recovered = recovered_;
  s.recovery_us = recovery_us_;
  return s;
}

}  // namespace kvcommons::disk
