// The oldest segment makes room: what is hot is written anew, the rest is forgotten.
#include <algorithm>

#include "seq_points.h"
#include "tiers/disk_device.h"

namespace kvcommons::disk {

void Device::clean() {
  if (cleaning_ != kNoSegment || sealed_.empty() || segments_[sealed_.front()].state != State::Sealed) return;
  if (!free_.empty() || closing_) return;
  cleaning_ = sealed_.front();
  sealed_.pop_front();
  segments_[cleaning_].state = State::Cleaning;
  begin_moves(shared_->index.list_segment(first_ + cleaning_));
}

// No more than reinsert_share moves, so that each round makes room whatever is hot.
void Device::begin_moves(std::vector<Resident> residents) {
  const double share = shared_->config.reinsert_share * static_cast<double>(file_.segment_bytes);
  auto left = static_cast<std::uint64_t>(share);
  const bool may_move = health_.may_write(now_ms()) && wear_budget_.has(now_ms());
  for (Resident& resident : residents) {
    const std::uint64_t bytes = extent_blocks(resident.meta.payload_bytes) * kBlockBytes;
    if (may_move && resident.hot && bytes <= left) {
      left -= bytes;
      moves_.push_back(std::move(resident));
    } else if (shared_->index.erase(resident.meta.id, &resident.place)) {
      shared_->counters.evicted += 1;
    }
  }
}

void Device::pump_moves() {
  if (cleaning_ == kNoSegment) return;
  for (; !moves_.empty() && moves_in_flight_ < kMovesMax; moves_.pop_front()) {
    Own t = transfer(Transfer::Purpose::MoveRead, cleaning_, moves_.front().place.block + 1);
    t->shard = std::move(moves_.front());
    t->body = AlignedBlocks(blocks_of(t->shard.meta.payload_bytes));
    t->parts = 1;
    t->iov[0] = {t->body.data(), t->body.bytes()};
    ++segments_[cleaning_].reads;
    ++moves_in_flight_;
    start(std::move(t), IoOp::Kind::Read);
  }
  while (!moves_read_.empty()) {
    if (write_move(&moves_read_.front())) {
      moves_read_.pop_front();
    } else if (open_ != kNoSegment && !closing_) {
      break;  // the segment's header is on its way
    } else {
      --moves_in_flight_;  // no room for it: finish_cleaning forgets it
      moves_read_.pop_front();
    }
  }
  finish_cleaning();
}

// True: the read is dealt with. What was removed meanwhile is not written: the record of it must stay the later one.
bool Device::write_move(Own* read) {
  const ShardMeta& meta = (*read)->shard.meta;
  if (const auto found = shared_->index.find(meta.id); !found || found->place != (*read)->shard.place) {
    --moves_in_flight_;
    return true;
  }
  const auto place = place_for(meta.payload_bytes, meta.text_keys.size());
  if (!place) return false;
  Own t = transfer(Transfer::Purpose::MoveWrite, place->segment, place->block);
  t->shard = std::move((*read)->shard);
  t->body = std::move((*read)->body);
  const Extent extent = extent_of(t->shard.meta);
  const std::byte* payload = t->body.data();
  write_extent(std::move(t), extent, payload);
  return true;
}

void Device::move_read(Own t, bool ok) {
  read_ended(t->segment);
  if (ok && !t->bad) {
    moves_read_.push_back(std::move(t));
    return;
  }
  --moves_in_flight_;
  if (shared_->index.erase(t->shard.meta.id, &t->shard.place)) {
    (ok ? shared_->counters.corrupt : shared_->counters.failed) += 1;
  }
  t->body = {};
  spare_.push_back(std::move(t));
}

void Device::move_ended(Transfer* t, bool ok) {
  --moves_in_flight_;
  Extent extent = extent_of(t->shard.meta);
  extent.block = t->block;
  extent_ended(t->segment, ok, extent);
  if (ok && shared_->index.move(t->shard.meta.id, t->shard.place, {first_ + t->segment, t->block})) {
    shared_->counters.reinserted += 1;
  }
}

void Device::finish_cleaning() {
  if (cleaning_ == kNoSegment || !moves_.empty() || !moves_read_.empty() || moves_in_flight_ > 0) return;
  const std::uint32_t segment = std::exchange(cleaning_, kNoSegment);
  shared_->counters.evicted += shared_->index.erase_segment(first_ + segment);
  seq_point(SeqPoint::DiskReuseChosen);
  segments_[segment].state = State::Draining;
  free_if_unread(segment);
}

void Device::read_ended(std::uint32_t segment) {
  --segments_[segment].reads;
  free_if_unread(segment);
}

void Device::free_if_unread(std::uint32_t segment) {
  Segment& s = segments_[segment];
  if (s.state != State::Draining || s.reads > 0) return;
  s.state = State::Free;
  free_.push_back(segment);
}

}  // namespace kvcommons::disk
