// Puts, and the records of what was removed.
#include <algorithm>
#include <cstring>

#include "seq_points.h"
#include "tiers/disk_device.h"
#include "xxh3.h"

namespace kvcommons::disk {

// Alone, writes have three quarters of the queue; beside reads an eighth, so that they never keep a load waiting long.
std::uint32_t Device::write_slots() const {
  const std::uint32_t depth = io_->depth();
  return std::max(gets_.empty() && reads_ == 0 ? depth * 3 / 4 : depth / 8, 1u);
}

void Device::start_puts() {
  while (!puts_.empty() && writes_ < write_slots() && write_budget_.has(now_ms())) {
    if (!start_put(&puts_.front())) return;
    puts_.pop_front();
  }
}

// Ok: to be written. What is answered otherwise needs no place.
TierStatus Device::before_put(const PutJob& job) {
  const ShardMeta& meta = (*job.batch)[job.item].meta;
  if (shared_->clears.cleared_since(job.clears, meta.id.fingerprint)) return TierStatus::Missing;
  Segment empty;
  if (!fits(empty, meta.payload_bytes, meta.text_keys.size())) return TierStatus::Full;  // would never fit
  if (!health_.may_write(now_ms()) || !wear_budget_.has(now_ms())) return TierStatus::Full;
  return TierStatus::Ok;
}

bool Device::start_put(PutJob* job) {
  const PutItem& item = (*job->batch)[job->item];
  const bool here = shared_->index.find(item.meta.id).has_value();
  if (here != item.replace) {
    answer_put(*job, here ? TierStatus::Ok : TierStatus::Missing);
    return true;
  }
  if (const TierStatus status = before_put(*job); status != TierStatus::Ok) {
    answer_put(*job, status);
    return true;
  }
  const auto place = place_for(item.meta.payload_bytes, item.meta.text_keys.size());
  if (!place) return false;
  Own t = transfer(Transfer::Purpose::Put, place->segment, place->block);
  t->put = std::move(*job);
  const Extent extent = extent_of(item.meta);
  write_extent(std::move(t), extent, item.data);
  seq_point(SeqPoint::DiskPutBegun);
  return true;
}

void Device::write_extent(Own t, const Extent& extent, const std::byte* payload) {
  Extent placed = extent;
  placed.block = t->block;
  write_extent_header(t->head.block(), life(t->segment), placed);
  const std::uint64_t bytes = blocks_of(extent.payload_bytes) * kBlockBytes;
  t->parts = bytes > 0 ? 2 : 1;
  t->iov[0] = {t->head.data(), kBlockBytes};
  t->iov[1] = {const_cast<std::byte*>(payload), bytes};  // the kernel only reads it
  ++segments_[t->segment].writes;
  write_budget_.take(kBlockBytes + bytes);
  wear_budget_.take(kBlockBytes + bytes);
  start(std::move(t), IoOp::Kind::Write);
}

void Device::put_ended(Transfer* t, bool ok) {
  const ShardMeta& meta = (*t->put.batch)[t->put.item].meta;
  Extent extent = extent_of(meta);
  extent.block = t->block;
  extent_ended(t->segment, ok, extent);
  if (!ok || health_.gone()) return answer_put(t->put, TierStatus::Failed);
  seq_point(SeqPoint::DiskPutWritten);
  const Place place{first_ + t->segment, t->block};
  const bool replaces = (*t->put.batch)[t->put.item].replace;
  const auto stored = replaces ? shared_->index.replace(extent, place) : shared_->index.put(extent, place);
  // Asked after it is in: a clear() either finds it there, or is found here.
  if (shared_->clears.cleared_since(t->put.clears, meta.id.fingerprint)) {
    (void)shared_->index.erase(meta.id, &place);
    return answer_put(t->put, TierStatus::Missing);
  }
  if (stored == DiskIndex::Put::Stored) shared_->counters.put_bytes += meta.payload_bytes;
  if (stored == DiskIndex::Put::Missing) {
    note_removed(
        {{meta.id.fingerprint, meta.id.key, meta.id.rect}});  // its record may lie before what was just written
    return answer_put(t->put, TierStatus::Missing);
  }
  answer_put(t->put, stored == DiskIndex::Put::NoRoom ? TierStatus::Full : TierStatus::Ok);
}

Extent Device::extent_of_record(const Transfer& t) {
  Extent extent;
  extent.kind = t.tombstone.kind;
  extent.block = t.block;
  extent.id.fingerprint = t.tombstone.fingerprint;
  extent.payload_bytes = t.tombstone.ids.size() * sizeof(RemovedId);
  extent.checksum = extent.payload_bytes > 0 ? xxh3_64(t.body.data(), extent.payload_bytes) : 0;
  return extent;
}

void Device::start_tombstones() {
  while (!tombstones_.empty() && writes_ < io_->depth() && health_.may_write(now_ms())) {
    if (!start_tombstone(&tombstones_.front())) return;
    tombstones_.pop_front();
  }
}

bool Device::start_tombstone(Tombstone* tombstone) {
  const std::uint64_t bytes = tombstone->ids.size() * sizeof(RemovedId);
  const auto place = place_for(bytes, 0);
  if (!place) return false;
  Own t = transfer(Transfer::Purpose::Tombstone, place->segment, place->block);
  t->tombstone = std::move(*tombstone);
  if (bytes > 0) {
    t->body = AlignedBlocks(blocks_of(bytes));
    std::memset(t->body.data(), 0, t->body.bytes());
    std::memcpy(t->body.data(), t->tombstone.ids.data(), bytes);
  }
  const Extent extent = extent_of_record(*t);
  const std::byte* payload = t->body.data();
  write_extent(std::move(t), extent, payload);
  return true;
}

}  // namespace kvcommons::disk
