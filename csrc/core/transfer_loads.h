// The load half of a transfer. Life of a load: submit() begins the lease and checks every slot and block; the thread
// copies piece by piece the layer that is furthest behind among all loads, until each has all its layers; then the copy
// is told to have finished and the lease is released. Whoever waits for a layer takes pieces of it too, instead of
// sleeping: the forward never waits for a thread that has no processor. Nothing of the host's can fail once the lease
// has begun: the arena stays mapped.
//
// A load that is wanted as a whole comes when no other has anything left, the oldest first: layer by layer, all that
// are under way would end when the last one does.
//
// On a device the thread keeps two pieces on the stream and takes their ends; a waiter only waits. A piece that fails
// ends its load when no other piece of it is under way; a device that is lost keeps the lease and the arena's mapping
// until this process ends, for nobody knows what it still reads.
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
#include "transfer_thread.h"

namespace kvcommons {

class LoadQueue {
 public:
  LoadQueue(LeasePort& port, const SlotLayout& layout, TransferGate& gate, Device* device, unsigned copy_threads,
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
    EngineMark after;             // the first piece waits for it
    std::uint32_t under_way = 0;  // pieces taken and not finished
    bool failed = false, lost = false;
  };
  // Some blocks of one layer of one load, taken by one thread. The load lives until all its pieces are finished.
  struct Piece {
    Load* load = nullptr;
    std::uint32_t layer = 0;
    std::size_t first = 0, count = 0;
    Device::Mark mark = 0;  // on a device
  };
  static constexpr std::uint64_t kPieceBytes = std::uint64_t{2} << 20;
  static constexpr std::uint64_t kDevicePieceBytes = std::uint64_t{16} << 20;  // against the time of a call
  static constexpr std::size_t kUnderWayMax = 2;

  Status begin(Load* load);
  Status check(const Load& load) const;
  bool admit();
  void thread_main();
  // The next three with mutex_ held. take: of loads up to `last` and layers up to `layer`; false if no piece is left.
  bool take(std::uint64_t last, std::uint32_t layer, std::uint64_t bytes, Piece* piece);
  void finish(const Piece& piece, std::uint64_t ns, Device::State state);
  [[nodiscard]] bool leases_due() const;
  // Calls copy(runs) with `max` of them at a time.
  template <typename Copy>
  void each_runs(const Piece& piece, kernels::RunList* runs, std::size_t max, Copy copy) const;
  void copy(const Piece& piece, kernels::RunList* runs, kernels::WorkerPool* pool) const;  // by this thread, or a pool
  // The thread's next step, with mutex_ held but for what takes long; false: there is none.
  bool step(std::unique_lock<std::mutex>* lock);
  bool step_on_device(std::unique_lock<std::mutex>* lock);
  bool put_on_stream(Piece* piece);
  void end(Load* load, Status status);
  void give_back(std::vector<LeaseId> leases);

  LeasePort& port_;
  const SlotLayout& layout_;
  TransferGate& gate_;
  kernels::WorkerPool pool_;
  Device* const device_;   // nullptr: the host's memory
  kernels::RunList runs_;  // this and the next three: the thread's own
  std::vector<kernels::CopyRun> cut_;
  std::deque<Piece> under_way_;  // on the stream, in its order
  Stopwatch ended_at_;           // when the stream's last piece did
  const std::uint32_t jobs_max_;

  mutable std::mutex mutex_;  // guards what follows; not held while copying or calling the node
  std::condition_variable work_, progress_;
  std::vector<std::unique_ptr<Load>> active_;
  std::uint32_t admitted_ = 0;  // active, and those whose lease is being begun
  std::uint64_t sequence_ = 0;
  std::vector<LeaseId> ended_;      // copied: the node is to be told
  std::deque<JobResult> finished_;  // until taken
  std::deque<JobResult> recent_;    // for wait_load
  std::vector<std::shared_ptr<std::byte>> lost_arenas_;
  Transfer::Stats stats_{};
  bool stop_ = false;
  std::atomic<std::uint32_t> running_{0};  // active_.size(), for a wait_layer that has nothing to wait for
  std::thread thread_;
};

template <typename Copy>
void LoadQueue::each_runs(const Piece& piece, kernels::RunList* runs, std::size_t max, Copy copy) const {
  const Load& load = *piece.load;
  const std::size_t end = piece.first + piece.count;
  for (std::size_t i = piece.first; i < end; ++i) {
    const std::uint64_t block = load.job.first_block + i;
    const SlotRef& slot = load.slots[block / layout_.blocks_per_chunk()];
    const auto index = static_cast<std::uint32_t>(block % layout_.blocks_per_chunk());
    layout_.scatter(piece.layer, load.job.block_ids[i], load.attached.arena.get() + slot.offset_bytes, index, runs);
    if (runs->runs().size() < max && i + 1 < end) continue;
    copy(runs->runs());
    runs->clear();
  }
}

}  // namespace kvcommons
