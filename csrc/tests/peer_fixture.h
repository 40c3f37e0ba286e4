// Peers on loopback: a source that keeps shards in a map, a server over it, and a tier that asks it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "core/peers/peer_greeting.h"
#include "core/peers/peer_server.h"
#include "core/peers/peer_tier.h"
#include "tier_contract.h"

namespace kvcommons::testing {

namespace wire = peers::wire;

template <typename Holds>
void eventually(Holds holds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  while (!holds()) {
    CHECK(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
}

// What a peer holds. Shards are lent as the store lends slots: who removes one waits for nobody.
class MapSource final : public peers::PeerSource {
 public:
  void locate(const wire::LocateRequest& request, wire::LocatedReply* out) override {
    const std::lock_guard lock(mutex_);
    for (const Key& key : request.keys) {
      std::vector<wire::Place> places;
      for (const ShardSpec& shard : request.shards) {
        const auto kept = kept_.find(order_of({request.head.fingerprint, key, shard.rect}));
        if (kept == kept_.end()) return;
        places.push_back({kept->second.meta.payload_bytes, kept->second.generation, 0});
      }
      out->places.insert(out->places.end(), places.begin(), places.end());
      ++out->head.chunks;
    }
  }
  wire::Answer lend(const Key& fingerprint, const wire::Item& item, peers::Lent* out) override {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return !held_; });
      const auto kept = kept_.find(order_of({fingerprint, item.key, item.rect}));
      if (kept == kept_.end()) return wire::Answer::Missing;
      if (item.generation != wire::kAnyGeneration && item.generation != kept->second.generation) {
        return wire::Answer::Gone;
      }
      out->meta = kept->second.meta;
      out->data = kept->second.bytes->data();
      out->hold = kept->second.bytes;
      out->generation = kept->second.generation;
    }
    if (on_lent) on_lent(out->meta.id);
    return wire::Answer::Ok;
  }
  wire::Answer take(const wire::ShardHead& shard, peers::Room* out) override {
    {
      const std::lock_guard lock(mutex_);
      if (kept_.contains(order_of(shard.meta.id))) return wire::Answer::Ok;
    }
    const auto bytes = std::make_shared<Aligned>(shard.meta.payload_bytes);
    out->data = bytes->data();
    out->finish = [this, bytes, meta = shard.meta](bool whole) {
      if (!whole) return wire::Answer::Bad;
      add(meta, bytes);
      return wire::Answer::Ok;
    };
    return wire::Answer::Ok;
  }
  std::uint64_t remove(const wire::RemoveRequest& request) override {
    const std::lock_guard lock(mutex_);
    std::uint64_t removed = 0;
    for (const wire::Item& item : request.items) {
      removed += kept_.erase(order_of({request.head.fingerprint, item.key, item.rect}));
    }
    return removed;
  }

  void add(const ShardMeta& meta, std::shared_ptr<Aligned> bytes) {
    const std::lock_guard lock(mutex_);
    kept_[order_of(meta.id)] = {meta, std::move(bytes), ++generation_};
  }
  void add(const Sample& sample) {
    const auto bytes = std::make_shared<Aligned>(sample.meta.payload_bytes);
    std::memcpy(bytes->data(), sample.bytes.data(), sample.meta.payload_bytes);
    add(sample.meta, bytes);
  }
  // While held, nothing is lent: a peer that is slow.
  void hold(bool held) {
    const std::lock_guard lock(mutex_);
    held_ = held;
    changed_.notify_all();
  }
  std::shared_ptr<Aligned> bytes_of(const ShardId& id) {
    const std::lock_guard lock(mutex_);
    return kept_.at(order_of(id)).bytes;
  }
  std::function<void(const ShardId&)> on_lent;

 private:
  struct Kept {
    ShardMeta meta;
    std::shared_ptr<Aligned> bytes;
    std::uint32_t generation = 0;
  };
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<ShardOrder, Kept> kept_;
  std::uint32_t generation_ = 0;
  bool held_ = false;
};

inline Key pool_secret() { return tier_key(0x5ec7); }

// One peer and the tier of another node that knows it.
struct PeerWorld {
  explicit PeerWorld(std::uint64_t capacity_bytes = 64 * kTierMiB) {
    server_config.secret = pool_secret();
    config.secret = pool_secret();
    config.copies_bytes_max = capacity_bytes;
    config.on_questions = [this] { ++questions; };
    // Tests run beside others, under sanitizers: only those about time-outs have short ones.
    config.connect_ms_max = 20'000;
    config.fetch_ms_max = 20'000;
    config.locate_ms_max = 20'000;
    config.location_ms = 60'000;
  }
  void start() {
    server = std::make_unique<peers::PeerServer>(server_config, &source);
    server->set_epoch(7);
    tier = std::make_unique<peers::PeerTier>(config);
    tier->set_peers({address()});
  }
  [[nodiscard]] peers::PeerAddress address() const { return {3, 7, "peer-1", "127.0.0.1", server->port()}; }

  // As a lookup does until it knows: the leading chunks that were found.
  std::size_t seek(const std::vector<const Sample*>& chain, std::uint32_t epoch = 7) {
    std::vector<Key> keys;
    for (const Sample* one : chain) keys.push_back(one->meta.id.key);
    const std::vector<ShardSpec> shards{{chain[0]->meta.id.rect, chain[0]->meta.payload_bytes}};
    const Sought sought{chain[0]->meta.id.fingerprint, 256, shards, keys, tokens_per_second};
    for (bool pending = true; pending;) {
      pending = tier->seek(sought);
      for (const peers::Question& question : tier->questions(10)) {
        tier->answer(question.id, {{3, epoch, static_cast<std::uint32_t>(keys.size())}});
      }
      std::size_t found = 0;
      while (found < chain.size() && tier_find(*tier, chain[found]->meta.id) != 0) ++found;
      if (found != 0) return found;
      std::this_thread::yield();
    }
    return 0;
  }
  std::size_t seek(const Sample& one, std::uint32_t epoch = 7) { return seek({&one}, epoch); }

  peers::PeerServerConfig server_config;
  peers::PeerTierConfig config;
  MapSource source;
  std::atomic<int> questions{0};
  double tokens_per_second = 0;
  std::unique_ptr<peers::PeerServer> server;
  std::unique_ptr<peers::PeerTier> tier;
};

}  // namespace kvcommons::testing
