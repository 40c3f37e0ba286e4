#include "tiers/memory_tier.h"

#include <algorithm>
#include <utility>

#include "xxh3.h"

namespace kvcommons::tiers {
namespace {

std::uint64_t rounded(std::uint64_t bytes) { return (bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes; }

}  // namespace

MemoryTier::MemoryTier(MemoryTierConfig config) : config_(std::move(config)), thread_(config_.batches_max) {
  stats_.capacity_bytes = config_.capacity_bytes;
}

MemoryTier::~MemoryTier() { thread_.close(); }

// Each item of the batch by itself, on the tier's thread. What the queue has no room for is counted.
template <typename Item, typename Result, typename Done>
bool MemoryTier::post(std::vector<Item> batch, Done done, Result (MemoryTier::*one)(const Item&),
                      const Result& closed) {
  const std::size_t items = batch.size();
  const bool taken = thread_.post([this, batch = std::move(batch), done = std::move(done), one, closed](bool closing) {
    std::vector<Result> results(batch.size(), closed);
    if (!closing) {
      std::transform(batch.begin(), batch.end(), results.begin(), [&](const Item& item) { return (this->*one)(item); });
    }
    done(results);
  });
  if (!taken) {
    const std::lock_guard lock(mutex_);
    stats_.refused_busy += items;
  }
  return taken;
}

bool MemoryTier::put(std::vector<PutItem> batch, PutDone done) {
  return post(std::move(batch), std::move(done), &MemoryTier::put_one, TierStatus::Closed);
}

bool MemoryTier::get(std::vector<GetItem> batch, GetDone done) {
  return post(std::move(batch), std::move(done), &MemoryTier::get_one, GetResult{TierStatus::Closed, {}});
}

TierStatus MemoryTier::put_one(const PutItem& item) {
  const auto& meta = item.meta;
  std::vector<std::byte> bytes(item.data, item.data + meta.payload_bytes);
  const std::lock_guard lock(mutex_);
  ++stats_.puts;
  if (const auto found = found_.find(meta.id); item.replace) {
    if (found == found_.end()) return TierStatus::Missing;
    stats_.used_bytes += rounded(meta.payload_bytes);
    stats_.used_bytes -= rounded(found->second->meta.payload_bytes);
    found->second->meta = meta;
    found->second->bytes = std::move(bytes);
    stats_.put_bytes += meta.payload_bytes;
    return TierStatus::Ok;
  } else if (found != found_.end()) {
    return TierStatus::Ok;
  }
  if (!make_room(rounded(meta.payload_bytes))) {
    ++stats_.refused_full;
    return TierStatus::Full;
  }
  kept_.push_back({meta, std::move(bytes), next_number_++});
  found_[meta.id] = std::prev(kept_.end());
  stats_.used_bytes += rounded(meta.payload_bytes);
  stats_.put_bytes += meta.payload_bytes;
  ++stats_.shards;
  tell(TierEvent::Kind::Stored, meta);
  return TierStatus::Ok;
}

GetResult MemoryTier::get_one(const GetItem& item) {
  const std::lock_guard lock(mutex_);
  ++stats_.gets;
  const auto found = found_.find(item.id);
  if (found == found_.end()) {
    ++stats_.misses;
    return {TierStatus::Missing, {}};
  }
  const Kept& kept = *found->second;
  if (kept.meta.payload_bytes > item.room_bytes) {
    ++stats_.failed;
    return {TierStatus::Failed, {}};
  }
  std::copy(kept.bytes.begin(), kept.bytes.end(), item.data);
  if (xxh3_64(item.data, kept.bytes.size()) != kept.meta.checksum) {
    ++stats_.corrupt;
    drop(found->second);
    return {TierStatus::Corrupt, {}};
  }
  stats_.get_bytes += kept.bytes.size();
  return {TierStatus::Ok, kept.meta};
}

bool MemoryTier::make_room(std::uint64_t bytes) {
  if (bytes > config_.capacity_bytes) return false;
  while (stats_.used_bytes + bytes > config_.capacity_bytes) {
    ++stats_.evicted;
    drop(kept_.begin());
  }
  return true;
}

void MemoryTier::drop(List::iterator kept) {
  tell(TierEvent::Kind::Dropped, kept->meta);
  stats_.used_bytes -= rounded(kept->meta.payload_bytes);
  --stats_.shards;
  found_.erase(kept->meta.id);
  kept_.erase(kept);
}

void MemoryTier::tell(TierEvent::Kind kind, const ShardMeta& meta) {
  if (events_.size() >= config_.events_max) {
    events_.clear();
    gap_ = true;
  }
  events_.push_back({kind, meta});
}

void MemoryTier::find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) {
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const auto found = found_.find(ids[i]);
    bytes[i] = found == found_.end() ? 0 : memory_bytes(found->second->meta);
  }
}

bool MemoryTier::describe(const ShardId& id, ShardMeta* out) {
  const std::lock_guard lock(mutex_);
  const auto found = found_.find(id);
  if (found == found_.end()) return false;
  *out = found->second->meta;
  return true;
}

void MemoryTier::touch(std::span<const ShardId>) {}

std::uint64_t MemoryTier::remove(std::span<const ShardId> ids) {
  const std::lock_guard lock(mutex_);
  std::uint64_t removed = 0;
  for (const ShardId& id : ids) {
    if (const auto found = found_.find(id); found != found_.end()) {
      drop(found->second);
      ++removed;
    }
  }
  return removed;
}

std::uint64_t MemoryTier::clear(const Key* fingerprint) {
  const std::lock_guard lock(mutex_);
  std::uint64_t removed = 0;
  for (auto it = kept_.begin(); it != kept_.end();) {
    const auto next = std::next(it);
    if (fingerprint == nullptr || it->meta.id.fingerprint == *fingerprint) {
      drop(it);
      ++removed;
    }
    it = next;
  }
  return removed;
}

std::vector<ShardMeta> MemoryTier::inventory(std::uint64_t* cursor, std::size_t max) {
  const std::lock_guard lock(mutex_);
  std::vector<ShardMeta> out;
  std::uint64_t next = 0;
  for (const Kept& kept : kept_) {
    if (kept.number <= *cursor) continue;
    if (out.size() == max) {
      *cursor = next;
      return out;
    }
    out.push_back(kept.meta);
    next = kept.number;
  }
  *cursor = 0;
  return out;
}

std::vector<TierEvent> MemoryTier::drain_events(std::size_t max, bool* gap) {
  const std::lock_guard lock(mutex_);
  *gap = std::exchange(gap_, false);
  const auto count = static_cast<std::ptrdiff_t>(std::min(max, events_.size()));
  std::vector<TierEvent> out(events_.begin(), events_.begin() + count);
  events_.erase(events_.begin(), events_.begin() + count);
  return out;
}

TierHealth MemoryTier::health(std::string* why) const {
  why->clear();
  return TierHealth::Serving;
}

TierStats MemoryTier::stats() const {
  const std::lock_guard lock(mutex_);
  TierStats stats = stats_;
  stats.queued_puts = stats.queued_gets = 0;
  return stats;
}

bool MemoryTier::rot(const ShardId& id, std::size_t at_byte) {
  const std::lock_guard lock(mutex_);
  const auto found = found_.find(id);
  if (found == found_.end() || at_byte >= found->second->bytes.size()) return false;
  found->second->bytes[at_byte] ^= std::byte{1};
  return true;
}

}  // namespace kvcommons::tiers
