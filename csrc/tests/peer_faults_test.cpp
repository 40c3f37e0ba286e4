// What a network and a hostile or broken peer can do: each costs a bounded time and a miss, and nobody else anything.
#include <sys/socket.h>

#include <cerrno>
#include <chrono>

#include "core/peers/zero_copy.h"
#include "peer_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using peers::in_ms;

namespace {

using Milliseconds = std::chrono::milliseconds;

std::int64_t took_ms(const std::function<void()>& what) {
  const auto begun = std::chrono::steady_clock::now();
  what();
  return std::chrono::duration_cast<Milliseconds>(std::chrono::steady_clock::now() - begun).count();
}

// A stream to the server that has greeted, for what no well-behaved client sends.
std::unique_ptr<peers::Stream> connected(const PeerWorld& world, const Key& secret = pool_secret()) {
  auto stream =
      std::make_unique<peers::PlainStream>(peers::tcp_connect("127.0.0.1", world.server->port(), in_ms(20'000)));
  CHECK_GE(stream->fd(), 0);
  std::string why;
  const auto epoch = peers::greet_server(*stream, peers::greeting_key(secret), in_ms(20'000), &why);
  if (!epoch) return nullptr;
  CHECK_EQ(*epoch, 7u);
  return stream;
}

bool hung_up(peers::Stream& stream) {
  std::array<std::byte, 1> one{};
  return !stream.read(one, in_ms(20'000));
}

}  // namespace

TEST(a_peer_that_does_not_know_the_secret_is_told_nothing) {
  PeerWorld world;
  world.start();
  CHECK(connected(world, tier_key(1)) == nullptr);
  eventually([&] { return world.server->stats().denied.load() == 1; });

  PeerWorld stranger;
  stranger.config.secret = tier_key(2);
  stranger.config.breaker_ms_min = 600'000;
  stranger.config.breaker_ms_max = 600'000;
  stranger.start();
  const Sample s(1);
  stranger.source.add(s);
  CHECK_EQ(stranger.seek(s), 0u);
  std::string why;
  CHECK_EQ(stranger.tier->health(&why), TierHealth::Degraded);
  CHECK(why.find("namespace_secret_file") != std::string::npos);
}

TEST(forged_frames_end_their_connection_and_no_other) {
  PeerWorld world;
  world.start();
  const Sample s(1);
  world.source.add(s);
  CHECK_EQ(world.seek(s), 1u);
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    const auto stream = connected(world);
    std::mt19937_64 random(seed);
    wire::Header header{static_cast<std::uint32_t>(random() % 200), static_cast<std::uint16_t>(random() % 16),
                        static_cast<std::uint16_t>(random() % 3), random()};
    if (seed % 4 == 0) header.payload_bytes = 0xffff'ffff;
    std::vector<std::byte> bytes(sizeof header + header.payload_bytes % 200);
    std::memcpy(bytes.data(), &header, sizeof header);
    for (std::size_t i = sizeof header; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(random());
    CHECK(stream->write(bytes, in_ms(20'000)));
    CHECK(hung_up(*stream));
  }
  const Aligned into(40'000);
  s.check(tier_get(*world.tier, s.meta.id, into), into.data());
}

TEST(half_a_frame_is_cut_off_and_a_half_closed_peer_still_gets_its_answer) {
  PeerWorld world;
  world.server_config.send_ms_max = 200;
  world.start();
  const auto half = connected(world);
  const std::array<std::byte, 5> some{};
  CHECK(half->write(some, in_ms(20'000)));
  CHECK(hung_up(*half));

  const Sample s(1);
  world.source.add(s);
  const auto closing = connected(world);
  wire::Out out;
  wire::put_fetch(&out, 9, {s.meta.id.fingerprint, 7, 1},
                  std::vector<wire::Item>{{s.meta.id.key, s.meta.id.rect, 0, 0}});
  CHECK(closing->write(out, in_ms(20'000)));
  CHECK_EQ(::shutdown(closing->fd(), SHUT_WR), 0);
  peers::Received got;
  CHECK(peers::receive(*closing, in_ms(20'000), &got));
  wire::ShardHead head;
  CHECK(wire::decode_shard(got.payload, false, &head));
  const Aligned into(40'000);
  CHECK(closing->read({into.data(), head.meta.payload_bytes}, in_ms(20'000)));
  CHECK_EQ(xxh3_64(into.data(), head.meta.payload_bytes), s.meta.checksum);
  CHECK(hung_up(*closing));
}

TEST(a_slow_peer_costs_one_time_out_and_then_nothing) {
  PeerWorld world;
  world.config.fetch_ms_max = 300;
  world.config.breaker_ms_min = 600'000;
  world.config.breaker_ms_max = 600'000;
  world.start();
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 8; ++i) samples.emplace_back(i, 400'000);
  for (const Sample& s : samples) world.source.add(s);
  std::vector<const Sample*> chain;
  for (const Sample& s : samples) chain.push_back(&s);
  CHECK_EQ(world.seek(chain), 8u);
  world.source.hold(true);
  std::vector<Aligned> into;
  std::vector<GetItem> batch;
  for (const Sample& s : samples) {
    into.emplace_back(400'000);
    batch.push_back({s.meta.id, into.back().data(), into.back().bytes()});
  }
  std::vector<GetResult> results;
  const auto ms = took_ms([&] { results = tier_get(*world.tier, batch); });
  for (const GetResult& result : results) CHECK_EQ(result.status, TierStatus::Failed);
  CHECK_GE(ms, 290);
  CHECK_LE(ms, 20'000);
  std::string why;
  CHECK_EQ(world.tier->health(&why), TierHealth::Degraded);
  CHECK(why.find("peer-1") != std::string::npos);
  CHECK_EQ(world.tier->peers().at(0).link.opened, 1u);
  CHECK_EQ(tier_find(*world.tier, samples[0].meta.id), 0u);
  CHECK(took_ms([&] { CHECK_NE(tier_get(*world.tier, samples[0].meta.id, into[0]).status, TierStatus::Ok); }) < 290);
  const Sample other(99);
  world.source.add(other);
  CHECK_EQ(world.seek(other), 0u);  // nobody asks it now
  world.source.hold(false);
}

TEST(a_partition_costs_one_time_out_and_ends_when_the_peer_is_there_again) {
  PeerWorld world;
  world.config.connect_ms_max = 200;
  world.config.breaker_ms_min = 1;
  world.config.breaker_ms_max = 1;
  world.start();
  const Sample s(1);
  world.source.add(s);
  const std::uint16_t port = world.server->port();
  CHECK_EQ(world.seek(s), 1u);
  world.server.reset();
  const Aligned into(40'000);
  CHECK_EQ(tier_get(*world.tier, s.meta.id, into).status, TierStatus::Failed);
  world.server_config.port = port;
  world.server = std::make_unique<peers::PeerServer>(world.server_config, &world.source);
  world.server->set_epoch(7);
  // Whoever asks once the breaker lets one try finds it again; before that the answer is "nobody" for a while.
  eventually([&] { return world.seek(s) == 1; });
  s.check(tier_get(*world.tier, s.meta.id, into), into.data());
  std::string why;
  CHECK_EQ(world.tier->health(&why), TierHealth::Serving);
}

TEST(a_peer_that_left_the_index_is_not_asked_and_one_with_a_new_epoch_is_asked_anew) {
  PeerWorld world;
  world.start();
  const Sample s(1);
  world.source.add(s);
  CHECK_EQ(world.seek(s), 1u);
  peers::PeerAddress moved = world.address();
  moved.epoch = 8;
  world.tier->set_peers({moved});
  CHECK_EQ(tier_find(*world.tier, s.meta.id), 0u);
  CHECK_EQ(world.seek(s), 0u);  // the index tells of the epoch before
  world.tier->set_peers({});
  const Sample other(2);
  world.source.add(other);
  CHECK_EQ(world.seek(other), 0u);
  CHECK_EQ(world.tier->peer_stats().links, 0u);
}

TEST(what_would_take_longer_than_computing_it_is_not_fetched) {
  PeerWorld world;
  world.start();
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 2; ++i) samples.emplace_back(i, 4'000'000);
  for (const Sample& s : samples) world.source.add(s);
  CHECK_EQ(world.seek(samples[0]), 1u);
  const Aligned into(4'000'000);
  samples[0].check(tier_get(*world.tier, samples[0].meta.id, into), into.data());
  eventually([&] { return world.tier->peers().at(0).link.bytes_per_second > 0; });
  world.tokens_per_second = 1e12;  // an engine that needs no time
  CHECK_EQ(world.seek(samples[1]), 0u);
  CHECK_EQ(world.tier->peer_stats().skipped_slow, 1u);
}

TEST(a_sender_without_a_copy_holds_what_it_sent_until_the_kernel_has_let_go) {
  PeerWorld world;
  world.start();
  // A reader that does not read: the bytes stay in the sender's queue.
  std::uint16_t port = 0;
  const UniqueFd listener = peers::tcp_listen("127.0.0.1", 0, &port);
  peers::PlainStream sender(peers::tcp_connect("127.0.0.1", port, in_ms(20'000)));
  CHECK(peers::wait_until(listener.get(), 1, in_ms(20'000)));
  UniqueFd reader = peers::tcp_accept(listener.get());
  peers::ZeroCopySender zero_copy(sender.fd(), true);
  if (!zero_copy.worthwhile()) return;  // a kernel without it: the plain path is what there is
  const auto bytes = std::make_shared<Aligned>(64u << 20);
  std::weak_ptr<Aligned> watched = bytes;
  CHECK(!zero_copy.send({bytes->data(), bytes->bytes()}, bytes, in_ms(200)));
  if (zero_copy.sent_bytes() == 0) return;
  CHECK_GT(zero_copy.held_bytes(), 0u);
  CHECK(zero_copy.abort(in_ms(20'000)));
  CHECK_EQ(zero_copy.held_bytes(), 0u);
  CHECK_EQ(watched.use_count(), 1);  // the test's own
}

TEST_MAIN()
