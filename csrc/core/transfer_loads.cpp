#include "transfer_loads.h"

#include <pthread.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>

#include "transfer_thread.h"

namespace kvcommons {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kFinishedMax = 65'536;  // results that nobody takes: the oldest go
constexpr std::size_t kRecentMax = 1'024;
constexpr std::size_t kReleaseBatch = 16;  // leases ended while other loads still run
constexpr std::size_t kRunsMax = 4'096;    // gathered before they are copied

void remember(std::deque<JobResult>* results, const JobResult& result, std::size_t max) {
  if (results->size() >= max) results->pop_front();
  results->push_back(result);
}

}  // namespace

LoadQueue::LoadQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, Device* device,
                     unsigned copy_threads, std::uint32_t jobs_max)
    : port_(port), layout_(layout), gate_(gate), pool_(copy_threads - 1), device_(device), jobs_max_(jobs_max) {
  thread_ = native_thread("kvc-load", [this] { thread_main(); });
}

LoadQueue::~LoadQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  thread_.join();
}

bool LoadQueue::admit() {
  const std::lock_guard lock(mutex_);
  const bool room = !stop_ && admitted_ < jobs_max_;
  if (room) {
    ++admitted_;
  } else {
    ++stats_.loads_failed;
  }
  return room;
}

Status LoadQueue::check(const Load& load) const {
  const std::uint64_t blocks = std::uint64_t{load.job.first_block} + load.job.block_ids.size();
  if (blocks > std::uint64_t{load.slots.size()} * layout_.blocks_per_chunk()) return Status::TooLarge;
  const std::uint64_t slot = layout_.slot_bytes(), arena = load.attached.arena_bytes;
  const auto outside = [&](const SlotRef& s) { return slot > arena || s.offset_bytes > arena - slot; };
  if (std::any_of(load.slots.begin(), load.slots.end(), outside)) return Status::Internal;
  return load.attached.arena ? Status::Ok : Status::Disconnected;
}

// From the first line on this counts as a copy; a refusal ends it.
Status LoadQueue::begin(Load* load) {
  port_.copy_started();
  Status status = Status::Disconnected;
  bool begun = false;
  if (port_.ensure_connected()) {
    const std::uint64_t before = port_.attachment().attach;
    status = port_.begin(load->job.lease, &load->slots);
    begun = status == Status::Ok;
    load->attached = port_.attachment();
    if (begun) status = load->attached.attach == before ? check(*load) : Status::Gone;
  }
  if (status != Status::Ok) {
    port_.copy_finished();
    if (begun) (void)port_.release(load->job.lease);  // refused by us: if this fails too, the session's end frees it
  }
  return status;
}

Status LoadQueue::submit(LoadJob job) {
  layout_.check_blocks(job.block_ids);
  if (!admit()) return Status::Full;
  auto load = std::make_unique<Load>();
  load->job = std::move(job);
  load->after = EngineMark(device_, load->job.stream);
  const Status status = begin(load.get());
  const std::lock_guard lock(mutex_);
  if (status != Status::Ok) {
    --admitted_;
    ++stats_.loads_failed;
    return status;
  }
  load->blocks_left.assign(layout_.layers(), load->job.block_ids.size());
  load->sequence = ++sequence_;
  active_.push_back(std::move(load));
  running_.fetch_add(1, std::memory_order_relaxed);
  gate_.load_began();
  work_.notify_one();
  return Status::Ok;
}

Status LoadQueue::wait_layer(std::uint32_t layer, std::uint32_t ms_max) {
  if (layer >= layout_.layers()) {
    throw std::invalid_argument("layer is " + std::to_string(layer) + ", but only " + std::to_string(layout_.layers()) +
                                " are registered: pass the index of a registered layer");
  }
  if (running_.load(std::memory_order_acquire) == 0) return Status::Ok;
  const auto deadline = std::chrono::steady_clock::now() + milliseconds(ms_max);
  kernels::RunList runs;
  std::unique_lock lock(mutex_);
  const std::uint64_t last = sequence_;
  const auto behind = [&](const auto& load) {
    return !load->job.whole && load->sequence <= last && load->whole_layers <= layer;
  };
  while (std::any_of(active_.begin(), active_.end(), behind)) {
    if (std::chrono::steady_clock::now() >= deadline) return Status::TimedOut;
    Piece piece;
    if (device_ != nullptr || !take(last, layer, kPieceBytes, &piece)) {  // others copy the rest
      progress_.wait_until(lock, deadline);
      continue;
    }
    lock.unlock();
    const Stopwatch watch;
    copy(piece, &runs, nullptr);
    lock.lock();
    finish(piece, watch.ns(), Device::State::Done);
  }
  return Status::Ok;
}

Status LoadQueue::wait_load(std::uint64_t job, std::uint32_t ms_max) {
  std::unique_lock lock(mutex_);
  const auto is_it = [&](const auto& load) { return load->job.job == job; };
  const bool done = progress_.wait_for(lock, milliseconds(ms_max),
                                       [&] { return std::none_of(active_.begin(), active_.end(), is_it); });
  if (!done) return Status::TimedOut;
  const auto result = std::find_if(recent_.rbegin(), recent_.rend(), [&](const auto& r) { return r.job == job; });
  return result == recent_.rend() ? Status::Gone : result->status;
}

std::vector<JobResult> LoadQueue::take_finished() {
  const std::lock_guard lock(mutex_);
  std::vector<JobResult> out(finished_.begin(), finished_.end());
  finished_.clear();
  return out;
}

void LoadQueue::add_stats(Transfer::Stats* stats) const {
  const std::lock_guard lock(mutex_);
  stats->load_bytes = stats_.load_bytes;
  stats->load_ns = stats_.load_ns;
  stats->loads = stats_.loads;
  stats->loads_failed = stats_.loads_failed;
  stats->queued += active_.size();
}

bool LoadQueue::take(std::uint64_t last, std::uint32_t layer, std::uint64_t bytes, Piece* piece) {
  Load* load = nullptr;
  const auto sooner = [](const Load& a, const Load& b) {
    return a.job.whole != b.job.whole ? b.job.whole : !a.job.whole && a.next_layer < b.next_layer;
  };
  const bool forward = layer < layout_.layers();
  for (const auto& other : active_) {
    if (other->sequence > last || other->next_layer > layer || other->next_layer == layout_.layers()) continue;
    if (other->failed || (forward && other->job.whole)) continue;
    if (load == nullptr || sooner(*other, *load)) load = other.get();  // of equals the oldest
  }
  if (load == nullptr) return false;
  const std::uint64_t block = layout_.layer_block_bytes(load->next_layer);
  const std::size_t blocks = load->job.block_ids.size(), first = load->next_block;
  const std::size_t count = std::min<std::size_t>((bytes + block - 1) / block, blocks - first);
  *piece = {.load = load, .layer = load->next_layer, .first = first, .count = count};
  ++load->under_way;
  load->next_block += piece->count;
  if (load->next_block == blocks) {
    load->next_block = 0;
    ++load->next_layer;
  }
  return true;
}

void LoadQueue::finish(const Piece& piece, std::uint64_t ns, Device::State state) {
  Load& load = *piece.load;
  --load.under_way;
  load.failed |= state != Device::State::Done;
  load.lost |= state == Device::State::Lost;
  if (load.failed) {
    if (load.under_way == 0) {
      end(&load, Status::Internal);
      progress_.notify_all();
    }
    return;
  }
  const std::uint64_t bytes = piece.count * layout_.layer_block_bytes(piece.layer);
  load.bytes += bytes;
  stats_.load_bytes += bytes;
  stats_.load_ns += ns;
  load.blocks_left[piece.layer] -= piece.count;
  const std::uint32_t before = load.whole_layers;
  while (load.whole_layers < load.next_layer && load.blocks_left[load.whole_layers] == 0) ++load.whole_layers;
  if (load.whole_layers == before) return;
  if (load.whole_layers == layout_.layers()) {
    end(&load, Status::Ok);
    work_.notify_one();  // its lease is the thread's to give back
  }
  progress_.notify_all();
}

void LoadQueue::copy(const Piece& piece, kernels::RunList* runs, kernels::WorkerPool* pool) const {
  const auto stores = kernels::stores_for(piece.load->job.block_ids.size() * layout_.block_bytes());
  each_runs(piece, runs, kRunsMax, [&](std::span<const kernels::CopyRun> list) {
    if (pool != nullptr) {
      kernels::copy_runs(*pool, list, stores);
    } else {
      kernels::copy_runs(list, stores);
    }
  });
}

void LoadQueue::end(Load* load, Status status) {
  const JobResult result = {.job = load->job.job, .status = status, .bytes = load->bytes, .chunks = 0};
  remember(&finished_, result, kFinishedMax);
  remember(&recent_, result, kRecentMax);
  ++(status == Status::Ok ? stats_.loads : stats_.loads_failed);
  if (load->lost) {
    lost_arenas_.push_back(load->attached.arena);
  } else {
    ended_.push_back(load->job.lease);
  }
  std::erase_if(active_, [load](const auto& other) { return other.get() == load; });
  --admitted_;
  running_.fetch_sub(1, std::memory_order_release);  // the copies are seen by whoever sees this
  gate_.load_ended();
}

void LoadQueue::give_back(std::vector<LeaseId> leases) {
  for (const LeaseId lease : leases) {
    port_.copy_finished();
    (void)port_.release(lease);  // a node that is away finds out by the session's end
  }
}

// Leases are given back when nothing is left to copy, or when there are many.
bool LoadQueue::leases_due() const { return !ended_.empty() && (active_.empty() || ended_.size() >= kReleaseBatch); }

void LoadQueue::thread_main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    while (stop_ && under_way_.empty() && !active_.empty()) end(active_.front().get(), Status::Gone);
    if (leases_due()) {
      auto leases = std::exchange(ended_, {});
      progress_.notify_all();
      lock.unlock();
      give_back(std::move(leases));
      lock.lock();
      continue;
    }
    if (stop_ && under_way_.empty()) return;
    if (!(device_ == nullptr ? step(&lock) : step_on_device(&lock))) work_.wait(lock);
  }
}

bool LoadQueue::step(std::unique_lock<std::mutex>* lock) {
  Piece piece;
  if (!take(sequence_, layout_.layers(), kPieceBytes * pool_.threads(), &piece)) return false;
  lock->unlock();
  const Stopwatch watch;
  copy(piece, &runs_, &pool_);
  lock->lock();
  finish(piece, watch.ns(), Device::State::Done);
  return true;
}

}  // namespace kvcommons
