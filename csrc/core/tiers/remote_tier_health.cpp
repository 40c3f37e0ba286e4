// The remote tier's own thread: answers, time-outs, and a store that is away.
#include <algorithm>
#include <chrono>

#include "tiers/remote_tier_impl.h"

namespace kvcommons::tiers {
namespace {

constexpr std::chrono::milliseconds kTick{10}, kIdle{1'000};

}  // namespace

void RemoteTier::Impl::start(std::shared_ptr<Impl> self) {
  // Drivers may keep the port longer than the tier lives; the thread ends with the tier.
  thread_ = std::thread([this, kept = std::move(self)] { run(); });
}

void RemoteTier::Impl::close() {
  {
    std::unique_lock lock(mutex_);
    closing_ = true;
    wanted_.notify_all();
    // What a driver copies from or to right now is the caller's memory.
    changed_.wait(lock, [this] {
      const auto copying = [](const auto& job) { return job.second.copying; };
      return claimed_ == 0 && std::none_of(jobs_.begin(), jobs_.end(), copying);
    });
    std::vector<std::uint64_t> all;
    for (const auto& [id, pending] : jobs_) all.push_back(id);
    give_up(std::move(all), RemoteOutcome::Failed);
    over_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

void RemoteTier::Impl::run() {
  for (std::unique_lock lock(mutex_);;) {
    while (!answers_.empty()) {
      const std::function<void()> one = std::move(answers_.front());
      answers_.pop_front();
      lock.unlock();
      one();
      lock.lock();
    }
    if (over_ && answers_.empty()) return;
    if (!closing_) {
      expire();
      try_again();
    }
    if (!answers_.empty()) continue;
    changed_.wait_for(lock, jobs_.empty() && !open_ && fences_.empty() && owed_.empty() ? kIdle : kTick);
  }
}

// In the name of their store: each is answered as if it had said this.
void RemoteTier::Impl::give_up(std::vector<std::uint64_t> ids, RemoteOutcome outcome) {
  for (const std::uint64_t id : ids) {
    const auto found = jobs_.find(id);
    Pending pending = std::move(found->second);
    jobs_.erase(found);
    std::erase(reads_, id);
    for (auto& lane : writes_) std::erase(lane, id);
    settle(pending, {outcome, {}, {}, 0, {}});
  }
}

// What every answer says of the store as a whole.
void RemoteTier::Impl::heard(const Pending& pending, const RemoteAnswer& said) {
  if (closing_) return;
  switch (said.outcome) {
    case RemoteOutcome::Unreachable:
      return open_breaker(said.why);
    case RemoteOutcome::Failed:
      if (pending.job.op == RemoteOp::Ping || ++failures_ >= config_.failures_max) open_breaker(said.why);
      return;
    case RemoteOutcome::Full:
      full_until_ms_ = now_ms() + config_.full_ms;
      why_ = said.why;
      [[fallthrough]];
    default:
      failures_ = 0;
      if (open_ && pending.job.op == RemoteOp::Ping) close_breaker();
  }
}

void RemoteTier::Impl::open_breaker(const std::string& why) {
  why_ = why.empty() ? "it does not answer" : why;
  retry_ms_ = open_ ? std::min<std::uint64_t>(2 * retry_ms_, config_.retry_ms_max) : config_.retry_ms_min;
  retry_at_ms_ = now_ms() + retry_ms_;
  open_ = true;
  failures_ = 0;
  // What nobody has begun waits for nothing now; what was begun has its time-out.
  std::vector<std::uint64_t> waiting;
  for (const auto& [id, pending] : jobs_) {
    if (!pending.taken && !pending.copying) waiting.push_back(id);
  }
  give_up(std::move(waiting), RemoteOutcome::Unreachable);
}

void RemoteTier::Impl::close_breaker() {
  open_ = false;
  why_.clear();
}

void RemoteTier::Impl::expire() {
  const std::uint64_t now = now_ms();
  while (known_.oldest_own() != nullptr && known_.oldest_own()->until_ms <= now) {
    const ShardId id = known_.oldest_own()->meta.id;
    ++stats_.evicted;
    drop(id);
  }
  std::vector<std::uint64_t> late;
  for (const auto& [id, pending] : jobs_) {
    if (pending.deadline_ms <= now && !pending.copying) late.push_back(id);
  }
  if (late.empty()) return;
  const std::uint32_t after_ms = config_.time_out_ms;
  give_up(std::move(late), RemoteOutcome::Unreachable);
  open_breaker("no answer within " + std::to_string(after_ms) + " ms");
}

// The store is asked whether it is back, and then is owed what could not be done meanwhile.
void RemoteTier::Impl::try_again() {
  if (open_) {
    if (ping_ != 0 || now_ms() < retry_at_ms_) return;
    ping_ = next_job_++;
    Pending& pending = jobs_[ping_];
    pending.job.id = ping_;
    pending.job.op = RemoteOp::Ping;
    pending.job.time_out_ms = config_.time_out_ms;
    pending.deadline_ms = now_ms() + config_.time_out_ms;
    wanted_.notify_all();
    return;
  }
  for (Fence& fence : fences_) {
    if (fence.job != 0) continue;
    (void)clear_known(fence.fingerprint);  // put between the two attempts
    queue_clear(&fence);
  }
  std::erase_if(owed_, [&](const ShardId& id) {  // put again meanwhile
    const Entry* entry = known_.find(id, now_ms());
    return entry != nullptr && entry->state != State::Leaving;
  });
  if (!owed_.empty()) queue_removal(std::exchange(owed_, {}));
}

TierHealth RemoteTier::Impl::health(std::string* why) const {
  const std::lock_guard lock(mutex_);
  why->clear();
  if (open_) {
    const std::uint64_t now = now_ms();
    const std::uint64_t in_ms = retry_at_ms_ > now ? retry_at_ms_ - now : 0;
    *why = why_ + "; it is asked again in " + std::to_string((in_ms + 999) / 1'000) + " s";
    return TierHealth::Gone;
  }
  if (full_until_ms_ > now_ms()) {
    *why = "the store has no room: " + why_;
    return TierHealth::Degraded;
  }
  return TierHealth::Serving;
}

}  // namespace kvcommons::tiers
