// Inside of the remote tier. One mutex guards all; it is held over no copy, no checksum and no callback.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#include "tiers/remote_known.h"
#include "tiers/remote_tier.h"

namespace kvcommons::tiers {

template <typename Result, typename Done>
struct RemoteBatch {
  std::vector<Result> results;
  std::size_t left = 0;
  Done done;
};

class RemoteTier::Impl final : public RemotePort {
 public:
  explicit Impl(RemoteConfig config);
  void start(std::shared_ptr<Impl> self);
  void close();

  // RemotePort: remote_tier_jobs.cpp
  [[nodiscard]] std::string_view name() const noexcept override { return config_.name; }
  [[nodiscard]] unsigned lanes() const noexcept override { return config_.lanes; }
  [[nodiscard]] bool closed() const override;
  bool take(unsigned lane, std::uint32_t wait_ms, RemoteJob* job) override;
  bool object(std::uint64_t id, std::byte* out) override;
  void done(std::uint64_t id, const RemoteAnswer& answer) override;

  // remote_tier.cpp
  bool put(std::vector<PutItem> batch, PutDone done);
  bool get(std::vector<GetItem> batch, GetDone done);
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes);
  std::size_t ask(std::span<const ShardId> ids);
  bool describe(const ShardId& id, ShardMeta* out);
  std::uint64_t remove(std::span<const ShardId> ids);
  std::uint64_t clear(const Key* fingerprint);
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) const;
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap);
  TierHealth health(std::string* why) const;
  TierStats stats() const;

 private:
  using State = RemoteKnown::State;
  using Entry = RemoteKnown::Entry;
  using PutBatch = std::shared_ptr<RemoteBatch<TierStatus, PutDone>>;
  using GetBatch = std::shared_ptr<RemoteBatch<GetResult, GetDone>>;

  // A job from when it is queued until it is answered or given up.
  struct Pending {
    RemoteJob job;
    std::uint64_t deadline_ms = 0;
    bool taken = false;
    bool copying = false;  // its buffer is being read: it cannot be given up now
    ShardMeta meta;        // Put
    const std::byte* data = nullptr;
    std::uint64_t number = 0;                            // Put: of its entry
    std::vector<std::pair<PutBatch, std::size_t>> puts;  // who waits for it
    GetItem item;                                        // Get
    std::pair<GetBatch, std::size_t> get;
    std::vector<ShardId> ids;        // Get, Ask, Remove
    std::optional<Key> fingerprint;  // Clear; none: all
    std::size_t arrived_lanes = 0;   // Clear: that have done what was before it
  };
  // A fingerprint (none: all) that was cleared and may still be in the store: as if nothing of it were there.
  struct Fence {
    std::optional<Key> fingerprint;
    std::uint64_t job = 0;  // 0: to be tried again
  };

  // remote_tier.cpp
  TierStatus begin_put(const PutItem& item, const PutBatch& batch, std::size_t at);
  bool make_room(std::uint64_t bytes);
  void drop(const ShardId& id);
  void tell(TierEvent::Kind kind, const ShardMeta& meta);
  void tell_dropped(const std::vector<ShardMeta>& metas);
  Entry& know(const ShardMeta& meta, State state, bool own, std::uint64_t until_ms);
  Entry* here(const ShardId& id);
  [[nodiscard]] bool fenced(const Key& fingerprint) const;
  [[nodiscard]] unsigned lane_of(const ShardId& id) const;
  Pending& queue(RemoteOp op, std::optional<unsigned> lane);
  void queue_removal(std::vector<ShardId> ids);
  std::uint64_t clear_known(const std::optional<Key>& fingerprint);
  void queue_clear(Fence* fence);
  void queue_questions(const std::vector<ShardId>& ids);

  // remote_tier_jobs.cpp
  std::uint64_t next_of(unsigned lane);
  std::uint64_t next_of_lane(unsigned lane);
  void answer(const PutBatch& batch, std::size_t at, TierStatus status);
  void answer(const GetBatch& batch, std::size_t at, GetResult result);
  void settle(Pending& pending, const RemoteAnswer& said);
  void settle_put(Pending& pending, const RemoteAnswer& said);
  void settle_get(Pending& pending, GetResult result);
  void settle_asked(const Pending& pending, const RemoteAnswer& said);
  void settle_removed(const Pending& pending, bool ok);
  void settle_cleared(const Pending& pending, const RemoteAnswer& said);
  GetResult judge(const Pending& pending, const RemoteAnswer& said);

  // remote_tier_health.cpp
  void run();
  void heard(const Pending& pending, const RemoteAnswer& said);
  void open_breaker(const std::string& why);
  void close_breaker();
  void give_up(std::vector<std::uint64_t> ids, RemoteOutcome outcome);
  void expire();
  void try_again();

  [[nodiscard]] std::uint64_t now_ms() const { return config_.now_ms(); }

  RemoteConfig config_;
  mutable std::mutex mutex_;
  std::condition_variable wanted_;   // drivers: there is a job
  std::condition_variable changed_;  // the tier's thread: there is an answer, or something to wait for
  RemoteKnown known_;
  std::unordered_map<std::uint64_t, Pending> jobs_;
  std::deque<std::uint64_t> reads_;                // any lane's, before its own
  std::vector<std::deque<std::uint64_t>> writes_;  // of each lane, in order
  std::vector<std::uint64_t> at_gate_;             // of each lane: the clear that it waits for
  std::uint64_t next_job_ = 1, ping_ = 0;
  std::uint64_t put_bytes_ = 0, get_bytes_ = 0, reserved_bytes_ = 0;  // that wait or are under way
  std::size_t asked_ = 0, claimed_ = 0;                               // shards; jobs whose answer is being judged
  std::deque<std::function<void()>> answers_;
  std::vector<Fence> fences_;
  std::vector<ShardId> owed_;  // removals for when the store is back
  std::deque<TierEvent> events_;
  bool gap_ = false, closing_ = false, over_ = false;
  bool open_ = false;  // the breaker: nothing is asked of the store
  std::uint64_t retry_at_ms_ = 0, retry_ms_ = 0, full_until_ms_ = 0;
  std::uint32_t failures_ = 0;
  std::string why_;
  TierStats stats_;
  std::thread thread_;
};

}  // namespace kvcommons::tiers
