// A node's memory as its peers see it.
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>

#include "peers/peer_source.h"
#include "store.h"

namespace kvcommons::peers {

struct StoreSourceConfig {
  std::byte* arena = nullptr;  // readable, and writable where pushes are taken
  // Has chunks behind the first `here` brought into memory from this node's own media; returns how many are coming.
  std::function<std::uint32_t(const SessionSpec&, std::span<const Key>, std::uint32_t here)> bring;
};

class StoreSource final : public PeerSource {
 public:
  StoreSource(StoreSourceConfig config, Store* store) : config_(std::move(config)), store_(store) {}

  void locate(const wire::LocateRequest& request, wire::LocatedReply* out) override;
  wire::Answer lend(const Key& fingerprint, const wire::Item& item, Lent* out) override;
  // Only into room that is free: what a peer brings costs nobody here a chunk.
  wire::Answer take(const wire::ShardHead& shard, Room* out) override;
  // What was brought is this node's own from then on: it leaves as everything else does.
  std::uint64_t remove(const wire::RemoveRequest& request) override;

 private:
  StoreSourceConfig config_;
  Store* store_;
};

}  // namespace kvcommons::peers
