#include "eviction/watch.h"

#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <utility>

namespace kvcommons::eviction {
namespace {

constexpr auto kPause = std::chrono::milliseconds(50);
constexpr int kNice = 10;  // engines first

}  // namespace

Watch::Watch(const ShadowConfig& config, bool follow, Policy* policy)
    : follow_(follow), policy_(policy), shadows_(config), thread_([this] { thread_main(); }) {}

Watch::~Watch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  thread_.join();
}

void Watch::push(Job job) {
  bool wake = false;
  {
    const std::lock_guard lock(mutex_);
    if (keys_ + job.chain.size() > kKeysMax) {
      ++dropped_;
      return;
    }
    wake = keys_ < kKeysWoken && keys_ + job.chain.size() >= kKeysWoken;
    keys_ += job.chain.size();
    queue_.push_back(std::move(job));
  }
  if (wake) work_.notify_one();
}

void Watch::asked(std::span<const Key> chain, std::size_t found, std::uint32_t pages) {
  Job job{false, {}, found, pages, {}};
  job.chain.reserve(chain.size());
  for (const Key& key : chain) job.chain.push_back(key.prefix64());
  push(std::move(job));
}

void Watch::stored(const Key& parent, std::span<const Key> keys, std::uint32_t pages, const Hints& hints) {
  Job job{true, {}, 0, pages, hints};
  job.chain.reserve(keys.size() + 1);
  job.chain.push_back(parent.prefix64());
  for (const Key& key : keys) job.chain.push_back(key.prefix64());
  push(std::move(job));
}

void Watch::drain() {
  std::unique_lock lock(mutex_);
  hurry_ = true;
  work_.notify_all();
  idle_.wait(lock, [&] { return queue_.empty() && !busy_; });
  hurry_ = false;
}

Watch::Stats Watch::stats() const {
  const std::lock_guard lock(mutex_);
  return {told_, dropped_};
}

void Watch::run(const Job& job) {
  if (!job.stored) {
    shadows_.asked(job.chain, job.found, job.pages);
  } else {
    shadows_.stored_below(job.chain.front(), std::span(job.chain).subspan(1), job.pages, job.hints);
  }
}

void Watch::thread_main() {
  // On Linux a thread has a priority of its own. What fails here costs no more than others' turns.
  (void)setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNice);
  std::unique_lock lock(mutex_);
  while (!stop_) {
    work_.wait_for(lock, kPause, [&] { return stop_ || hurry_ || keys_ >= kKeysWoken; });
    std::deque<Job> jobs;
    jobs.swap(queue_);
    keys_ = 0;
    busy_ = true;
    lock.unlock();
    for (const Job& job : jobs) run(job);
    if (follow_ && !jobs.empty()) {
      policy_->follow(shadows_.best());
      if (shadows_.best() != Kind::Cost) policy_->set_ageing(shadows_.ageing());
    }
    const ShadowStats now = shadows_.stats();
    lock.lock();
    told_ = now;
    busy_ = false;
    if (queue_.empty()) idle_.notify_all();
    if (hurry_ && queue_.empty()) {
      idle_.notify_all();
      work_.wait_for(lock, kPause, [&] { return stop_ || !hurry_; });
    }
  }
}

}  // namespace kvcommons::eviction
