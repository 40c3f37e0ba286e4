// The remote tier under the suite that every tier runs, alone and behind the wrapper that injects faults, and what only
// a store can do that is shared and far away.
#include "core/tiers/faulty_tier.h"
#include "core/tiers/remote_object.h"
#include "remote_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using tiers::FaultRates;
using tiers::FaultyTier;
using tiers::RemoteConfig;
using tiers::RemoteOutcome;
using tiers::RemoteTier;

namespace {

RemoteConfig config_of(std::uint64_t capacity_bytes = 64 * kTierMiB) {
  RemoteConfig config;
  config.capacity_bytes = capacity_bytes;
  config.prefix = "kvc/";
  config.time_out_ms = 20'000;  // sanitizers on a busy machine
  config.ask_wait_ms = 20'000;
  return config;
}

namespace alone {
std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  return std::make_unique<DrivenRemote>(config_of(capacity_bytes));
}
KVCOMMONS_TIER_CONTRACT(make)
}  // namespace alone

namespace behind_the_wrapper {
std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  return std::make_unique<FaultyTier>(std::make_shared<DrivenRemote>(config_of(capacity_bytes)), 1);
}
KVCOMMONS_TIER_CONTRACT(make)
}  // namespace behind_the_wrapper

void until(const std::function<bool()>& holds) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  while (!holds()) {
    CHECK(std::chrono::steady_clock::now() < deadline);
    std::this_thread::yield();
  }
}

std::vector<ShardId> ids_of(const std::vector<Sample>& samples) {
  std::vector<ShardId> ids;
  for (const Sample& s : samples) ids.push_back(s.meta.id);
  return ids;
}

std::string why_of(const Tier& tier) {
  std::string why;
  (void)tier.health(&why);
  return why;
}

}  // namespace

// One node's chunk is another's hit: it is unknown, then asked for in one question, then read and verified.
TEST(what_another_node_has_put_is_found_by_asking) {
  const auto store = std::make_shared<SharedObjects>();
  DrivenRemote writer(config_of(), store), reader(config_of(), store);
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 9; ++i) samples.emplace_back(i);
  for (std::size_t i = 0; i < 8; ++i) CHECK_EQ(tier_put(writer, samples[i]), TierStatus::Ok);
  const std::vector<ShardId> ids = ids_of(samples);
  CHECK_EQ(tier_find(reader, ids[0]), 0u);
  CHECK_EQ(reader.ask(ids), 9u);
  until([&] { return reader.ask(ids) == 0; });
  CHECK_EQ(reader.driver.jobs(), 1u);
  const Aligned into(40'000);
  for (std::size_t i = 0; i < 8; ++i) {
    CHECK_EQ(tier_find(reader, ids[i]), 40'000u);
    samples[i].check(tier_get(reader, ids[i], into), into.data());
  }
  CHECK_EQ(tier_find(reader, ids[8]), 0u);
  CHECK_EQ(reader.stats().shards, 0u);  // none of it is its own
  CHECK_EQ(tier_put(reader, samples[3]), TierStatus::Ok);
  CHECK_EQ(reader.stats().put_bytes, 0u);  // and nothing is written twice
}

// Removal is of a node's own; only a clear takes away what others have put there.
TEST(another_nodes_objects_are_left_alone_until_a_clear) {
  const auto store = std::make_shared<SharedObjects>();
  DrivenRemote writer(config_of(), store), reader(config_of(), store);
  const Sample one(1), two(2, 40'000, 2);
  CHECK_EQ(tier_put(writer, one), TierStatus::Ok);
  CHECK_EQ(tier_put(writer, two), TierStatus::Ok);
  const std::vector<ShardId> ids{one.meta.id, two.meta.id};
  CHECK_EQ(reader.ask(ids), 2u);
  until([&] { return reader.ask(ids) == 0; });
  CHECK_EQ(reader.remove(std::span(ids.data(), 1)), 1u);
  CHECK_EQ(tier_find(reader, ids[0]), 0u);
  CHECK_EQ(reader.ask(std::span(ids.data(), 1)), 0u);  // it does not come back by asking
  CHECK_EQ(store->size(), 2u);
  (void)reader.clear(&ids[0].fingerprint);
  CHECK_EQ(tier_find(reader, ids[0]), 0u);
  until([&] { return store->size() == 1; });
  const Aligned into(40'000);
  two.check(tier_get(reader, ids[1], into), into.data());
}

// A store that hangs costs one time-out; then nothing is asked of it, what waits is answered, and it is tried again.
TEST(a_store_that_hangs_is_left_alone_until_it_answers) {
  RemoteConfig config = config_of();
  config.time_out_ms = 150;
  config.retry_ms_min = config.retry_ms_max = 50;
  DrivenRemote remote(config);
  const Sample here(1), more(2);
  CHECK_EQ(tier_put(remote, here), TierStatus::Ok);
  remote.driver.hang(true);
  const Aligned a(40'000);
  std::vector<Answer<GetResult>> answers(12);
  std::vector<Aligned> into;
  for (std::size_t i = 0; i < answers.size(); ++i) into.emplace_back(40'000);
  const auto begun = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < answers.size(); ++i) {
    CHECK(remote.get({GetItem{here.meta.id, into[i].data(), into[i].bytes()}}, answers[i].taker()));
  }
  for (auto& answer : answers) CHECK_EQ(answer.wait()[0].status, TierStatus::Failed);
  const auto took = std::chrono::steady_clock::now() - begun;
  CHECK(took >= std::chrono::milliseconds(140));
  CHECK(took < std::chrono::seconds(10));
  std::string why;
  CHECK_EQ(remote.health(&why), TierHealth::Gone);
  CHECK(why.find("150 ms") != why.npos);
  CHECK_EQ(tier_find(remote, here.meta.id), 0u);
  CHECK_EQ(remote.ask(std::span(&more.meta.id, 1)), 0u);
  CHECK_EQ(tier_get(remote, here.meta.id, a).status, TierStatus::Missing);
  CHECK_EQ(tier_put(remote, more), TierStatus::Failed);
  // What the hung driver still brings goes nowhere: the buffers are their owners' again.
  for (Aligned& buffer : into) std::memset(buffer.data(), 0x33, buffer.bytes());
  remote.driver.hang(false);
  until([&] { return remote.health(&why) == TierHealth::Serving; });
  for (Aligned& buffer : into) CHECK(buffer.data()[0] == std::byte{0x33});
  CHECK_EQ(tier_put(remote, more), TierStatus::Ok);
  here.check(tier_get(remote, here.meta.id, a), a.data());
}

// What was removed and cleared while the store was away is so when it is back, before anything is read.
TEST(removals_wait_for_a_store_that_is_away) {
  RemoteConfig config = config_of();
  config.retry_ms_min = config.retry_ms_max = 20;
  DrivenRemote remote(config);
  const Sample one(1), two(2), three(3, 40'000, 2);
  for (const Sample* s : {&one, &two, &three}) CHECK_EQ(tier_put(remote, *s), TierStatus::Ok);
  remote.driver.refuse(RemoteOutcome::Unreachable);
  const Aligned into(40'000);
  CHECK_EQ(tier_get(remote, one.meta.id, into).status, TierStatus::Failed);
  CHECK(why_of(remote).find("as the test says") == 0);
  CHECK_EQ(remote.remove(std::span(&one.meta.id, 1)), 1u);
  CHECK_EQ(remote.clear(&three.meta.id.fingerprint), 1u);
  until([&] { return remote.driver.pings() > 2; });
  CHECK_EQ(remote.objects->size(), 3u);
  remote.driver.refuse(RemoteOutcome::Ok);
  until([&] { return remote.objects->size() == 1; });
  until([&] { return why_of(remote).empty(); });
  two.check(tier_get(remote, two.meta.id, into), into.data());
  CHECK_EQ(tier_find(remote, one.meta.id), 0u);
}

// A store without room takes no writes for a while, and is read meanwhile.
TEST(a_full_store_is_still_read) {
  RemoteConfig config = config_of();
  std::atomic<std::uint64_t> now{1'000};
  config.now_ms = [&] { return now.load(); };
  DrivenRemote remote(config);
  const Sample here(1), more(2);
  CHECK_EQ(tier_put(remote, here), TierStatus::Ok);
  remote.driver.refuse(RemoteOutcome::Full);
  CHECK_EQ(tier_put(remote, more), TierStatus::Full);
  std::string why;
  CHECK_EQ(remote.health(&why), TierHealth::Degraded);
  const std::uint64_t jobs = remote.driver.jobs();
  CHECK_EQ(tier_put(remote, more), TierStatus::Full);
  CHECK_EQ(remote.driver.jobs(), jobs);
  const Aligned into(40'000);
  here.check(tier_get(remote, here.meta.id, into), into.data());
  remote.driver.refuse(RemoteOutcome::Ok);
  now += config.full_ms + 1;
  CHECK_EQ(tier_put(remote, more), TierStatus::Ok);
  CHECK_EQ(remote.health(&why), TierHealth::Serving);
}

// Any byte of an object that changes is found: nothing is handed out, and the object is taken away.
TEST(every_damaged_byte_is_found) {
  std::uint64_t found = 0;
  DrivenRemote remote(config_of());
  for (std::uint64_t at = 0; at < 1'024 + 3'000; at += at < 760 ? 1 : 97) {
    const Sample s(at, 3'000);
    CHECK_EQ(tier_put(remote, s), TierStatus::Ok);
    {
      const std::lock_guard lock(remote.objects->mutex);
      for (auto& [name, bytes] : remote.objects->objects) bytes.at(at) ^= std::byte{0x40};
    }
    const Aligned into(3'000);
    std::memset(into.data(), 0x5a, into.bytes());
    CHECK_EQ(tier_get(remote, s.meta.id, into).status, TierStatus::Corrupt);
    for (std::uint64_t i = 0; i < into.bytes(); ++i) CHECK(into.data()[i] == std::byte{0x5a});
    until([&] { return remote.objects->size() == 0; });
    CHECK_EQ(remote.stats().corrupt, ++found);
  }
}

// An object that another has put under this name, a shorter one and one past its time are no hits.
TEST(objects_that_are_not_what_was_asked_for) {
  RemoteConfig config = config_of();
  std::atomic<std::uint64_t> unix_ms{1'700'000'000'000};
  config.unix_ms = [&] { return unix_ms.load(); };
  config.ttl_ms = 60'000;
  const auto store = std::make_shared<SharedObjects>();
  DrivenRemote writer(config, store), reader(config, store);
  const Sample one(1), two(2), three(3);
  for (const Sample* s : {&one, &two, &three}) CHECK_EQ(tier_put(writer, *s), TierStatus::Ok);
  {
    const std::lock_guard lock(store->mutex);
    auto& objects = store->objects;
    objects.at(tiers::object_name("kvc/", one.meta.id)) = objects.at(tiers::object_name("kvc/", two.meta.id));
    objects.at(tiers::object_name("kvc/", two.meta.id)).resize(20'000);
  }
  const std::vector<ShardId> ids{one.meta.id, two.meta.id, three.meta.id};
  CHECK_EQ(reader.ask(ids), 3u);
  until([&] { return reader.ask(ids) == 0; });
  const Aligned into(40'000);
  CHECK_EQ(tier_get(reader, ids[0], into).status, TierStatus::Corrupt);
  CHECK_EQ(tier_get(reader, ids[1], into).status, TierStatus::Corrupt);
  unix_ms += 60'000;
  CHECK_EQ(tier_get(reader, ids[2], into).status, TierStatus::Missing);
}

// What a node put there is forgotten with its ttl, and told.
TEST(the_ttl_ends_what_is_known) {
  RemoteConfig config = config_of();
  std::atomic<std::uint64_t> now{1'000};
  config.now_ms = [&] { return now.load(); };
  config.ttl_ms = 60'000;
  DrivenRemote remote(config);
  const Sample s(1);
  CHECK_EQ(tier_put(remote, s), TierStatus::Ok);
  now += 59'999;
  CHECK_EQ(tier_find(remote, s.meta.id), 40'000u);
  now += 1;
  CHECK_EQ(tier_find(remote, s.meta.id), 0u);
  until([&] { return remote.stats().shards == 0; });
  bool gap = false;
  const auto events = remote.drain_events(10, &gap);
  CHECK_EQ(events.size(), 2u);
  CHECK(events[1].kind == TierEvent::Kind::Dropped);
}

// With faults by chance and a store that comes and goes, whatever is called Ok is right, and nothing is left waiting.
TEST(nothing_wrong_under_faults) {
  const auto store = std::make_shared<SharedObjects>();
  RemoteConfig config = config_of(4 * kTierMiB);
  config.time_out_ms = 200;
  config.retry_ms_min = config.retry_ms_max = 5;
  FaultRates rates;
  rates.put_failed = rates.put_dropped = rates.get_failed = rates.get_missing = rates.get_corrupt = 50;
  auto inner = std::make_shared<DrivenRemote>(config, store);
  FaultyTier tier(inner, 11, rates);
  std::mt19937_64 random(5);
  const Aligned into(60'000);
  int served = 0;
  for (int step = 0; step < 1'500; ++step) {
    if (step % 100 == 50) inner->driver.refuse(RemoteOutcome::Unreachable);
    if (step % 100 == 60) inner->driver.refuse(RemoteOutcome::Ok);
    if (step % 100 == 61) until([&] { return why_of(*inner).empty(); });
    const Sample s(random() % 200, 50'000);
    if (random() % 2 == 0) {
      (void)tier_put(tier, s);
    } else if (random() % 40 == 0) {
      (void)tier.remove(std::span(&s.meta.id, 1));
    } else {
      const GetResult result = tier_get(tier, s.meta.id, into);
      if (result.status == TierStatus::Ok) s.check(result, into.data());
      served += result.status == TierStatus::Ok ? 1 : 0;
    }
    CHECK_LE(tier.stats().used_bytes, 4 * kTierMiB);
  }
  CHECK_GT(served, 50);
}

TEST(a_configuration_that_cannot_be) {
  for (const auto& spoil : std::vector<std::function<void(RemoteConfig*)>>{
           [](RemoteConfig* c) { c->capacity_bytes = 1'000; },
           [](RemoteConfig* c) { c->lanes = 0; },
           [](RemoteConfig* c) { c->ttl_ms = 0; },
       }) {
    RemoteConfig config = config_of();
    spoil(&config);
    bool refused = false;
    try {
      const RemoteTier tier(config);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused);
  }
}

TEST_MAIN()
