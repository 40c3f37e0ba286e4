#include "pool.h"

#include <pthread.h>

#include <algorithm>
#include <csignal>

namespace kvcommons::kernels {
namespace {

constexpr std::size_t kCutAlignBytes = 4096;

// The part of `runs` that lies in bytes [begin, end) of all of them, laid end to end.
void copy_part(std::span<const CopyRun> runs, std::size_t begin, std::size_t end, Stores stores) {
  std::vector<CopyRun> part;
  std::size_t at = 0;
  for (const CopyRun& run : runs) {
    const std::size_t from = std::max(begin, at), to = std::min(end, at + run.bytes);
    if (from < to) part.push_back({run.src + (from - at), run.dst + (from - at), to - from});
    at += run.bytes;
    if (at >= end) break;
  }
  copy_runs(part, stores);
}

}  // namespace

WorkerPool::WorkerPool(unsigned helpers) {
  // Signals belong to the threads of whoever embeds this: helpers take none.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  for (unsigned i = 0; i < helpers; ++i) {
    helpers_.emplace_back([this] { helper(); });
    pthread_setname_np(helpers_.back().native_handle(), "kvc-copy");
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  for (auto& thread : helpers_) thread.join();
}

void WorkerPool::take_tasks(Fn fn, void* context, std::size_t count) {
  for (std::size_t i = next_.fetch_add(1); i < count; i = next_.fetch_add(1)) fn(context, i);
}

void WorkerPool::helper() {
  std::unique_lock lock(mutex_);
  for (std::uint64_t seen = 0;;) {
    work_.wait(lock, [&] { return stop_ || round_ != seen; });
    if (stop_) return;
    seen = round_;
    if (count_ == 0) continue;  // woke after that round had ended
    const Fn fn = fn_;
    void* context = context_;
    const std::size_t count = count_;
    ++busy_;
    lock.unlock();
    take_tasks(fn, context, count);
    lock.lock();
    if (--busy_ == 0) idle_.notify_one();
  }
}

void WorkerPool::run_erased(std::size_t count, Fn fn, void* context) {
  if (helpers_.empty() || count < 2) {
    for (std::size_t i = 0; i < count; ++i) fn(context, i);
    return;
  }
  const std::lock_guard run_lock(run_mutex_);
  {
    const std::lock_guard lock(mutex_);
    fn_ = fn, context_ = context, count_ = count;
    next_.store(0);
    ++round_;
  }
  work_.notify_all();
  take_tasks(fn, context, count);
  std::unique_lock lock(mutex_);
  idle_.wait(lock, [&] { return busy_ == 0; });
  count_ = 0;
}

void copy_runs(WorkerPool& pool, std::span<const CopyRun> runs, Stores stores) {
  std::size_t total = 0;
  for (const CopyRun& run : runs) total += run.bytes;
  const std::size_t parts = std::min(pool.threads(), total / kTaskBytesMin);
  if (parts < 2) return copy_runs(runs, stores);
  const auto cut = [&](std::size_t part) {
    return part == parts ? total : total / parts * part / kCutAlignBytes * kCutAlignBytes;
  };
  pool.run(parts, [&](std::size_t part) { copy_part(runs, cut(part), cut(part + 1), stores); });
}

}  // namespace kvcommons::kernels
