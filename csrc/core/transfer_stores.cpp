#include "transfer_stores.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

#include "transfer_thread.h"
#include "xxh3.h"

namespace kvcommons {
namespace {

constexpr std::size_t kFinishedMax = 65'536;      // results that nobody takes: the oldest go
constexpr std::uint64_t kBatchBytes = 64u << 20;  // reserved at once: more would evict more than is filled soon
constexpr std::size_t kBatchChunksMax = 64;
constexpr std::chrono::seconds kWarmEvery{1};
constexpr std::size_t kHotBytes = 128u << 10;  // copied, then hashed from the source while that is in the cache
static_assert(kBatchChunksMax <= kChunksPerReserveMax);

std::size_t batch_chunks(std::uint64_t slot_bytes) {
  return std::clamp<std::size_t>(kBatchBytes / slot_bytes, 1, kBatchChunksMax);
}

// Copies the runs in order and feeds the hash with them. Reads each byte from memory once.
void copy_and_hash(std::span<const kernels::CopyRun> runs, kernels::Stores stores, Xxh3Stream* hash) {
  while (!runs.empty()) {
    std::size_t count = 0;
    for (std::size_t bytes = 0; count < runs.size() && (count == 0 || bytes + runs[count].bytes <= kHotBytes);
         ++count) {
      bytes += runs[count].bytes;
    }
    const kernels::CopyRun& run = runs.front();
    if (count == 1 && run.bytes > kHotBytes) {
      for (std::size_t at = 0; at < run.bytes; at += kHotBytes) {
        const kernels::CopyRun piece = {run.src + at, run.dst + at, std::min(kHotBytes, run.bytes - at)};
        kernels::copy_runs({&piece, 1}, stores);
        hash->update(piece.src, piece.bytes);
      }
    } else {
      kernels::copy_runs(runs.first(count), stores);
      for (const auto& each : runs.first(count)) hash->update(each.src, each.bytes);
    }
    runs = runs.subspan(count);
  }
}

}  // namespace

StoreQueue::StoreQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, std::uint32_t jobs_max)
    : port_(port),
      layout_(layout),
      gate_(gate),
      jobs_max_(jobs_max),
      chunks_per_batch_(batch_chunks(layout.slot_bytes())) {
  thread_ = native_thread("kvc-store", [this] { thread_main(); });
}

StoreQueue::~StoreQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  gate_.urge();
  work_.notify_all();
  thread_.join();
}

void StoreQueue::check(const StoreJob& job) const {
  const auto refuse = [](const std::string& what) { throw std::invalid_argument(what); };
  if (job.keys.size() > kChunksPerReserveMax) {
    refuse("keys has " + std::to_string(job.keys.size()) + " entries, over " + std::to_string(kChunksPerReserveMax) +
           ": store in several jobs");
  }
  if (job.block_ids.size() != job.keys.size() * layout_.blocks_per_chunk()) {
    refuse("block_ids has " + std::to_string(job.block_ids.size()) + " entries for " + std::to_string(job.keys.size()) +
           " keys: pass " + std::to_string(layout_.blocks_per_chunk()) + " a key");
  }
  if (!job.text_keys.empty() && job.text_keys.size() != job.keys.size()) {
    refuse("text_keys has " + std::to_string(job.text_keys.size()) + " lists for " + std::to_string(job.keys.size()) +
           " keys: pass one a key, or none at all");
  }
  for (const auto& list : job.text_keys) {
    if (list.size() > kTextKeysPerChunkMax) {
      refuse("text_keys holds a list of " + std::to_string(list.size()) + ", over " +
             std::to_string(kTextKeysPerChunkMax) + ": a chunk covers fewer steps of text");
    }
  }
  layout_.check_blocks(job.block_ids);
}

Status StoreQueue::submit(StoreJob job) {
  check(job);
  const std::lock_guard lock(mutex_);
  if (stop_ || queue_.size() >= jobs_max_) {
    ++stats_.stores_dropped;
    return Status::Full;
  }
  reading_.push_back(job.job);
  queue_.push_back(std::move(job));
  work_.notify_one();
  return Status::Ok;
}

template <typename Ready>
void StoreQueue::wait_until(Ready ready) {
  std::unique_lock lock(mutex_);
  if (ready()) return;
  gate_.urge();
  progress_.wait(lock, ready);
  gate_.calm();
}

void StoreQueue::wait(std::span<const std::uint64_t> jobs) {
  wait_until([&] {
    return std::none_of(reading_.begin(), reading_.end(),
                        [&](std::uint64_t job) { return std::find(jobs.begin(), jobs.end(), job) != jobs.end(); });
  });
}

void StoreQueue::wait_all() {
  wait_until([&] { return reading_.empty(); });
}

std::vector<JobResult> StoreQueue::take_finished() {
  const std::lock_guard lock(mutex_);
  std::vector<JobResult> out(finished_.begin(), finished_.end());
  finished_.clear();
  return out;
}

void StoreQueue::add_stats(Transfer::Stats* stats) const {
  const std::lock_guard lock(mutex_);
  const auto loads = *stats;
  *stats = stats_;
  stats->load_bytes = loads.load_bytes;
  stats->load_ns = loads.load_ns;
  stats->loads = loads.loads;
  stats->loads_failed = loads.loads_failed;
  stats->queued = loads.queued + queue_.size();
}

bool StoreQueue::stopping() const {
  const std::lock_guard lock(mutex_);
  return stop_;
}

void StoreQueue::source_read(std::uint64_t job) {
  const std::lock_guard lock(mutex_);
  const auto at = std::find(reading_.begin(), reading_.end(), job);
  if (at != reading_.end()) reading_.erase(at);
  progress_.notify_all();
}

// With nothing to do the arena is mapped page by page; a client that attaches anew, and a node
// that has gone, are noticed by looking now and then.
void StoreQueue::warm_until_work(std::unique_lock<std::mutex>* lock) {
  const auto busy = [&] { return stop_ || !queue_.empty(); };
  while (!busy()) {
    lock->unlock();
    gate_.yield();
    const bool more = warmer_.step(port_);
    if (!more) port_.upkeep();
    lock->lock();
    if (!more) work_.wait_for(*lock, kWarmEvery, busy);
  }
}

void StoreQueue::thread_main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    warm_until_work(&lock);
    if (stop_) break;
    const StoreJob job = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    run(job);
    lock.lock();
  }
  stats_.stores_dropped += queue_.size();
  queue_.clear();
  reading_.clear();
  progress_.notify_all();
}

void StoreQueue::run(const StoreJob& job) {
  JobResult result = {.job = job.job, .status = Status::Ok, .bytes = 0, .chunks = 0};
  for (std::size_t first = 0; first < job.keys.size() && result.status == Status::Ok; first += chunks_per_batch_) {
    Batch batch;
    batch.first = first;
    batch.count = std::min(chunks_per_batch_, job.keys.size() - first);
    result.status = store(job, &batch, &result);
  }
  source_read(job.job);
  const std::lock_guard lock(mutex_);
  ++(result.status == Status::Ok || result.status == Status::Full ? stats_.stores : stats_.stores_failed);
  if (finished_.size() >= kFinishedMax) finished_.pop_front();
  finished_.push_back(result);
}

Status StoreQueue::store(const StoreJob& job, Batch* batch, JobResult* result) {
  port_.copy_started();
  const Status reserved = reserve(job, batch);
  const bool copied = reserved == Status::Ok && copy(job, batch);
  const bool last = batch->first + batch->count == job.keys.size();
  if (!copied || last || batch->chain_end != Status::Ok) source_read(job.job);  // nobody waits for the commit
  port_.copy_finished();
  if (reserved != Status::Ok) return reserved;
  abort(*batch, !copied);
  if (!copied) return Status::Gone;
  const Status committed = commit(*batch, result);
  return committed == Status::Ok ? batch->chain_end : committed;
}

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
  Status status =
      port_.reserve(job.tenant, parent, std::span(job.keys).subspan(batch->first, batch->count), &reservations);
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

bool StoreQueue::copy(const StoreJob& job, Batch* batch) {
  const auto stores = kernels::stores_for(batch->granted.size() * layout_.slot_bytes());
  for (std::size_t i = 0; i < batch->granted.size(); ++i) {
    if (stopping()) return false;
    CommitItem& item = batch->items[i];
    item.checksum = copy_chunk(job, batch->granted[i], stores, batch->attached.arena.get() + item.slot.offset_bytes);
  }
  return true;
}

std::uint64_t StoreQueue::copy_chunk(const StoreJob& job, std::size_t chunk, kernels::Stores stores, std::byte* slot) {
  Xxh3Stream hash;
  const auto ids = std::span(job.block_ids).subspan(chunk * layout_.blocks_per_chunk(), layout_.blocks_per_chunk());
  std::uint64_t ns = 0;
  for (std::uint32_t layer = 0; layer < layout_.layers(); ++layer) {
    gate_.yield();
    const Stopwatch watch;
    for (std::uint32_t i = 0; i < ids.size(); ++i) layout_.gather(layer, ids[i], slot, i, &runs_);
    copy_and_hash(runs_.runs(), stores, &hash);
    runs_.clear();
    ns += watch.ns();
  }
  const std::lock_guard lock(mutex_);
  stats_.store_bytes += layout_.slot_bytes();
  stats_.store_ns += ns;
  return hash.digest();
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
