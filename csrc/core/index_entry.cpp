#include "index_entry.h"

#include <algorithm>
#include <new>
#include <utility>

namespace kvcommons::internal {
namespace {
constexpr std::size_t kBucketsMin = 16;
}  // namespace

EntryPool::~EntryPool() {
  for (auto& block : blocks_) {
    ::operator delete(block.load(std::memory_order_relaxed), std::align_val_t{alignof(Entry)});
  }
}

Entry* EntryPool::take(std::uint32_t shard) {
  Entry* entry = nullptr;
  if (free_ != kNowhere) {
    entry = &at(free_);
    free_ = entry->slot;
  } else {
    const std::uint32_t block = block_of(fresh_);
    if (block >= kBlocks) return nullptr;
    if (blocks_[block].load(std::memory_order_relaxed) == nullptr) {
      const std::size_t bytes = sizeof(Entry) * (std::size_t{1} << (kFirstBits + block));
      blocks_[block].store(static_cast<Entry*>(::operator new(bytes, std::align_val_t{alignof(Entry)})),
                           std::memory_order_release);
    }
    entry = new (&at(fresh_)) Entry;
    entry->where = fresh_++ << kShardBits | shard;
  }
  entry->life.fetch_add(1, std::memory_order_relaxed);
  return entry;
}

// The place keeps its life, so that ids of what was here stay stale. `next` and `previous` are nobody's by now.
void EntryPool::give(Entry& entry) {
  const std::uint32_t where = entry.where;
  entry.use = eviction::Chunk{};
  entry.parent_id = 0;
  entry.rect = entry.fingerprint = 0;
  entry.holds = 0;
  entry.placed = entry.sealed = entry.aside = entry.pinned = entry.announced = entry.expires = 0;
  entry.candidate = Entry::kNoCandidate;
  entry.first_child = entry.next = entry.previous = kNowhere;
  entry.slot = free_;
  free_ = where >> kShardBits;
}

void EntryTable::put(const Bucket& bucket) noexcept {
  std::size_t i = home_of(bucket.tag);
  while (buckets_[i].where != kNowhere) i = after(i);
  buckets_[i] = bucket;
}

void EntryTable::grow() {
  std::vector<Bucket> former(std::max(kBucketsMin, buckets_.size() + buckets_.size() / 4));
  former.swap(buckets_);
  for (const Bucket& bucket : former) {
    if (bucket.where != kNowhere) put(bucket);
  }
}

void EntryTable::insert(std::uint64_t hash, std::uint32_t where) {
  if ((size_ + 1) * 5 > buckets_.size() * 4) grow();
  put({static_cast<std::uint32_t>(hash), where});
  ++size_;
}

void EntryTable::erase(std::uint64_t hash, std::uint32_t where) {
  std::size_t hole = home_of(static_cast<std::uint32_t>(hash));
  while (buckets_[hole].where != where) hole = after(hole);
  // What stands behind the hole moves into it, unless that is before its home: no search stops too early.
  for (std::size_t i = after(hole); buckets_[i].where != kNowhere; i = after(i)) {
    const std::size_t home = home_of(buckets_[i].tag);
    const bool stays = hole <= i ? hole < home && home <= i : hole < home || home <= i;
    if (stays) continue;
    buckets_[hole] = buckets_[i];
    hole = i;
  }
  buckets_[hole] = {};
  --size_;
}

}  // namespace kvcommons::internal
