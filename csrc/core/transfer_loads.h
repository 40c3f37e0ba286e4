// The load half of a transfer. Life of a load: submit() begins the lease and checks every slot and block; the thread
// copies piece by piece the layer that is furthest behind among all loads, until each has all its layers; then the copy
// is told to have finished and the lease is released. Whoever waits for a layer takes pieces of it too, instead of
// sleeping: the forward never waits for a thread that has no processor. Nothing can fail once the lease has begun: the
// arena stays mapped.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/cpu/pool.h"
#include "lease_port.h"
#include "transfer.h"
#include "transfer_gate.h"
#include "transfer_layout.h"

namespace kvcommons {

class LoadQueue {
 public:
  LoadQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, unsigned copy_threads,
            std::uint32_t jobs_max);
  ~LoadQueue();
  LoadQueue(const LoadQueue&) = delete;  // owns its thread

  Status submit(LoadJob job);
  Status wait_layer(std::uint32_t layer, std::uint32_t ms_max);
  Status wait_load(std::uint64_t job, std::uint32_t ms_max);
  std::vector<JobResult> take_finished();
  void add_stats(Transfer::Stats* stats) const;

 private:
  struct Load {
    LoadJob job;
    LeasePort::Attachment attached;
    std::vector<SlotRef> slots;
    std::uint64_t sequence = 0;
    std::uint32_t next_layer = 0;          // the next piece to be taken begins here,
    std::size_t next_block = 0;            // at this one of the job's blocks
    std::uint32_t whole_layers = 0;        // layers before this one are copied
    std::vector<std::size_t> blocks_left;  // of each layer: not copied yet
    std::uint64_t bytes = 0;
  };
  // Some blocks of one layer of one load, taken by one thread. The load lives until all its pieces are finished.
  struct Piece {
    Load* load = nullptr;
    std::uint32_t layer = 0;
    std::size_t first = 0, count = 0;
  };
  static constexpr std::uint64_t kPieceBytes = std::uint64_t{2} << 20;

  Status begin(Load* load);
  Status check(const Load& load) const;
  bool admit();
  void thread_main();
  // The next three with mutex_ held. take: of loads up to `last` and layers up to `layer`; false if no piece is left.
  bool take(std::uint64_t last, std::uint32_t layer, std::uint64_t bytes, Piece* piece);
  void finish(const Piece& piece, std::uint64_t ns);
  [[nodiscard]] bool leases_due() const;
  void copy(const Piece& piece, kernels::RunList* runs, kernels::WorkerPool* pool) const;  // by this thread, or a pool
  void end(Load* load, Status status);
  void give_back(std::vector<LeaseId> leases);

  LeasePort& port_;
  const SlotLayout& layout_;
  TransferGate& gate_;
  kernels::WorkerPool pool_;
  kernels::RunList runs_;  // the thread's own
  const std::uint32_t jobs_max_;

  mutable std::mutex mutex_;  // guards what follows; not held while copying or calling the node
  std::condition_variable work_, progress_;
  std::vector<std::unique_ptr<Load>> active_;
  std::uint32_t admitted_ = 0;  // active, and those whose lease is being begun
  std::uint64_t sequence_ = 0;
  std::vector<LeaseId> ended_;      // copied: the node is to be told
  std::deque<JobResult> finished_;  // until taken
  std::deque<JobResult> recent_;    // for wait_load
  Transfer::Stats stats_{};
  bool stop_ = false;
  std::atomic<std::uint32_t> running_{0};  // active_.size(), for a wait_layer that has nothing to wait for
  std::thread thread_;
};

}  // namespace kvcommons
