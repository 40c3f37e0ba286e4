#include "tiers/disk_index_shard.h"

#include <bit>

namespace kvcommons::disk {
namespace {

std::uint32_t hash(const Key& key, const Rect& rect) noexcept {
  const std::uint64_t mixed = (key.prefix64() ^ std::bit_cast<std::uint64_t>(rect)) * 0x9e37'79b9'7f4a'7c15ULL;
  return static_cast<std::uint32_t>(mixed >> 32);
}

}  // namespace

std::size_t IndexShard::KindHash::operator()(const Kind& k) const noexcept {
  const std::uint64_t codec = std::uint64_t{k.codec} << 48 | std::uint64_t{k.codec_group} << 32;
  const std::uint64_t rest = k.tenant * 31 + k.chunk_tokens + k.raw_bytes * 17 + codec;
  return hash(k.fingerprint, k.rect) ^ static_cast<std::size_t>(rest * 0x9e37'79b9'7f4a'7c15ULL);
}

IndexShard::~IndexShard() {
  for (auto& page : pages_) {
    for (std::uint32_t i = 0; i < kPageEntries; ++i) {
      if (page[i].used != 0 && page[i].text_keys > 1) delete[] reinterpret_cast<std::uint64_t*>(page[i].text);
    }
  }
}

std::size_t IndexShard::slot_of(const ShardId& id) const noexcept {
  const std::uint32_t wanted = hash(id.key, id.rect);
  std::size_t slot = wanted & (table_.size() - 1);
  for (; table_[slot].number != kNone; slot = (slot + 1) & (table_.size() - 1)) {
    if (table_[slot].hash != wanted) continue;
    const Entry& entry = at(table_[slot].number);
    if (entry.key != id.key) continue;
    const Kind& kind = kinds_[entry.kind].kind;
    if (kind.rect == id.rect && kind.fingerprint == id.fingerprint) break;
  }
  return slot;
}

IndexShard::Entry* IndexShard::entry_of(const ShardId& id) const noexcept {
  if (table_.empty()) return nullptr;
  const std::uint32_t number = table_[slot_of(id)].number;
  return number == kNone ? nullptr : &at(number);
}

Extent IndexShard::extent_at(const Entry& e) const noexcept {
  const Kind& kind = kinds_[e.kind].kind;
  const std::uint64_t* text = e.text_keys > 1 ? reinterpret_cast<const std::uint64_t*>(e.text) : &e.text;
  return {ExtentKind::Shard,
          e.block,
          {kind.fingerprint, e.key, kind.rect},
          e.parent,
          kind.tenant,
          e.payload_bytes,
          e.checksum,
          kind.chunk_tokens,
          kind.codec,
          {text, e.text_keys},
          kind.codec_group,
          kind.raw_bytes};
}

std::uint32_t IndexShard::intern(const Extent& e) {
  const Kind kind{e.id.fingerprint, e.id.rect, e.tenant, e.chunk_tokens, e.codec, e.codec_group, e.raw_bytes};
  if (const auto found = kind_numbers_.find(kind); found != kind_numbers_.end()) {
    ++kinds_[found->second].entries;
    return found->second;
  }
  if (kind_numbers_.size() >= kKindsMax) return kNone;
  std::uint32_t number = static_cast<std::uint32_t>(kinds_.size());
  if (free_kinds_.empty()) {
    kinds_.emplace_back();
  } else {
    number = free_kinds_.back();
    free_kinds_.pop_back();
  }
  kinds_[number] = {kind, 1};
  kind_numbers_.emplace(kind, number);
  return number;
}

std::uint32_t IndexShard::allocate() {
  if (free_entry_ == kNone) {
    const auto first = static_cast<std::uint32_t>(pages_.size()) * kPageEntries;
    pages_.push_back(std::make_unique<Entry[]>(kPageEntries));
    for (std::uint32_t i = kPageEntries; i-- > 0;) {
      pages_.back()[i].next = free_entry_;
      free_entry_ = first + i;
    }
  }
  const std::uint32_t number = free_entry_;
  free_entry_ = at(number).next;
  return number;
}

void IndexShard::grow_table() {
  if (!table_.empty() && count_ + 1 <= table_.size() / 4 * 3) return;
  std::vector<Slot> old(table_.empty() ? 64 : table_.size() * 2);
  old.swap(table_);
  for (const Slot& moved : old) {
    if (moved.number == kNone) continue;
    std::size_t slot = moved.hash & (table_.size() - 1);
    while (table_[slot].number != kNone) slot = (slot + 1) & (table_.size() - 1);
    table_[slot] = moved;
  }
}

void IndexShard::link(std::uint32_t number, std::uint32_t segment) {
  Entry& entry = at(number);
  entry.segment = segment;
  entry.previous = kNone;
  entry.next = heads_[segment];
  if (entry.next != kNone) at(entry.next).previous = number;
  heads_[segment] = number;
}

void IndexShard::unlink(std::uint32_t number) {
  const Entry& entry = at(number);
  if (entry.next != kNone) at(entry.next).previous = entry.previous;
  (entry.previous != kNone ? at(entry.previous).next : heads_[entry.segment]) = entry.next;
}

void IndexShard::remove_at(std::size_t slot) {
  const std::uint32_t number = table_[slot].number;
  Entry& entry = at(number);
  unlink(number);
  const std::size_t mask = table_.size() - 1;
  for (std::size_t next = (slot + 1) & mask; table_[next].number != kNone; next = (next + 1) & mask) {
    // What probed past the gap moves into it.
    if (((next - table_[next].hash) & mask) < ((next - slot) & mask)) continue;
    table_[slot] = table_[next];
    slot = next;
  }
  table_[slot] = {};
  CountedKind& counted = kinds_[entry.kind];
  if (--counted.entries == 0) {
    kind_numbers_.erase(counted.kind);
    free_kinds_.push_back(entry.kind);
  }
  if (entry.text_keys > 1) {
    delete[] reinterpret_cast<std::uint64_t*>(entry.text);
    text_bytes_ -= entry.text_keys * sizeof(std::uint64_t);
  }
  used_blocks_ -= extent_blocks(entry.payload_bytes);
  --count_;
  entry = {};
  entry.next = free_entry_;
  free_entry_ = number;
}

DiskIndex::Put IndexShard::put(const Extent& e, Place place, const SegmentRange* restoring) {
  const std::lock_guard lock(mutex_);
  grow_table();
  std::size_t slot = slot_of(e.id);
  if (table_[slot].number != kNone) {
    const bool newer = restoring != nullptr && restoring->has(at(table_[slot].number).segment);
    if (!newer) return DiskIndex::Put::Exists;
    remove_at(slot);
    slot = slot_of(e.id);
  }
  if (!insert_at(slot, e, place)) return DiskIndex::Put::NoRoom;
  if (restoring == nullptr) events_->tell(TierEvent::Kind::Stored, meta_of(e));
  return DiskIndex::Put::Stored;
}

// The same shard in another form, so nothing is told.
DiskIndex::Put IndexShard::replace(const Extent& e, Place place) {
  const std::lock_guard lock(mutex_);
  if (entry_of(e.id) == nullptr) return DiskIndex::Put::Missing;
  const ShardMeta old = meta_of(extent_at(*entry_of(e.id)));
  remove_at(slot_of(e.id));
  if (insert_at(slot_of(e.id), e, place)) return DiskIndex::Put::Stored;
  events_->tell(TierEvent::Kind::Dropped, old);
  return DiskIndex::Put::NoRoom;
}

bool IndexShard::insert_at(std::size_t slot, const Extent& e, Place place) {
  const std::uint32_t kind = intern(e);
  if (kind == kNone) return false;
  const std::uint32_t number = allocate();
  Entry& entry = at(number);
  entry = {};
  entry.key = e.id.key;
  entry.parent = e.parent;
  entry.checksum = e.checksum;
  entry.kind = kind;
  entry.payload_bytes = static_cast<std::uint32_t>(e.payload_bytes);
  entry.block = place.block;
  entry.text_keys = static_cast<std::uint8_t>(e.text_keys.size());
  entry.used = 1;
  if (e.text_keys.size() == 1) entry.text = e.text_keys[0];
  if (e.text_keys.size() > 1) {
    auto* text = new std::uint64_t[e.text_keys.size()];
    std::copy(e.text_keys.begin(), e.text_keys.end(), text);
    entry.text = reinterpret_cast<std::uint64_t>(text);
    text_bytes_ += e.text_keys.size_bytes();
  }
  link(number, place.segment);
  table_[slot] = {number, hash(e.id.key, e.id.rect)};
  used_blocks_ += extent_blocks(e.payload_bytes);
  ++count_;
  return true;
}

}  // namespace kvcommons::disk
