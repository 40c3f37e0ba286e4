// The store half of a transfer. Life of a store: submit() checks and queues it; the thread reserves a batch of chunks,
// copies each granted slot and hashes it while it is in the cache, and commits the batch with its text keys. Chunks
// that exist or that another writer fills are skipped; a chunk that gets no slot ends the chain, for no later one could
// be hit. What was granted and is not committed is aborted, when nothing touches it any more.
//
// On a device the slots fill in the order of its stream, behind what the engine's stream had been given when the store
// was submitted, and each is hashed in the arena while the next ones are on their way. After a device is lost nobody
// knows whether it still writes: slots and mapping are kept until this process ends.
#pragma once

#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

#include "arena_warmer.h"
#include "kernels/cpu/copy.h"
#include "lease_port.h"
#include "transfer.h"
#include "transfer_gate.h"
#include "transfer_layout.h"

namespace kvcommons {

class StoreQueue {
 public:
  StoreQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, Device* device, std::uint32_t jobs_max);
  ~StoreQueue();
  StoreQueue(const StoreQueue&) = delete;  // owns its thread

  Status submit(StoreJob job);
  void wait(std::span<const std::uint64_t> jobs);
  void wait_all();
  std::vector<JobResult> take_finished();
  void add_stats(Transfer::Stats* stats) const;

 private:
  // Chunks [first, first + count) of a job, on their way.
  struct Batch {
    std::size_t first = 0, count = 0;
    LeasePort::Attachment attached;
    std::vector<std::size_t> granted;  // indices into the job's keys
    std::vector<CommitItem> items;     // one per granted
    std::vector<SlotRef> unused;       // granted behind the chain's end
    Status chain_end = Status::Ok;     // why no later chunk can follow, if none can
    bool lost = false;                 // with the device
  };
  struct Queued {
    StoreJob job;
    EngineMark after;
  };
  struct UnderWay {  // a slot on a device's stream
    std::size_t item = 0;
    Device::Mark mark = 0;
  };
  static constexpr std::size_t kUnderWayMax = 3;

  void check(const StoreJob& job) const;
  template <typename Ready>
  void wait_until(Ready ready);
  void thread_main();
  void warm_until_work(std::unique_lock<std::mutex>* lock);
  void run(Queued* queued);
  Status store(Queued* queued, Batch* batch, JobResult* result);
  Status reserve(const StoreJob& job, Batch* batch);
  Status reserve_once(const StoreJob& job, Batch* batch, bool* moved);
  Status sort_out(const std::vector<Reservation>& reservations, Batch* batch);
  bool copy(const StoreJob& job, Batch* batch);
  bool copy_by_device(Queued* queued, Batch* batch);
  Device::Mark put_on_stream(Queued* queued, std::size_t chunk, std::byte* slot, const std::byte* arena);
  std::uint64_t copy_chunk(const StoreJob& job, std::size_t chunk, kernels::Stores stores, std::byte* slot);
  Status commit(const Batch& batch, JobResult* result);
  void abort(const Batch& batch, bool all);
  void source_read(std::uint64_t job);
  bool stopping() const;

  LeasePort& port_;
  const SlotLayout& layout_;
  TransferGate& gate_;
  Device* const device_;   // nullptr: the host's memory
  kernels::RunList runs_;  // this and the next two: the thread's own
  std::vector<kernels::CopyRun> cut_;
  ArenaWarmer warmer_;
  const std::uint32_t jobs_max_;
  const std::size_t chunks_per_batch_;

  mutable std::mutex mutex_;  // guards what follows; not held while copying or calling the node
  std::condition_variable work_, progress_;
  std::deque<Queued> queue_;
  std::vector<std::uint64_t> reading_;  // jobs whose source is still to be read, the queued ones included
  std::deque<JobResult> finished_;
  std::vector<std::shared_ptr<std::byte>> lost_arenas_;
  Transfer::Stats stats_{};
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace kvcommons
