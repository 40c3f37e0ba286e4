// A store for remote tiers in this process, and a driver of it: as drivers in Python are, with one thread a lane. It
// can be made to hang, refuse, have no room, and rot; several tiers can share it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "core/tiers/remote_tier.h"
#include "tier_contract.h"

namespace kvcommons::testing {

struct SharedObjects {
  std::mutex mutex;
  std::map<std::string, std::vector<std::byte>> objects;
  std::size_t size() {
    const std::lock_guard lock(mutex);
    return objects.size();
  }
};

class RemoteDriver {
 public:
  RemoteDriver(std::shared_ptr<tiers::RemotePort> port, std::shared_ptr<SharedObjects> store)
      : port_(std::move(port)), store_(std::move(store)) {
    for (unsigned lane = 0; lane < port_->lanes(); ++lane) threads_.emplace_back([this, lane] { run(lane); });
  }
  ~RemoteDriver() {
    hang(false);
    stopping_ = true;
    for (std::thread& thread : threads_) thread.join();
  }
  RemoteDriver(const RemoteDriver&) = delete;  // owns its threads

  void hang(bool hung) {
    const std::lock_guard lock(mutex_);
    hung_ = hung;
    changed_.notify_all();
  }
  void refuse(tiers::RemoteOutcome outcome) { refusal_ = outcome; }  // Ok: no refusal
  [[nodiscard]] std::uint64_t jobs() const { return jobs_.load(); }
  [[nodiscard]] std::uint64_t pings() const { return pings_.load(); }

 private:
  void run(unsigned lane) {
    while (!port_->closed() && !stopping_) {
      tiers::RemoteJob job;
      if (!port_->take(lane, 20, &job)) continue;
      ++(job.op == tiers::RemoteOp::Ping ? pings_ : jobs_);
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !hung_; });
      }
      carry_out(job);
    }
  }

  void carry_out(const tiers::RemoteJob& job) {
    using tiers::RemoteOp;
    using tiers::RemoteOutcome;
    const RemoteOutcome refusal = refusal_.load();
    const bool writes = job.op == RemoteOp::Put;
    if (refusal != RemoteOutcome::Ok && (refusal != RemoteOutcome::Full || writes)) {
      return port_->done(job.id, {refusal, {}, {}, 0, "as the test says"});
    }
    std::vector<std::byte> bytes;
    std::vector<std::uint64_t> sizes;
    RemoteOutcome outcome = RemoteOutcome::Ok;
    if (job.op == RemoteOp::Put) {
      bytes.resize(job.bytes);
      if (!port_->object(job.id, bytes.data())) return port_->done(job.id, {RemoteOutcome::Ok, {}, {}, 0, {}});
    }
    {
      const std::lock_guard lock(store_->mutex);
      auto& objects = store_->objects;
      switch (job.op) {
        case RemoteOp::Put: {
          const auto found = objects.find(job.names[0]);
          if (found != objects.end() && found->second.size() == bytes.size()) {
            outcome = RemoteOutcome::Exists;
          } else {
            objects[job.names[0]] = bytes;
          }
          break;
        }
        case RemoteOp::Get: {
          const auto found = objects.find(job.names[0]);
          if (found == objects.end()) outcome = RemoteOutcome::Missing;
          if (found != objects.end()) bytes = found->second;
          break;
        }
        case RemoteOp::Ask:
          for (const std::string& name : job.names) {
            const auto found = objects.find(name);
            sizes.push_back(found == objects.end() ? 0 : found->second.size());
          }
          break;
        case RemoteOp::Remove:
          for (const std::string& name : job.names) objects.erase(name);
          break;
        case RemoteOp::Clear:
          std::erase_if(objects, [&](const auto& one) { return one.first.starts_with(job.names[0]); });
          break;
        case RemoteOp::Ping:
          break;
      }
    }
    port_->done(job.id, {outcome, bytes, sizes, 0, {}});
  }

  std::shared_ptr<tiers::RemotePort> port_;
  std::shared_ptr<SharedObjects> store_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool hung_ = false;
  std::atomic<bool> stopping_{false};
  std::atomic<tiers::RemoteOutcome> refusal_{tiers::RemoteOutcome::Ok};
  std::atomic<std::uint64_t> jobs_{0}, pings_{0};
  std::vector<std::thread> threads_;
};

// A remote tier with its driver, as one tier.
class DrivenRemote final : public Tier {
 public:
  explicit DrivenRemote(const tiers::RemoteConfig& config,
                        std::shared_ptr<SharedObjects> store = std::make_shared<SharedObjects>())
      : objects(std::move(store)), tier(std::make_unique<tiers::RemoteTier>(config)), driver(tier->port(), objects) {}
  ~DrivenRemote() override { tier.reset(); }

  [[nodiscard]] std::string_view name() const noexcept override { return tier->name(); }
  [[nodiscard]] bool shared() const noexcept override { return tier->shared(); }
  bool put(std::vector<PutItem> batch, PutDone done) override { return tier->put(std::move(batch), std::move(done)); }
  bool get(std::vector<GetItem> batch, GetDone done) override { return tier->get(std::move(batch), std::move(done)); }
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) override { tier->find(ids, bytes); }
  bool seek(const Sought& sought) override { return tier->seek(sought); }
  std::size_t ask(std::span<const ShardId> ids) { return tier->ask(ids); }
  bool describe(const ShardId& id, ShardMeta* out) override { return tier->describe(id, out); }
  void touch(std::span<const ShardId> ids) override { tier->touch(ids); }
  std::uint64_t remove(std::span<const ShardId> ids) override { return tier->remove(ids); }
  std::uint64_t clear(const Key* fingerprint) override { return tier->clear(fingerprint); }
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override {
    return tier->inventory(cursor, max);
  }
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override { return tier->drain_events(max, gap); }
  [[nodiscard]] TierHealth health(std::string* why) const override { return tier->health(why); }
  [[nodiscard]] TierStats stats() const override { return tier->stats(); }

  std::shared_ptr<SharedObjects> objects;
  std::unique_ptr<tiers::RemoteTier> tier;
  RemoteDriver driver;  // ends before the tier, which it has no pointer to
};

}  // namespace kvcommons::testing
