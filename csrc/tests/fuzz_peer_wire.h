// Every decoder of peers' frames over any bytes: nothing is read outside of them, and what is accepted is within the
// limits. Run by libFuzzer (fuzz_peer_wire.cpp) and by the tests over mutations of good frames.
#pragma once

#include "check.h"
#include "core/peers/peer_wire.h"

namespace kvcommons::testing {

inline void read_peer_frame(std::span<const std::byte> bytes) {
  namespace wire = peers::wire;
  wire::Header header{};
  if (bytes.size() >= sizeof header && wire::decode_header(bytes.first(sizeof header), &header)) {
    CHECK_LE(header.payload_bytes, wire::kFrameBytesMax);
    bytes = bytes.subspan(sizeof header);
  }
  wire::Hello hello{};
  wire::Challenge challenge{};
  wire::Welcome welcome{};
  (void)wire::decode(bytes, &hello);
  (void)wire::decode(bytes, &challenge);
  (void)wire::decode(bytes, &welcome);
  wire::LocateRequest locate;
  if (wire::decode(bytes, &locate)) {
    CHECK(!locate.shards.empty());
    CHECK_LE(locate.shards.size(), kShardsPerChunkMax);
    CHECK_LE(locate.keys.size(), wire::keys_max(locate.shards.size()));
  }
  for (const std::size_t shards : {1u, 3u}) {
    wire::LocatedReply located;
    if (wire::decode(bytes, shards, 100, &located)) CHECK_EQ(located.places.size(), located.head.chunks * shards);
  }
  wire::FetchRequest fetch;
  if (wire::decode(bytes, &fetch)) CHECK_LE(fetch.items.size(), wire::kItemsMax);
  wire::RemoveRequest remove;
  if (wire::decode(bytes, &remove)) CHECK_LE(remove.items.size(), wire::kItemsMax);
  for (const bool push : {false, true}) {
    wire::ShardHead shard;
    if (!wire::decode_shard(bytes, push, &shard)) continue;
    CHECK_LE(shard.meta.text_keys.size(), kTextKeysPerChunkMax);
    CHECK_LE(shard.meta.payload_bytes, kSlabBytesMax);
    CHECK_GT(shard.meta.payload_bytes, 0u);
    CHECK(push || shard.layout.empty());
  }
}

}  // namespace kvcommons::testing
