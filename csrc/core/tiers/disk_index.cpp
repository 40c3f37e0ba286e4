#include "tiers/disk_index.h"

#include "tiers/disk_index_shard.h"

namespace kvcommons::disk {

std::optional<Found> IndexShard::find(const ShardId& id) const {
  const std::lock_guard lock(mutex_);
  const Entry* entry = entry_of(id);
  if (entry == nullptr) return std::nullopt;
  const Kind& kind = kinds_[entry->kind].kind;
  return Found{{entry->segment, entry->block}, kind.codec == 0 ? entry->payload_bytes : kind.raw_bytes};
}

bool IndexShard::describe(const ShardId& id, Resident* out) const {
  const std::lock_guard lock(mutex_);
  const Entry* entry = entry_of(id);
  if (entry == nullptr) return false;
  *out = {meta_of(extent_at(*entry)), {entry->segment, entry->block}, entry->hot != 0};
  return true;
}

void IndexShard::touch(const ShardId& id) {
  const std::lock_guard lock(mutex_);
  if (Entry* entry = entry_of(id); entry != nullptr) entry->hot = 1;
}

bool IndexShard::erase(const ShardId& id, const Place* only_at) {
  const std::lock_guard lock(mutex_);
  if (table_.empty()) return false;
  const std::size_t slot = slot_of(id);
  if (table_[slot].number == kNone) return false;
  const Entry& entry = at(table_[slot].number);
  if (only_at != nullptr && *only_at != Place{entry.segment, entry.block}) return false;
  events_->tell(TierEvent::Kind::Dropped, meta_of(extent_at(entry)));
  remove_at(slot);
  return true;
}

bool IndexShard::erase_within(const ShardId& id, SegmentRange within) {
  const std::lock_guard lock(mutex_);
  const Entry* entry = entry_of(id);
  if (entry == nullptr || !within.has(entry->segment)) return false;
  events_->tell(TierEvent::Kind::Dropped, meta_of(extent_at(*entry)));
  remove_at(slot_of(id));
  return true;
}

bool IndexShard::move(const ShardId& id, Place from, Place to) {
  const std::lock_guard lock(mutex_);
  if (table_.empty()) return false;
  const std::uint32_t number = table_[slot_of(id)].number;
  if (number == kNone || from != Place{at(number).segment, at(number).block}) return false;
  unlink(number);
  link(number, to.segment);
  at(number).block = to.block;
  at(number).hot = 0;
  return true;
}

void IndexShard::list_segment(std::uint32_t segment, std::vector<Resident>* out) const {
  const std::lock_guard lock(mutex_);
  for (std::uint32_t number = heads_[segment]; number != kNone; number = at(number).next) {
    const Entry& entry = at(number);
    out->push_back({meta_of(extent_at(entry)), {segment, entry.block}, entry.hot != 0});
  }
}

std::uint64_t IndexShard::erase_segment(std::uint32_t segment) {
  const std::lock_guard lock(mutex_);
  std::uint64_t erased = 0;
  for (; heads_[segment] != kNone; ++erased) {
    const Extent extent = extent_at(at(heads_[segment]));
    events_->tell(TierEvent::Kind::Dropped, meta_of(extent));
    remove_at(slot_of(extent.id));
  }
  return erased;
}

std::uint64_t IndexShard::clear(const Key* fingerprint, SegmentRange within) {
  const std::lock_guard lock(mutex_);
  std::uint64_t erased = 0;
  for (const auto& page : pages_) {
    for (std::uint32_t i = 0; i < kPageEntries; ++i) {
      if (page[i].used == 0 || !within.has(page[i].segment)) continue;
      const Extent extent = extent_at(page[i]);
      if (fingerprint != nullptr && extent.id.fingerprint != *fingerprint) continue;
      events_->tell(TierEvent::Kind::Dropped, meta_of(extent));
      remove_at(slot_of(extent.id));
      ++erased;
    }
  }
  return erased;
}

bool IndexShard::list(std::uint32_t* next, std::size_t max, std::vector<ShardMeta>* out) const {
  const std::lock_guard lock(mutex_);
  const auto end = static_cast<std::uint32_t>(pages_.size()) * kPageEntries;
  for (; *next < end; ++*next) {
    const Entry& entry = at(*next);
    if (entry.used == 0) continue;
    if (out->size() >= max) return true;
    out->push_back(meta_of(extent_at(entry)));
  }
  return false;
}

void IndexShard::add_up(std::uint64_t* shards, std::uint64_t* used, std::uint64_t* metadata) const {
  const std::lock_guard lock(mutex_);
  *shards += count_;
  *used += used_blocks_ * kBlockBytes;
  *metadata += pages_.size() * kPageEntries * sizeof(Entry) + table_.capacity() * sizeof(table_[0]) +
               heads_.capacity() * sizeof(heads_[0]) + kinds_.capacity() * (2 * sizeof(CountedKind) + 48) + text_bytes_;
}

DiskIndex::DiskIndex(std::uint32_t segments, EventRing* events) {
  for (auto& part : shards_) part = std::make_unique<IndexShard>(segments, events);
}

DiskIndex::~DiskIndex() = default;

IndexShard& DiskIndex::shard(const Key& key) const noexcept {
  static_assert(kShards == 16);
  return *shards_[key.bytes[kKeyBytes - 1] & 15];  // the hash table within takes other bits
}

DiskIndex::Put DiskIndex::put(const Extent& e, Place place) { return shard(e.id.key).put(e, place, nullptr); }
DiskIndex::Put DiskIndex::replace(const Extent& e, Place place) { return shard(e.id.key).replace(e, place); }
void DiskIndex::restore(const Extent& e, Place place, SegmentRange device) {
  (void)shard(e.id.key).put(e, place, &device);
}
std::optional<Found> DiskIndex::find(const ShardId& id) const { return shard(id.key).find(id); }
bool DiskIndex::describe(const ShardId& id, Resident* out) const { return shard(id.key).describe(id, out); }
void DiskIndex::touch(const ShardId& id) { shard(id.key).touch(id); }
bool DiskIndex::erase(const ShardId& id, const Place* only_at) { return shard(id.key).erase(id, only_at); }
bool DiskIndex::erase_within(const ShardId& id, SegmentRange within) { return shard(id.key).erase_within(id, within); }
bool DiskIndex::move(const ShardId& id, Place from, Place to) { return shard(id.key).move(id, from, to); }

std::vector<Resident> DiskIndex::list_segment(std::uint32_t segment) const {
  std::vector<Resident> out;
  for (const auto& part : shards_) part->list_segment(segment, &out);
  return out;
}

std::uint64_t DiskIndex::erase_segment(std::uint32_t segment) {
  std::uint64_t erased = 0;
  for (const auto& part : shards_) erased += part->erase_segment(segment);
  return erased;
}

std::uint64_t DiskIndex::clear(const Key* fingerprint, SegmentRange within) {
  std::uint64_t erased = 0;
  for (const auto& part : shards_) erased += part->clear(fingerprint, within);
  return erased;
}

// A cursor: the shard in the upper half, the entry to go on with in the lower, one more than both so that it is not 0.
std::vector<ShardMeta> DiskIndex::inventory(std::uint64_t* cursor, std::size_t max) const {
  std::vector<ShardMeta> out;
  const std::uint64_t from = *cursor == 0 ? 0 : *cursor - 1;
  auto next = static_cast<std::uint32_t>(from);
  for (std::uint64_t part = from >> 32; part < kShards; ++part, next = 0) {
    if (shards_[part]->list(&next, max, &out)) {
      *cursor = (part << 32 | next) + 1;
      return out;
    }
  }
  *cursor = 0;
  return out;
}

void DiskIndex::add_up(std::uint64_t* shards, std::uint64_t* used_bytes, std::uint64_t* metadata_bytes) const {
  for (const auto& part : shards_) part->add_up(shards, used_bytes, metadata_bytes);
}

}  // namespace kvcommons::disk
