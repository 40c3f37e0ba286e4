// The requests that a node makes of a peer.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "peers/peer_job.h"
#include "peers/peer_wire.h"

namespace kvcommons::peers {

// A batch of a caller, cut into several jobs: whoever ends its last item answers it.
template <typename Result>
struct Batch {
  Batch(std::size_t items, const Result& none, std::function<void(std::span<const Result>)> taker)
      : results(items, none), done(std::move(taker)) {}
  std::vector<Result> results;
  std::atomic<std::size_t> left{0};
  std::function<void(std::span<const Result>)> done;
  std::function<void()> on_end;
  void ended(std::size_t items) {
    if (left.fetch_sub(items, std::memory_order_acq_rel) != items) return;
    if (on_end) on_end();
    done(results);
  }
};
using Gets = std::shared_ptr<Batch<GetResult>>;
using Puts = std::shared_ptr<Batch<TierStatus>>;

struct FetchItem {
  GetItem wanted;
  std::uint32_t generation = 0;
  std::size_t place = 0;  // in the batch
};

// Shards of one fingerprint, straight into the callers' buffers, each verified before it is called Ok.
class FetchJob final : public PeerJob {
 public:
  using Ended = std::function<void(const FetchItem&, const GetResult&)>;
  FetchJob(std::vector<FetchItem> items, std::uint32_t epoch, Gets gets, Ended on_ended)
      : items_(std::move(items)), epoch_(epoch), gets_(std::move(gets)), on_ended_(std::move(on_ended)) {}
  bool run(Stream& stream, Deadline deadline) override;
  [[nodiscard]] bool untouched() const noexcept override { return next_ == 0; }
  void end(TierStatus status) override;

 private:
  [[nodiscard]] bool take(Stream& stream, Deadline deadline, const FetchItem& item, GetResult* result);
  void settle(GetResult result);

  std::vector<FetchItem> items_;
  std::uint32_t epoch_;
  Gets gets_;
  Ended on_ended_;
  std::size_t next_ = 0;
};

class LocateJob final : public PeerJob {
 public:
  // Null: it could not be asked, or what it said is void.
  using Ended = std::function<void(const wire::LocatedReply*)>;
  LocateJob(wire::LocateRequest request, Ended on_ended)
      : request_(std::move(request)), on_ended_(std::move(on_ended)) {}
  bool run(Stream& stream, Deadline deadline) override;
  [[nodiscard]] bool untouched() const noexcept override { return !over_; }
  void end(TierStatus status) override;

 private:
  wire::LocateRequest request_;
  Ended on_ended_;
  bool over_ = false;
};

struct PushItem {
  PutItem given;
  std::size_t place = 0;
};

class PushJob final : public PeerJob {
 public:
  using Ended = std::function<TierStatus(const PushItem&, wire::Answer)>;
  PushJob(std::vector<PushItem> items, std::vector<ShardSpec> layout, Puts puts, Ended on_ended)
      : items_(std::move(items)), layout_(std::move(layout)), puts_(std::move(puts)), on_ended_(std::move(on_ended)) {}
  bool run(Stream& stream, Deadline deadline) override;
  [[nodiscard]] bool untouched() const noexcept override { return next_ == 0; }
  void end(TierStatus status) override;

 private:
  std::vector<PushItem> items_;
  std::vector<ShardSpec> layout_;
  Puts puts_;
  Ended on_ended_;
  std::size_t next_ = 0;
};

// Copies that are no longer wanted; nobody waits for the answer.
class RemoveJob final : public PeerJob {
 public:
  explicit RemoveJob(std::vector<ShardId> ids) : ids_(std::move(ids)) {}
  bool run(Stream& stream, Deadline deadline) override;
  [[nodiscard]] bool untouched() const noexcept override { return true; }
  void end(TierStatus) override {}

 private:
  std::vector<ShardId> ids_;
};

}  // namespace kvcommons::peers
