// The slots of a store: reserved before its chunks are copied, then committed or given back.
#include <utility>

#include "transfer_stores.h"

namespace kvcommons {

Status StoreQueue::reserve(const StoreJob& job, Batch* batch) {
  bool moved = false;
  Status status = reserve_once(job, batch, &moved);
  if (moved) {  // the node was restarted: this chain is as welcome there
    *batch = {batch->first, batch->count, {}, {}, {}, {}, Status::Ok};
    status = reserve_once(job, batch, &moved);
  }
  return status;
}

Status StoreQueue::reserve_once(const StoreJob& job, Batch* batch, bool* moved) {
  if (!port_.ensure_connected()) return Status::Disconnected;
  const Key& parent = batch->first == 0 ? job.parent : job.keys[batch->first - 1];
  const std::uint64_t before = port_.attachment().attach;
  std::vector<Reservation> reservations;
  Status status = port_.reserve(job.tenant, parent, std::span(job.keys).subspan(batch->first, batch->count),
                                &reservations, job.hints);
  batch->attached = port_.attachment();
  *moved = batch->attached.attach != before;
  if (status != Status::Ok) return status;
  status = sort_out(reservations, batch);
  // Granted while the node changed, slots may lie in another arena than the one at hand.
  if (status == Status::Ok && (*moved || batch->attached.arena == nullptr)) status = Status::Gone;
  if (status != Status::Ok) {
    abort(*batch, true);
    return status;
  }
  for (std::size_t i = 0; i < batch->granted.size() && !job.text_keys.empty(); ++i) {
    batch->items[i].text_keys = job.text_keys[batch->granted[i]];
  }
  return Status::Ok;
}

Status StoreQueue::sort_out(const std::vector<Reservation>& reservations, Batch* batch) {
  const std::uint64_t slot = layout_.slot_bytes(), arena = batch->attached.arena_bytes;
  Status status = reservations.size() == batch->count ? Status::Ok : Status::Internal;
  const std::lock_guard lock(mutex_);
  for (std::size_t i = 0; i < reservations.size() && i < batch->count; ++i) {
    const Reservation& reservation = reservations[i];
    if (reservation.status == ReserveStatus::Granted) {
      if (slot > arena || reservation.slot.offset_bytes > arena - slot) status = Status::Internal;
      if (batch->chain_end != Status::Ok) {
        batch->unused.push_back(reservation.slot);
      } else {
        batch->granted.push_back(batch->first + i);
        batch->items.push_back({.slot = reservation.slot, .checksum = 0, .text_keys = {}});
      }
    } else if (reservation.status == ReserveStatus::Exists) {
      ++stats_.store_exists;
    } else if (reservation.status == ReserveStatus::Busy) {
      ++stats_.store_busy;
    } else {
      const bool full = reservation.status == ReserveStatus::Full;
      stats_.store_full += full ? 1 : 0;
      if (batch->chain_end == Status::Ok) batch->chain_end = full ? Status::Full : Status::Gone;
    }
  }
  return status;
}

Status StoreQueue::commit(const Batch& batch, JobResult* result) {
  if (batch.items.empty()) return Status::Ok;
  std::uint32_t accepted = 0;
  const bool same = port_.attachment().attach == batch.attached.attach;
  const Status status = same ? port_.commit(batch.items, &accepted) : Status::Gone;
  if (status != Status::Ok) {
    if (same) abort(batch, true);
    return status;
  }
  const std::lock_guard lock(mutex_);
  stats_.store_chunks += accepted;
  result->chunks += accepted;
  result->bytes += accepted * layout_.slot_bytes();
  return accepted == batch.items.size() ? Status::Ok : Status::Gone;
}

// Slots of a former attach went with their session; the node refuses them by their generation.
void StoreQueue::abort(const Batch& batch, bool all) {
  std::vector<SlotRef> slots = batch.unused;
  for (const CommitItem& item : batch.items) {
    if (all) slots.push_back(item.slot);
  }
  if (!slots.empty()) (void)port_.abort(slots);
}

}  // namespace kvcommons
