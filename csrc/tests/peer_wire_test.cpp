// Frames between peers: what goes in comes out, and nothing else is believed.
#include <random>

#include "fuzz_peer_wire.h"
#include "tier_contract.h"

using namespace kvcommons;
using namespace kvcommons::testing;
namespace wire = peers::wire;

namespace {

std::span<const std::byte> payload_of(const wire::Out& out) { return std::span(out).subspan(sizeof(wire::Header)); }

std::vector<wire::Out> good_frames() {
  const Sample s(3, 40'000);
  const std::vector<ShardSpec> shards{{{0, 4, 0, 1}, 4'096}, {{0, 4, 1, 2}, 8'192}};
  const std::vector<Key> keys{tier_key(1), tier_key(2), tier_key(3)};
  const std::vector<wire::Item> items{{tier_key(1), {0, 4, 0, 1}, 5, 0}, {tier_key(2), {0, 4, 1, 2}, 6, 0}};
  const std::vector<wire::Place> places{{4'096, 5, 0}, {8'192, 6, 0}};
  std::vector<wire::Out> out(8);
  wire::put_locate(&out[0], 1, {tier_key(9), 7, 256, 2, 3}, shards, keys);
  wire::put_located(&out[1], 1, {7, 1, 2, 0}, places);
  wire::put_fetch(&out[2], 1, {tier_key(9), 7, 2}, items);
  wire::put_remove(&out[3], 1, {tier_key(9), 2, 0}, items);
  wire::put_shard(&out[4], wire::Type::Shard, 1, s.meta, {});
  wire::put_shard(&out[5], wire::Type::Push, 1, s.meta, shards);
  wire::put_frame(&out[6], wire::Type::Hello, wire::Answer::Ok, 0,
                  wire::Hello{wire::kMagic, wire::kVersion, wire::kVersion, tier_key(1)});
  wire::put_frame(&out[7], wire::Type::Welcome, wire::Answer::Ok, 0, wire::Welcome{7, 0});
  return out;
}

}  // namespace

TEST(a_frame_says_what_was_put_into_it) {
  const auto frames = good_frames();
  wire::LocateRequest locate;
  CHECK(wire::decode(payload_of(frames[0]), &locate));
  CHECK_EQ(locate.keys.size(), 3u);
  CHECK(locate.keys[2] == tier_key(3));
  CHECK_EQ(locate.shards[1].slot_bytes, 8'192u);
  wire::LocatedReply located;
  CHECK(wire::decode(payload_of(frames[1]), 2, 3, &located));
  CHECK_EQ(located.places[1].generation, 6u);
  CHECK(!wire::decode(payload_of(frames[1]), 3, 3, &located));  // of another layout than was asked for
  wire::FetchRequest fetch;
  CHECK(wire::decode(payload_of(frames[2]), &fetch));
  CHECK_EQ(fetch.items[0].generation, 5u);
  wire::ShardHead shard;
  const Sample s(3, 40'000);
  CHECK(wire::decode_shard(payload_of(frames[4]), false, &shard));
  CHECK(shard.meta.id == s.meta.id);
  CHECK(shard.meta.parent == s.meta.parent);
  CHECK(shard.meta.text_keys == s.meta.text_keys);
  CHECK_EQ(shard.meta.checksum, s.meta.checksum);
  CHECK(wire::decode_shard(payload_of(frames[5]), true, &shard));
  CHECK_EQ(shard.layout.size(), 2u);
  CHECK(!wire::decode_shard(payload_of(frames[5]), false, &shard));  // an answer has no layout
}

TEST(what_is_over_a_limit_is_refused) {
  wire::Out out;
  wire::Header header{wire::kFrameBytesMax + 1, 5, 0, 0};
  CHECK(!wire::decode_header(std::as_bytes(std::span(&header, 1)), &header));
  const std::vector<wire::Item> items(wire::kItemsMax + 1);
  wire::put_fetch(&out, 1, {tier_key(1), 7, wire::kItemsMax + 1}, items);
  wire::FetchRequest fetch;
  CHECK(!wire::decode(payload_of(out), &fetch));
  out.clear();
  Sample s(1);
  s.meta.payload_bytes = kSlabBytesMax + 1;
  wire::put_shard(&out, wire::Type::Shard, 1, s.meta, {});
  wire::ShardHead shard;
  CHECK(!wire::decode_shard(payload_of(out), false, &shard));
  CHECK_GT(wire::keys_max(1), 1'000u);
  CHECK_GE(wire::keys_max(kShardsPerChunkMax), 1u);
}

TEST(any_bytes_are_read_within_their_bounds) {
  const auto frames = good_frames();
  for (std::uint64_t seed = 0; seed < 20'000; ++seed) {
    std::mt19937_64 random(seed);
    wire::Out bytes = frames[random() % frames.size()];
    for (std::uint64_t n = random() % 4; n > 0; --n) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random() % 3 == 0 ? 0xff : random());
    }
    if (random() % 3 == 0) bytes.resize(random() % (bytes.size() + 1));
    if (random() % 5 == 0) bytes.resize(bytes.size() + random() % 64);
    read_peer_frame(bytes);
  }
}

TEST_MAIN()
