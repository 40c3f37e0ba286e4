// Peers of the simulation: a real server and real links over loopback, and a node that lies to whoever asks it.
#pragma once

#include <mutex>
#include <random>

#include "core/peers/peer_server.h"
#include "core/peers/peer_tier.h"
#include "core/peers/store_source.h"
#include "tier_contract.h"

namespace kvcommons::testing::simulation {

// In a thousand shards.
struct LieRates {
  unsigned missing = 0;  // it was said to be here
  unsigned gone = 0;     // another life of its place is
  unsigned busy = 0;
  unsigned garbled = 0;  // a bit is another one than the checksum was made of
};

// What a node's memory holds, told with lies.
class LyingSource final : public peers::PeerSource {
 public:
  LyingSource(std::byte* arena, Store* store, std::uint64_t seed) : random_(seed), inner_({arena, {}}, store) {}

  void set(LieRates rates) {
    const std::lock_guard lock(mutex_);
    rates_ = rates;
  }
  void locate(const peers::wire::LocateRequest& request, peers::wire::LocatedReply* out) override {
    inner_.locate(request, out);
  }
  peers::wire::Answer lend(const Key& fingerprint, const peers::wire::Item& item, peers::Lent* out) override {
    using peers::wire::Answer;
    bool garbled = false;
    std::uint64_t bit = 0;
    {
      const std::lock_guard lock(mutex_);
      if (chance(rates_.missing)) return Answer::Missing;
      if (chance(rates_.gone)) return Answer::Gone;
      if (chance(rates_.busy)) return Answer::Busy;
      garbled = chance(rates_.garbled);
      bit = random_();
    }
    const Answer answer = inner_.lend(fingerprint, item, out);
    if (answer != Answer::Ok || !garbled) return answer;
    const auto copy = std::make_shared<Aligned>(out->meta.payload_bytes);
    std::memcpy(copy->data(), out->data, out->meta.payload_bytes);
    copy->data()[bit / 8 % out->meta.payload_bytes] ^= static_cast<std::byte>(1u << bit % 8);
    out->data = copy->data();
    out->hold = copy;
    return answer;
  }
  peers::wire::Answer take(const peers::wire::ShardHead& shard, peers::Room* out) override {
    return inner_.take(shard, out);
  }
  std::uint64_t remove(const peers::wire::RemoveRequest& request) override { return inner_.remove(request); }

 private:
  bool chance(unsigned in_a_thousand) { return random_() % 1'000 < in_a_thousand; }

  std::mutex mutex_;
  std::mt19937_64 random_;
  LieRates rates_;
  peers::StoreSource inner_;
};

// A node's end of the pool: what it answers others, and what it asks them.
class SimPeer {
 public:
  SimPeer(std::byte* arena, Store* store, std::uint64_t seed, std::uint32_t epoch,
          const std::function<std::uint64_t()>& now_ms)
      : epoch_(epoch), source(arena, store, seed) {
    server_config_.secret = tier_key(0x5ec7);
    appear();
    peers::PeerTierConfig config;
    config.secret = server_config_.secret;
    config.sockets_per_peer = 1;
    config.connect_ms_max = config.fetch_ms_max = 20'000;  // beside sanitizers and others
    config.breaker_ms_min = config.breaker_ms_max = 20;
    config.location_ms = 1'000'000'000;  // what was said once is believed: the owner must know better
    config.gate = false;
    config.on_questions = [] {};
    config.now_ms = now_ms;
    tier = std::make_shared<peers::PeerTier>(config);
  }
  void appear() {
    if (server) return;
    server = std::make_unique<peers::PeerServer>(server_config_, &source);
    server->set_epoch(epoch_);
  }
  // Whoever is connected is cut off, nobody connects.
  void vanish() { server.reset(); }
  [[nodiscard]] std::uint32_t epoch() const noexcept { return epoch_; }
  [[nodiscard]] peers::PeerAddress address(std::uint32_t slot) const {
    return {slot, epoch_, "node-" + std::to_string(slot), "127.0.0.1", server ? server->port() : std::uint16_t{1}};
  }

 private:
  peers::PeerServerConfig server_config_;
  std::uint32_t epoch_;

 public:
  LyingSource source;
  std::unique_ptr<peers::PeerServer> server;  // before the source goes
  std::shared_ptr<peers::PeerTier> tier;
};

}  // namespace kvcommons::testing::simulation
