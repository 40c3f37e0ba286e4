// Where the next extent goes, and how a full segment is sealed.
#include <algorithm>
#include <cstring>

#include "seq_points.h"
#include "tiers/disk_device.h"

namespace kvcommons::disk {

// The segment's table and trailer must fit behind it as well.
bool Device::fits(const Segment& s, std::uint64_t payload_bytes, std::size_t text_keys) const {
  if (payload_bytes >= file_.segment_bytes) return false;
  const std::uint64_t table = blocks_of(s.table_reserved + table_entry_bytes(text_keys));
  return s.next_block + extent_blocks(payload_bytes) + table + 1 <= file_.segment_bytes / kBlockBytes;
}

std::optional<Place> Device::place_for(std::uint64_t payload_bytes, std::size_t text_keys) {
  if (open_ != kNoSegment && !fits(segments_[open_], payload_bytes, text_keys)) {
    const std::uint32_t full = std::exchange(open_, kNoSegment);
    segments_[full].state = State::Sealing;
    sealed_.push_back(full);
    seal_if_over(full);
  }
  if (open_ == kNoSegment && !open_segment()) return std::nullopt;
  Segment& s = segments_[open_];
  if (!s.ready) return std::nullopt;
  const Place place{open_, s.next_block};
  s.next_block += static_cast<std::uint32_t>(extent_blocks(payload_bytes));
  s.table_reserved += table_entry_bytes(text_keys);
  return place;
}

bool Device::open_segment() {
  if (free_.empty() || !health_.may_write(now_ms())) return false;
  open_ = free_.front();
  free_.pop_front();
  Segment& s = segments_[open_];
  s = {};
  s.generation = ++generation_;
  s.state = State::Open;
  Own t = transfer(Transfer::Purpose::Header, open_, 0);
  write_segment_header(t->head.block(), life(open_));
  t->parts = 1;
  t->iov[0] = {t->head.data(), kBlockBytes};
  wear_budget_.take(kBlockBytes);
  start(std::move(t), IoOp::Kind::Write);
  return true;
}

void Device::header_ended(Transfer* t, bool ok) {
  Segment& s = segments_[t->segment];
  if (ok) {
    seq_point(SeqPoint::DiskReuseBegun);
    s.ready = true;
    return;
  }
  s.state = State::Free;
  free_.push_front(t->segment);
  open_ = kNoSegment;
}

void Device::extent_ended(std::uint32_t segment, bool ok, const Extent& extent) {
  Segment& s = segments_[segment];
  --s.writes;
  if (ok) {
    append_table(&s.table, extent);
    ++s.extents;
  }
  seal_if_over(segment);
}

void Device::seal_if_over(std::uint32_t segment) {
  Segment& s = segments_[segment];
  if (s.state != State::Sealing || s.writes > 0) return;
  seq_point(SeqPoint::DiskFooterBegun);
  const std::uint64_t table_blocks = blocks_of(s.table.size());
  const auto block = static_cast<std::uint32_t>(file_.segment_bytes / kBlockBytes - table_blocks - 1);
  Own t = transfer(Transfer::Purpose::Footer, segment, block);
  t->body = AlignedBlocks(table_blocks + 1);
  const auto table = t->body.span().first(table_blocks * kBlockBytes);
  std::memset(t->body.data(), 0, table.size());
  if (!s.table.empty()) std::memcpy(t->body.data(), s.table.data(), s.table.size());
  write_trailer(t->body.block(table_blocks), life(segment), table, s.table.size(), s.extents);
  t->parts = 1;
  t->iov[0] = {t->body.data(), t->body.bytes()};
  wear_budget_.take(t->body.bytes());
  start(std::move(t), IoOp::Kind::Write);
}

// Without its table a segment is as good, but the next start reads all of it.
void Device::footer_ended(Own t, bool ok) {
  Segment& s = segments_[t->segment];
  s.table = {};
  t->body = {};
  if (!ok) {
    shared_->counters.failed += 1;
    s.state = State::Sealed;
    spare_.push_back(std::move(t));
    return;
  }
  seq_point(SeqPoint::DiskFooterWritten);
  const std::uint32_t segment = t->segment;
  spare_.push_back(std::move(t));
  start(transfer(Transfer::Purpose::Sync, segment, 0), IoOp::Kind::Sync);
}

void Device::sync_ended(Transfer* t) {
  if (t->segment == kNoSegment) return;  // the last one
  segments_[t->segment].state = State::Sealed;
  seq_point(SeqPoint::DiskSealed);
}

// The newest segment goes on where it ended if it was not sealed; older ones of that kind are sealed now.
void Device::restore(Recovered* recovered) {
  id_ = recovered->device;
  generation_ = recovered->generation;
  segments_.resize(file_.segments);
  std::vector<std::uint32_t> used;
  for (std::uint32_t i = 0; i < file_.segments; ++i) {
    const RecoveredSegment& r = recovered->segments[i];
    segments_[i].generation = r.generation;
    if (r.generation == 0) {
      free_.push_back(i);
    } else {
      used.push_back(i);
    }
  }
  std::sort(used.begin(), used.end(),
            [this](auto a, auto b) { return segments_[a].generation < segments_[b].generation; });
  for (const std::uint32_t i : used) {
    RecoveredSegment& r = recovered->segments[i];
    Segment& s = segments_[i];
    s.state = State::Sealed;
    if (!r.sealed) {
      s.next_block = r.next_block;
      s.extents = r.extents;
      s.table = std::move(r.table);
      s.table_reserved = s.table.size();
      s.ready = true;
      if (i == used.back()) {
        s.state = State::Open;
        open_ = i;
        return;
      }
      seal_restored(i);
    }
    sealed_.push_back(i);
  }
}

void Device::seal_restored(std::uint32_t segment) {
  Segment& s = segments_[segment];
  if (s.next_block + blocks_of(s.table.size()) + 1 > file_.segment_bytes / kBlockBytes) return;
  s.state = State::Sealing;
  seal_if_over(segment);
}

}  // namespace kvcommons::disk
