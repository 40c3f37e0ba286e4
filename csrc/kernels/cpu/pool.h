// A few threads that stay, for copies large enough to share.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "copy.h"

namespace kvcommons::kernels {

// One run() at a time, the caller takes part. A pool of no helpers runs everything on the caller's thread.
class WorkerPool {
 public:
  explicit WorkerPool(unsigned helpers);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;  // owns its threads

  [[nodiscard]] std::size_t threads() const noexcept { return helpers_.size() + 1; }

  // Calls task(0) .. task(count - 1), each once, on some thread; returns when all have returned. Tasks must not throw.
  template <typename Task>
  void run(std::size_t count, Task&& task) {
    run_erased(count, [](void* context, std::size_t index) { (*static_cast<Task*>(context))(index); }, &task);
  }

 private:
  using Fn = void (*)(void* context, std::size_t index);
  void run_erased(std::size_t count, Fn fn, void* context);
  void take_tasks(Fn fn, void* context, std::size_t count);
  void helper();

  std::mutex run_mutex_;  // held through a run
  std::mutex mutex_;      // guards what follows
  std::condition_variable work_, idle_;
  Fn fn_ = nullptr;
  void* context_ = nullptr;
  std::size_t count_ = 0;
  std::uint64_t round_ = 0;
  unsigned busy_ = 0;  // helpers that may still touch this round's task
  bool stop_ = false;
  std::atomic<std::size_t> next_{0};
  std::vector<std::thread> helpers_;
};

// copy_runs by the whole pool, kTaskBytesMin or more a task; long runs are cut.
void copy_runs(WorkerPool& pool, std::span<const CopyRun> runs, Stores stores);

}  // namespace kvcommons::kernels
