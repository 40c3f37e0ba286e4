// The peer tier over real sockets: the contract of every tier, and what is found, fetched and refused.
#include "peer_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

// A tier that takes its peer with it.
class Owned final : public Tier {
 public:
  explicit Owned(std::uint64_t capacity_bytes) : world_(capacity_bytes) { world_.start(); }
  [[nodiscard]] std::string_view name() const noexcept override { return tier().name(); }
  bool put(std::vector<PutItem> batch, PutDone done) override { return tier().put(std::move(batch), std::move(done)); }
  bool get(std::vector<GetItem> batch, GetDone done) override { return tier().get(std::move(batch), std::move(done)); }
  void find(std::span<const ShardId> ids, std::span<std::uint64_t> bytes) override { tier().find(ids, bytes); }
  bool describe(const ShardId& id, ShardMeta* out) override { return tier().describe(id, out); }
  void touch(std::span<const ShardId> ids) override { tier().touch(ids); }
  std::uint64_t remove(std::span<const ShardId> ids) override { return tier().remove(ids); }
  std::uint64_t clear(const Key* fingerprint) override { return tier().clear(fingerprint); }
  std::vector<ShardMeta> inventory(std::uint64_t* cursor, std::size_t max) override {
    return tier().inventory(cursor, max);
  }
  std::vector<TierEvent> drain_events(std::size_t max, bool* gap) override { return tier().drain_events(max, gap); }
  [[nodiscard]] TierHealth health(std::string* why) const override { return tier().health(why); }
  [[nodiscard]] TierStats stats() const override { return tier().stats(); }

 private:
  [[nodiscard]] Tier& tier() const { return *world_.tier; }
  PeerWorld world_;
};

std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) { return std::make_unique<Owned>(capacity_bytes); }

}  // namespace

KVCOMMONS_TIER_CONTRACT(make)

TEST(what_a_peer_holds_is_found_by_a_question_and_fetched) {
  PeerWorld world;
  world.start();
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 3; ++i) samples.emplace_back(i, 300'000);
  world.source.add(samples[0]);
  world.source.add(samples[1]);
  CHECK_EQ(tier_find(*world.tier, samples[0].meta.id), 0u);
  CHECK_EQ(world.seek({&samples[0], &samples[1], &samples[2]}), 2u);
  const Aligned a(300'000), b(300'000), c(300'000);
  const auto got = tier_get(*world.tier, {{samples[0].meta.id, a.data(), a.bytes()},
                                          {samples[1].meta.id, b.data(), b.bytes()},
                                          {samples[2].meta.id, c.data(), c.bytes()}});
  samples[0].check(got[0], a.data());
  samples[1].check(got[1], b.data());
  CHECK_EQ(got[2].status, TierStatus::Missing);
  CHECK_EQ(world.tier->peer_stats().fetched, 2u);
  eventually([&] { return world.server->stats().sent_bytes.load() == 600'000u; });  // told after the kernel has it all
  CHECK_EQ(world.tier->stats().shards, 0u);  // they are the peer's, not this tier's
}

TEST(what_nobody_has_is_not_asked_for_again_at_once) {
  PeerWorld world;
  world.start();
  const Sample absent(1);
  CHECK_EQ(world.seek(absent), 0u);
  CHECK_EQ(world.seek(absent), 0u);
  CHECK_EQ(world.questions.load(), 1);
  CHECK_EQ(world.tier->peer_stats().nowhere, 1u);
}

TEST(an_epoch_that_is_over_gets_nothing) {
  PeerWorld world;
  world.start();
  const Sample s(1);
  world.source.add(s);
  world.server->set_epoch(8);  // it was cleared, and the index does not know yet
  CHECK_EQ(world.seek(s), 0u);
  world.server->set_epoch(7);
  const Sample other(2);
  world.source.add(other);
  CHECK_EQ(world.seek(other), 1u);
  world.server->set_epoch(8);
  const Aligned into(40'000);
  CHECK_EQ(tier_get(*world.tier, other.meta.id, into).status, TierStatus::Missing);
  CHECK_EQ(world.server->stats().gone.load(), 1u);
}

TEST(another_life_of_a_place_is_a_miss) {
  PeerWorld world;
  world.start();
  const Sample s(1);
  world.source.add(s);
  CHECK_EQ(world.seek(s), 1u);
  world.source.add(s);  // evicted and stored again: another generation
  const Aligned into(40'000);
  CHECK_EQ(tier_get(*world.tier, s.meta.id, into).status, TierStatus::Missing);
  CHECK_EQ(tier_find(*world.tier, s.meta.id), 0u);
}

TEST(bytes_that_changed_on_their_way_are_never_handed_out) {
  PeerWorld world;
  world.start();
  const Sample s(1);
  world.source.add(s);
  CHECK_EQ(world.seek(s), 1u);
  world.source.bytes_of(s.meta.id)->data()[17] ^= std::byte{1};
  const Aligned into(40'000);
  CHECK_EQ(tier_get(*world.tier, s.meta.id, into).status, TierStatus::Corrupt);
  CHECK_EQ(world.tier->stats().corrupt, 1u);
  CHECK_EQ(tier_find(*world.tier, s.meta.id), 0u);
}

TEST(a_peer_that_is_named_is_asked_without_the_index_and_however_slow) {
  PeerWorld world;
  world.config.replicas_max = 1;
  world.start();
  const Sample s(1);
  world.source.add(s);
  const std::vector<ShardSpec> shards{{s.meta.id.rect, s.meta.payload_bytes}};
  const auto ask = [&](const Sample& one, std::string_view name) {
    return world.tier->seek({one.meta.id.fingerprint, 256, shards, std::span(&one.meta.id.key, 1), 1e9, name});
  };
  CHECK(!ask(s, "nobody"));
  while (tier_find(*world.tier, s.meta.id) == 0) {
    CHECK(ask(s, "peer-1"));
    std::this_thread::yield();
  }
  CHECK_EQ(world.questions.load(), 0);
  CHECK(!world.tier->spare(s.meta.id));  // it was asked for: it is no copy beside enough others
  const Aligned into(40'000);
  s.check(tier_get(*world.tier, s.meta.id, into), into.data());
}

TEST(what_enough_peers_have_is_brought_as_what_may_leave_first) {
  for (const std::uint32_t replicas_max : {1u, 2u}) {
    PeerWorld world;
    world.config.replicas_max = replicas_max;
    world.start();
    const Sample s(1);
    world.source.add(s);
    CHECK_EQ(world.seek(s), 1u);
    CHECK_EQ(world.tier->spare(s.meta.id), replicas_max == 1);
    CHECK(!world.tier->spare(Sample(2).meta.id));
  }
}

TEST(what_was_sent_is_let_go_of_before_the_next_request) {
  PeerWorld world;
  world.server_config.send_ms_max = 120'000;  // whoever waited for the rest of a frame would hold it so long
  world.start();
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 4; ++i) samples.emplace_back(i, 200'000);
  for (const Sample& one : samples) world.source.add(one);
  CHECK_EQ(world.seek({&samples[0], &samples[1], &samples[2], &samples[3]}), 4u);
  const Aligned a(200'000), b(200'000), c(200'000), d(200'000);
  (void)tier_get(*world.tier, {{samples[0].meta.id, a.data(), a.bytes()},
                               {samples[1].meta.id, b.data(), b.bytes()},
                               {samples[2].meta.id, c.data(), c.bytes()},
                               {samples[3].meta.id, d.data(), d.bytes()}});
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (const Sample& one : samples) {
    while (world.source.bytes_of(one.meta.id).use_count() > 2) {  // the source's, and this one
      CHECK(std::chrono::steady_clock::now() < deadline);
      std::this_thread::yield();
    }
  }
}

TEST(what_the_owner_evicts_while_it_is_sent_arrives_whole) {
  PeerWorld world;
  world.start();
  const Sample s(1, 8'000'000);
  world.source.add(s);
  CHECK_EQ(world.seek(s), 1u);
  world.source.on_lent = [&](const ShardId& id) {
    wire::RemoveRequest request;
    request.head.fingerprint = id.fingerprint;
    request.items.push_back({id.key, id.rect, 0, 0});
    CHECK_EQ(world.source.remove(request), 1u);
  };
  const Aligned into(8'000'000);
  s.check(tier_get(*world.tier, s.meta.id, into), into.data());
  CHECK_EQ(tier_get(*world.tier, s.meta.id, into).status, TierStatus::Missing);
}

TEST_MAIN()
