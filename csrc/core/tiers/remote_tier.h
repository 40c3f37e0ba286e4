// A store that a node shares with others (Redis or Valkey values, S3 objects), as a tier. It knows no store: what it
// wants done is queued for a driver (remote_port.h).
//
// What this node puts there it knows, and keeps within capacity_bytes, first in, first out, by removing its own oldest.
// What others have put there it asks for (ask()) and remembers for a while. Of what is not its own it removes nothing
// but what is damaged or past its time; clear() removes all of a fingerprint, whoever put it there. What a former life
// of the node put there counts as another's and ends by its ttl.
//
// A store that is away, slow or gone costs one time-out: from then on nothing is asked of it, everything that waits is
// answered at once, and it is tried again after a while that doubles. What was removed meanwhile is removed when it is
// back.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "tier.h"
#include "tiers/remote_port.h"

namespace kvcommons::tiers {

struct RemoteConfig {
  std::string name = "remote";
  std::string prefix;                            // all objects' names begin with it
  std::uint64_t capacity_bytes = 0;              // of what this node puts there in one life, headers included
  std::uint64_t ttl_ms = 86'400'000;             // an object is forgotten this long after it was put
  std::uint32_t time_out_ms = 1'000;             // of one read or question, waiting included; of one write
  std::uint32_t lanes = 4;                       // jobs at one time
  std::uint64_t queue_bytes_max = 256ull << 20;  // of puts, and of gets
  std::size_t known_shards_max = 1u << 20;       // that are remembered, at about 400 bytes each
  std::size_t asked_shards_max = 4'096;          // at one time
  std::size_t ask_keys_max = 256;                // of one question
  std::uint32_t ask_wait_ms = 50;                // a lookup waits so long for what is being asked
  std::uint32_t present_ms = 60'000;             // another's object is believed to be there for so long
  std::uint32_t absent_ms = 2'000;               // and one that is not there to be missing
  std::uint32_t full_ms = 5'000;                 // without writes after the store had no room
  std::uint32_t retry_ms_min = 1'000, retry_ms_max = 30'000;
  std::uint32_t failures_max = 3;  // refusals in a row; one time-out is enough
  std::uint32_t clear_ms_max = 60'000;
  std::size_t events_max = 65'536;
  std::function<std::uint64_t()> now_ms, unix_ms;  // monotonic, and since 1970; injected by tests
};

class RemoteTier final : public Tier {
 public:
  // Throws std::invalid_argument: field, value, remedy.
  explicit RemoteTier(RemoteConfig config);
  ~RemoteTier() override;

  // For the driver; outlives the tier, and is closed then.
  [[nodiscard]] std::shared_ptr<RemotePort> port() const;

  [[nodiscard]] std::string_view name() const noexcept override;
  [[nodiscard]] bool shared() const noexcept override { return true; }
  bool put(std::vector<PutItem> batch, PutDone done) override;
  bool get(std::vector<GetItem> batch, GetDone done) override;
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> payload_bytes) override;
  bool seek(const Sought& sought) override;
  // Begins to ask for what of these is unknown. Returns up to which all are here or being asked for, 0 where nothing is
  // being asked for (any more).
  std::size_t ask(std::span<const ShardId> ids);
  bool describe(const ShardId& id, ShardMeta* out) override;
  void touch(std::span<const ShardId> ids) override;
  std::uint64_t remove(std::span<const ShardId> ids) override;
  std::uint64_t clear(const Key* fingerprint) override;  // what this node knows of; the store's rest follows by itself
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override;
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override;
  [[nodiscard]] TierHealth health(std::string* why) const override;
  [[nodiscard]] TierStats stats() const override;

 private:
  class Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace kvcommons::tiers
