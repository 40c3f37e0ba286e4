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
constexpr std::size_t kRunsMax = 4'096;    // pieces gathered before they are copied

void remember(std::deque<JobResult>* results, const JobResult& result, std::size_t max) {
  if (results->size() >= max) results->pop_front();
  results->push_back(result);
}

}  // namespace

LoadQueue::LoadQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, unsigned copy_threads,
                     std::uint32_t jobs_max)
    : port_(port), layout_(layout), gate_(gate), pool_(copy_threads - 1), jobs_max_(jobs_max) {
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
  const Status status = begin(load.get());
  const std::lock_guard lock(mutex_);
  if (status != Status::Ok) {
    --admitted_;
    ++stats_.loads_failed;
    return status;
  }
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
  std::unique_lock lock(mutex_);
  const std::uint64_t last = sequence_;
  const auto behind = [&](const auto& load) { return load->sequence <= last && load->next_layer <= layer; };
  const bool done = progress_.wait_for(lock, milliseconds(ms_max),
                                       [&] { return std::none_of(active_.begin(), active_.end(), behind); });
  return done ? Status::Ok : Status::TimedOut;
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

void LoadQueue::copy_layer(const Load& load, std::uint32_t layer) {
  const auto& ids = load.job.block_ids;
  const auto stores = kernels::stores_for(ids.size() * layout_.block_bytes());
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::uint64_t block = load.job.first_block + i;
    const SlotRef& slot = load.slots[block / layout_.blocks_per_chunk()];
    const auto index = static_cast<std::uint32_t>(block % layout_.blocks_per_chunk());
    layout_.scatter(layer, ids[i], load.attached.arena.get() + slot.offset_bytes, index, &runs_);
    if (runs_.runs().size() < kRunsMax && i + 1 < ids.size()) continue;
    kernels::copy_runs(pool_, runs_.runs(), stores);
    runs_.clear();
  }
}

LoadQueue::Load* LoadQueue::furthest_behind() {
  const auto at = std::min_element(active_.begin(), active_.end(), [](const auto& a, const auto& b) {
    return a->next_layer != b->next_layer ? a->next_layer < b->next_layer : a->sequence < b->sequence;
  });
  return at->get();
}

void LoadQueue::end(Load* load, Status status) {
  const JobResult result = {.job = load->job.job, .status = status, .bytes = load->bytes, .chunks = 0};
  remember(&finished_, result, kFinishedMax);
  remember(&recent_, result, kRecentMax);
  ++(status == Status::Ok ? stats_.loads : stats_.loads_failed);
  ended_.push_back(load->job.lease);
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

void LoadQueue::thread_main() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [&] { return stop_ || !active_.empty() || !ended_.empty(); });
    while (stop_ && !active_.empty()) end(active_.front().get(), Status::Gone);
    if (active_.empty() || ended_.size() >= kReleaseBatch) {
      if (ended_.empty() && stop_) return;
      auto leases = std::exchange(ended_, {});
      progress_.notify_all();
      lock.unlock();
      give_back(std::move(leases));
      lock.lock();
      continue;
    }
    Load* load = furthest_behind();
    const std::uint32_t layer = load->next_layer;
    lock.unlock();
    const Stopwatch watch;
    copy_layer(*load, layer);
    const std::uint64_t ns = watch.ns();
    lock.lock();
    const std::uint64_t bytes = load->job.block_ids.size() * layout_.layer_block_bytes(layer);
    load->bytes += bytes;
    stats_.load_bytes += bytes;
    stats_.load_ns += ns;
    if (++load->next_layer == layout_.layers()) end(load, Status::Ok);
    progress_.notify_all();
  }
}

}  // namespace kvcommons
