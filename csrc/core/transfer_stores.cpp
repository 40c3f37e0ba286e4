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

StoreQueue::StoreQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, Device* device,
                       std::uint32_t jobs_max)
    : port_(port),
      layout_(layout),
      gate_(gate),
      device_(device),
      warmer_(device),
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
  EngineMark after(device_, job.stream);
  const std::lock_guard lock(mutex_);
  if (stop_ || queue_.size() >= jobs_max_) {
    ++stats_.stores_dropped;
    return Status::Full;
  }
  reading_.push_back(job.job);
  queue_.push_back({std::move(job), std::move(after)});
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
    Queued queued = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    run(&queued);
    lock.lock();
  }
  stats_.stores_dropped += queue_.size();
  queue_.clear();
  reading_.clear();
  progress_.notify_all();
}

void StoreQueue::run(Queued* queued) {
  const StoreJob& job = queued->job;
  JobResult result = {.job = job.job, .status = Status::Ok, .bytes = 0, .chunks = 0};
  for (std::size_t first = 0; first < job.keys.size() && result.status == Status::Ok; first += chunks_per_batch_) {
    Batch batch;
    batch.first = first;
    batch.count = std::min(chunks_per_batch_, job.keys.size() - first);
    result.status = store(queued, &batch, &result);
  }
  source_read(job.job);
  const std::lock_guard lock(mutex_);
  ++(result.status == Status::Ok || result.status == Status::Full ? stats_.stores : stats_.stores_failed);
  if (finished_.size() >= kFinishedMax) finished_.pop_front();
  finished_.push_back(result);
}

Status StoreQueue::store(Queued* queued, Batch* batch, JobResult* result) {
  const StoreJob& job = queued->job;
  port_.copy_started();
  const Status reserved = reserve(job, batch);
  const bool copied = reserved == Status::Ok && (device_ == nullptr ? copy(job, batch) : copy_by_device(queued, batch));
  const bool last = batch->first + batch->count == job.keys.size();
  if (!copied || last || batch->chain_end != Status::Ok) source_read(job.job);  // nobody waits for the commit
  if (batch->lost) return Status::Internal;
  port_.copy_finished();
  if (reserved != Status::Ok) return reserved;
  abort(*batch, !copied);
  if (!copied) return Status::Gone;
  const Status committed = commit(*batch, result);
  return committed == Status::Ok ? batch->chain_end : committed;
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

}  // namespace kvcommons
