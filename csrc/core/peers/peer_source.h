// What a node gives its peers: shards of its memory, lent as long as they are being sent, and room for what they bring.
#pragma once

#include <functional>
#include <memory>

#include "peers/peer_wire.h"

namespace kvcommons::peers {

// A shard that neither moves nor changes before the last `hold` is let go of.
struct Lent {
  ShardMeta meta;
  std::uint32_t generation = 0;
  const std::byte* data = nullptr;
  std::shared_ptr<void> hold;
};

// Room for one shard. finish: called once, whether the bytes are there and have their checksum or not.
struct Room {
  std::byte* data = nullptr;
  std::function<wire::Answer(bool whole)> finish;
};

class PeerSource {
 public:
  virtual ~PeerSource() = default;
  PeerSource() = default;
  PeerSource(const PeerSource&) = delete;  // what it lends points into it
  PeerSource& operator=(const PeerSource&) = delete;

  // The leading chunks that are here with every shard; the request's layout is one that a frame may have.
  virtual void locate(const wire::LocateRequest& request, wire::LocatedReply* out) = 0;
  // Ok, Missing, or Gone where the shard has another generation than the one that was asked for.
  virtual wire::Answer lend(const Key& fingerprint, const wire::Item& item, Lent* out) = 0;
  // Ok: the bytes may come. Otherwise, or where the shard is here already (Ok without data), they are read past.
  virtual wire::Answer take(const wire::ShardHead& shard, Room* out) = 0;
  virtual std::uint64_t remove(const wire::RemoveRequest& request) = 0;
};

}  // namespace kvcommons::peers
