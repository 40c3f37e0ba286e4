// Reads, and what becomes of jobs that cannot be done.
#include <algorithm>

#include "tiers/disk_device.h"

namespace kvcommons::disk {

void Device::answer_get(const GetJob& job, TierStatus status) {
  Counters& c = shared_->counters;
  c.queued_gets -= 1;
  c.queued_get_bytes -= job.bytes;
  c.misses += status == TierStatus::Missing ? 1 : 0;
  c.failed += status == TierStatus::Failed ? 1 : 0;
  c.corrupt += status == TierStatus::Corrupt ? 1 : 0;
  job.batch->finish(job.item, {status, {}});
}

void Device::answer_put(const PutJob& job, TierStatus status) {
  Counters& c = shared_->counters;
  c.queued_puts -= 1;
  c.queued_put_bytes -= job.bytes;
  waiting_put_bytes_ -= job.bytes;
  c.failed += status == TierStatus::Failed ? 1 : 0;
  c.refused_full += status == TierStatus::Full ? 1 : 0;
  job.batch->finish(job.item, status);
}

// One place in the queue is left to writes: reads come first, but never only they.
void Device::start_gets() {
  const std::uint32_t slots = std::max(io_->depth(), 2u) - 1;
  while (!gets_.empty() && reads_ + writes_ < slots && read_budget_.has(now_ms())) {
    GetJob job = std::move(gets_.front());
    gets_.pop_front();
    start_get(std::move(job));
  }
}

void Device::start_get(GetJob job) {
  const GetItem& item = (*job.batch)[job.item];
  Resident found;
  if (!shared_->index.describe(item.id, &found) || !holds(found.place.segment)) {
    return answer_get(job, TierStatus::Missing);
  }
  const std::uint64_t bytes = blocks_of(found.meta.payload_bytes) * kBlockBytes;
  const bool aligned = reinterpret_cast<std::uintptr_t>(item.data) % kBlockBytes == 0;
  if (item.data == nullptr || !aligned || item.room_bytes < bytes) return answer_get(job, TierStatus::Failed);
  const std::uint32_t segment = found.place.segment - first_;
  Own t = transfer(Transfer::Purpose::Get, segment, found.place.block + 1);
  t->parts = 1;
  t->iov[0] = {item.data, bytes};
  t->shard = std::move(found);
  t->get = std::move(job);
  ++segments_[segment].reads;
  read_budget_.take(bytes);
  start(std::move(t), IoOp::Kind::Read);
}

// A get that is right was answered already. Wrong bytes are the shard's fault only where it still lies there.
void Device::get_ended(Transfer* t, bool ok) {
  read_ended(t->segment);
  if (t->get.batch == nullptr) return;
  const bool here = shared_->index.erase(t->shard.meta.id, &t->shard.place);
  if (!ok) return answer_get(t->get, TierStatus::Failed);
  answer_get(t->get, here ? TierStatus::Corrupt : TierStatus::Missing);
}

void Device::look_after_health() {
  const std::uint64_t now = now_ms();
  std::uint64_t oldest = 0;
  for (const auto& [op, t] : in_flight_) oldest = std::max(oldest, now - std::min(now, t->started_ms));
  health_.oldest_in_flight(oldest);
  health_.wear(!wear_budget_.has(now));
}

void Device::refuse_all(TierStatus status) {
  for (const GetJob& job : std::exchange(gets_, {})) answer_get(job, status);
  for (const PutJob& job : std::exchange(puts_, {}))
    answer_put(job, status == TierStatus::Missing ? TierStatus::Closed : status);
}

void Device::expire() {
  if (closing_) {
    moves_.clear();
    return refuse_all(TierStatus::Closed);
  }
  if (health_.gone()) {
    if (!std::exchange(forgotten_, true)) {
      for (std::uint32_t s = 0; s < file_.segments; ++s) shared_->index.erase_segment(first_ + s);
    }
    tombstones_.clear();
    return refuse_all(TierStatus::Missing);
  }
  if (health_.hangs()) return refuse_all(TierStatus::Failed);
  const std::uint64_t now = now_ms();
  const std::uint64_t deadline = shared_->config.op_deadline_ms;
  for (; !gets_.empty() && now - gets_.front().since_ms > deadline; gets_.pop_front()) {
    answer_get(gets_.front(), TierStatus::Failed);
  }
  for (; !puts_.empty() && now - puts_.front().since_ms > deadline; puts_.pop_front()) {
    answer_put(puts_.front(), TierStatus::Failed);
  }
}

}  // namespace kvcommons::disk
