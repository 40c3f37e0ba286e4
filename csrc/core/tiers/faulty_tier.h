// Any tier, with faults: seeded ones by chance, and batches that a test holds back until it lets them go.
// What it answers stays true to the contract: a fault is a miss, a failure or a delay, never wrong bytes called Ok.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <utility>

#include "tier.h"
#include "tiers/tier_thread.h"

namespace kvcommons::tiers {

// In a thousand items (busy: batches).
struct FaultRates {
  unsigned put_failed = 0;   // not written
  unsigned put_full = 0;     // not written
  unsigned put_dropped = 0;  // said to be Ok, and forgotten
  unsigned get_failed = 0;   // after the buffer was written with garbage
  unsigned get_corrupt = 0;  // likewise, and removed
  unsigned get_missing = 0;
  unsigned busy = 0;  // the batch is refused
};

class FaultyTier final : public Tier {
 public:
  FaultyTier(std::shared_ptr<Tier> inner, std::uint64_t seed, FaultRates rates = {})
      : inner_(std::move(inner)), random_(seed), rates_(rates), thread_(std::make_unique<TierThread>(1'024)) {}
  ~FaultyTier() override {
    hold(false);
    thread_.reset();
    // What the inner tier still has to say goes through this object.
    while (forwarded_.load() != 0) std::this_thread::yield();
  }

  void set_rates(FaultRates rates) {
    const std::lock_guard lock(mutex_);
    rates_ = rates;
  }
  // While held, batches are taken and nothing of them is begun.
  void hold(bool held) {
    std::deque<TierThread::Job> free;
    {
      const std::lock_guard lock(mutex_);
      held_ = held;
      if (!held) free.swap(waiting_);
    }
    for (auto& job : free) begin(std::move(job));
  }
  // Lets the oldest batch go; false if none waits.
  bool release_one() {
    TierThread::Job job;
    {
      const std::lock_guard lock(mutex_);
      if (waiting_.empty()) return false;
      job = std::move(waiting_.front());
      waiting_.pop_front();
    }
    begin(std::move(job));
    return true;
  }
  [[nodiscard]] std::size_t held_batches() const {
    const std::lock_guard lock(mutex_);
    return waiting_.size();
  }
  [[nodiscard]] std::uint64_t touched() const { return touched_.load(); }  // shards
  void set_health(TierHealth health) { health_.store(health); }

  [[nodiscard]] std::string_view name() const noexcept override { return inner_->name(); }
  [[nodiscard]] bool shared() const noexcept override { return inner_->shared(); }
  bool put(std::vector<PutItem> batch, PutDone done) override {
    return take(
        [this, batch = std::move(batch), done = std::move(done)](bool closing) { put_now(batch, done, closing); });
  }
  bool get(std::vector<GetItem> batch, GetDone done) override {
    return take(
        [this, batch = std::move(batch), done = std::move(done)](bool closing) { get_now(batch, done, closing); });
  }
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) override {
    if (health_.load() == TierHealth::Gone) {
      std::fill(bytes.begin(), bytes.end(), 0);
    } else {
      inner_->find(ids, bytes);
    }
  }
  bool seek(const Sought& sought) override { return inner_->seek(sought); }
  bool spare(const ShardId& id) override { return inner_->spare(id); }
  [[nodiscard]] bool takes_writes() const noexcept override { return inner_->takes_writes(); }
  [[nodiscard]] bool others() const noexcept override { return inner_->others(); }
  bool describe(const ShardId& id, ShardMeta* out) override { return inner_->describe(id, out); }
  void touch(std::span<const ShardId> ids) override {
    touched_.fetch_add(ids.size());
    inner_->touch(ids);
  }
  std::uint64_t remove(std::span<const ShardId> ids) override { return inner_->remove(ids); }
  std::uint64_t clear(const Key* fingerprint) override { return inner_->clear(fingerprint); }
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override {
    return inner_->inventory(cursor, max);
  }
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override { return inner_->drain_events(max, gap); }
  [[nodiscard]] TierHealth health(std::string* why) const override {
    if (health_.load() == TierHealth::Serving) return inner_->health(why);
    *why = "a fault was injected";
    return health_.load();
  }
  [[nodiscard]] TierStats stats() const override { return inner_->stats(); }

 private:
  bool take(TierThread::Job job) {
    {
      const std::lock_guard lock(mutex_);
      if (chance(rates_.busy)) return false;
      if (held_) {
        waiting_.push_back(std::move(job));
        return true;
      }
    }
    return thread_->post(std::move(job));
  }
  void begin(TierThread::Job job) {
    while (!thread_->post(job)) std::this_thread::yield();  // it was taken: it is never refused now
  }
  bool chance(unsigned in_a_thousand) { return random_() % 1'000 < in_a_thousand; }

  TierStatus put_fault() {
    const std::lock_guard lock(mutex_);
    if (health_.load() != TierHealth::Serving || chance(rates_.put_failed)) return TierStatus::Failed;
    if (chance(rates_.put_full)) return TierStatus::Full;
    return chance(rates_.put_dropped) ? TierStatus::Missing : TierStatus::Ok;
  }
  TierStatus get_fault() {
    const std::lock_guard lock(mutex_);
    if (health_.load() == TierHealth::Gone || chance(rates_.get_failed)) return TierStatus::Failed;
    if (chance(rates_.get_corrupt)) return TierStatus::Corrupt;
    return chance(rates_.get_missing) ? TierStatus::Missing : TierStatus::Ok;
  }

  void put_now(const std::vector<PutItem>& batch, const PutDone& done, bool closing) {
    std::vector<TierStatus> statuses(batch.size(), TierStatus::Closed);
    std::vector<PutItem> good;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < batch.size() && !closing; ++i) {
      statuses[i] = put_fault();
      if (statuses[i] == TierStatus::Ok) {
        good.push_back(batch[i]);
        places.push_back(i);
      } else if (statuses[i] == TierStatus::Missing) {
        statuses[i] = TierStatus::Ok;  // forgotten at once
      }
    }
    pass_on(
        good, places, std::move(statuses), TierStatus::Busy, done,
        [this](std::vector<PutItem> items, PutDone taker) { return inner_->put(std::move(items), std::move(taker)); });
  }

  void get_now(const std::vector<GetItem>& batch, const GetDone& done, bool closing) {
    std::vector<GetResult> results(batch.size(), GetResult{TierStatus::Closed, {}});
    std::vector<GetItem> good;
    std::vector<std::size_t> places;
    for (std::size_t i = 0; i < batch.size() && !closing; ++i) {
      results[i].status = get_fault();
      if (results[i].status == TierStatus::Ok) {
        good.push_back(batch[i]);
        places.push_back(i);
      } else if (results[i].status != TierStatus::Missing) {
        std::memset(batch[i].data, 0xa5, batch[i].room_bytes);
        if (results[i].status == TierStatus::Corrupt) inner_->remove(std::span(&batch[i].id, 1));
      }
    }
    pass_on(
        good, places, std::move(results), GetResult{TierStatus::Busy, {}}, done,
        [this](std::vector<GetItem> items, GetDone taker) { return inner_->get(std::move(items), std::move(taker)); });
  }

  // What had no fault goes to the inner tier; its answers take their places among the others.
  template <typename Item, typename Result, typename Done, typename Forward>
  void pass_on(const std::vector<Item>& good, const std::vector<std::size_t>& places, std::vector<Result> results,
               const Result& busy, const Done& done, Forward forward) {
    if (good.empty()) return done(results);
    auto all = std::make_shared<std::vector<Result>>(std::move(results));
    ++forwarded_;
    const bool taken = forward(good, [this, all, places, done](std::span<const Result> got) {
      for (std::size_t i = 0; i < places.size(); ++i) (*all)[places[i]] = got[i];
      done(*all);
      --forwarded_;
    });
    if (taken) return;
    --forwarded_;
    for (const std::size_t i : places) (*all)[i] = busy;
    done(*all);
  }

  std::shared_ptr<Tier> inner_;
  mutable std::mutex mutex_;
  std::mt19937_64 random_;
  FaultRates rates_;
  bool held_ = false;
  std::deque<TierThread::Job> waiting_;
  std::atomic<TierHealth> health_{TierHealth::Serving};
  std::atomic<std::size_t> forwarded_{0};
  std::atomic<std::uint64_t> touched_{0};
  std::unique_ptr<TierThread> thread_;
};

}  // namespace kvcommons::tiers
