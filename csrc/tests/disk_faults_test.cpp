// A device that has no room, errs, hangs or vanishes: the tier degrades or leaves, and what it hands out stays right.
#include "disk_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

// One tier, or two devices of one, with faults and time in the test's hand.
struct Broken {
  explicit Broken(std::size_t devices = 1, const std::function<void(DiskConfig*)>& change = {}) : folders(devices) {
    DiskConfig config = disk_config(folders[0], 0);
    config.devices.clear();
    for (const Folder& folder : folders) config.devices.push_back({folder.path(), 8 * kTierMiB});
    config.op_deadline_ms = 40;
    config.write_retry_ms = 10'000;
    config.now_ms = clock.reader();
    config.wrap_io = faults.wrapper();
    if (change) change(&config);
    tier = make_disk_tier(config);
  }
  [[nodiscard]] TierHealth health(std::string* why = nullptr) const {
    std::string text;
    const TierHealth health = tier->health(&text);
    CHECK_EQ(text.empty(), health == TierHealth::Serving);
    if (why != nullptr) *why = text;
    return health;
  }

  std::vector<Folder> folders;
  Clock clock;
  Faults faults;
  std::unique_ptr<Tier> tier;  // last: it uses the others
};

bool writes(const IoOp& op) { return op.kind == IoOp::Kind::Write; }

}  // namespace

TEST(without_space_it_reads_on_and_writes_again_once_there_is_some) {
  Broken b;
  const Sample first(1), second(2), third(3), fourth(4);
  CHECK_EQ(tier_put(*b.tier, first), TierStatus::Ok);
  b.faults.set([](const IoOp& op, std::size_t) { return writes(op) ? ENOSPC : 0; });
  CHECK_EQ(tier_put(*b.tier, second), TierStatus::Failed);
  std::string why;
  CHECK_EQ(b.health(&why), TierHealth::Degraded);
  CHECK(why.find("No space left on device") != why.npos);
  CHECK_EQ(tier_put(*b.tier, third), TierStatus::Full);  // at once: no write is tried
  CHECK_EQ(disk_get(*b.tier, first).status, TierStatus::Ok);
  CHECK_EQ(disk_get(*b.tier, second).status, TierStatus::Missing);
  b.faults.set({});
  CHECK_EQ(tier_put(*b.tier, third), TierStatus::Full);  // its time has not come
  b.clock.ms += 10'001;
  CHECK_EQ(tier_put(*b.tier, fourth), TierStatus::Ok);
  CHECK_EQ(b.health(), TierHealth::Serving);
  CHECK_EQ(disk_get(*b.tier, fourth).status, TierStatus::Ok);
  CHECK_GT(b.tier->stats().refused_full, 1u);
}

TEST(what_cannot_be_read_is_failed_once_then_missing_and_told) {
  Broken b;
  const Sample s(1), other(2);
  CHECK_EQ(tier_put(*b.tier, s), TierStatus::Ok);
  CHECK_EQ(tier_put(*b.tier, other), TierStatus::Ok);
  b.faults.set([](const IoOp& op, std::size_t) { return op.kind == IoOp::Kind::Read ? EIO : 0; });
  CHECK_EQ(disk_get(*b.tier, s).status, TierStatus::Failed);
  b.faults.set({});
  CHECK_EQ(disk_get(*b.tier, s).status, TierStatus::Missing);
  CHECK_EQ(disk_get(*b.tier, other).status, TierStatus::Ok);
  bool gap = false;
  const auto events = b.tier->drain_events(10, &gap);
  CHECK_EQ(events.size(), 3u);
  CHECK_EQ(events[2].kind, TierEvent::Kind::Dropped);
  CHECK(events[2].meta.id == s.meta.id);
  CHECK_EQ(b.tier->stats().failed, 1u);
}

TEST(a_device_that_vanishes_takes_its_shards_along_and_the_others_serve_on) {
  Broken b(2);
  std::vector<Sample> samples;
  std::vector<PutItem> batch;
  for (std::uint64_t i = 0; i < 20; ++i) samples.emplace_back(i);
  for (const Sample& s : samples) batch.push_back(s.put());
  for (const TierStatus status : tier_put(*b.tier, batch)) CHECK_EQ(status, TierStatus::Ok);
  b.faults.set([](const IoOp&, std::size_t device) { return device == 1 ? ENODEV : 0; });
  std::size_t here = 0;
  for (const Sample& s : samples) here += disk_get(*b.tier, s).status == TierStatus::Ok ? 1 : 0;
  CHECK_GT(here, 5u);
  CHECK_LT(here, 15u);
  std::string why;
  CHECK_EQ(b.health(&why), TierHealth::Degraded);
  CHECK(why.find(b.folders[1].file() + ": gone (No such device)") != why.npos);
  await([&] { return b.tier->stats().shards == here; });
  for (std::uint64_t i = 100; i < 110; ++i) CHECK_EQ(tier_put(*b.tier, Sample(i)), TierStatus::Ok);
  b.faults.set([](const IoOp&, std::size_t) { return ENODEV; });
  for (const Sample& s : samples) CHECK_NE(disk_get(*b.tier, s).status, TierStatus::Ok);
  await([&] { return b.health() == TierHealth::Gone && b.tier->stats().shards == 0; });
  CHECK_EQ(tier_put(*b.tier, samples[0]), TierStatus::Closed);
  CHECK_EQ(disk_get(*b.tier, samples[0]).status, TierStatus::Missing);
}

TEST(a_device_that_fails_every_operation_is_given_up_after_a_bounded_number) {
  Broken b;
  std::atomic<int> tried{0};
  for (std::uint64_t i = 0; i < 40; ++i) CHECK_EQ(tier_put(*b.tier, Sample(i)), TierStatus::Ok);
  b.faults.set([&](const IoOp&, std::size_t) {
    ++tried;
    return EIO;
  });
  for (std::uint64_t i = 0; i < 40; ++i) CHECK_NE(disk_get(*b.tier, Sample(i)).status, TierStatus::Ok);
  CHECK_EQ(b.health(), TierHealth::Gone);
  CHECK_LT(tried.load(), 20);
}

TEST(a_device_that_hangs_costs_one_time_out_and_serves_again_when_it_answers) {
  Broken b;
  const Sample s(1), waiting(2), late(3);
  CHECK_EQ(tier_put(*b.tier, s), TierStatus::Ok);
  CHECK_EQ(tier_put(*b.tier, waiting), TierStatus::Ok);
  b.faults.hold(true);
  const Aligned into(40'000);
  Answer<GetResult> held;
  CHECK(b.tier->get({GetItem{waiting.meta.id, into.data(), into.bytes()}}, held.taker()));
  await([&] { return b.faults.held_ops() == 1; });
  b.clock.ms += 41;
  await([&] { return b.health() == TierHealth::Degraded; });
  std::string why;
  (void)b.health(&why);
  CHECK(why.find("hangs") != why.npos);
  CHECK_EQ(disk_get(*b.tier, s).status, TierStatus::Failed);
  CHECK_NE(tier_put(*b.tier, late), TierStatus::Ok);
  CHECK_EQ(b.faults.held_ops(), 1u);  // nothing more was sent to it
  CHECK(!held.over());                // its buffer is the device's until the device answers
  b.faults.hold(false);
  waiting.check(held.wait()[0], into.data());
  await([&] { return b.health() == TierHealth::Serving; });
  CHECK_EQ(disk_get(*b.tier, s).status, TierStatus::Ok);
}

TEST(a_tier_that_ends_waits_for_what_hangs_and_answers_the_rest_closed) {
  std::vector<GetResult> answers;
  Answer<GetResult> held, queued;
  const Sample s(1);
  const Aligned a(40'000), b_(40'000);
  auto b =
      std::make_unique<Broken>(1, [](DiskConfig* c) { c->threads_per_device = 2, c->engine = DiskEngine::Threads; });
  CHECK_EQ(tier_put(*b->tier, s), TierStatus::Ok);
  b->faults.hold(true);
  CHECK(b->tier->get({GetItem{s.meta.id, a.data(), a.bytes()}}, held.taker()));
  await([&] { return b->faults.held_ops() == 1; });
  CHECK(b->tier->get({GetItem{s.meta.id, b_.data(), b_.bytes()}}, queued.taker()));
  std::thread ender([&] { b->tier.reset(); });
  CHECK_EQ(queued.wait()[0].status, TierStatus::Closed);
  CHECK(!held.over());
  b->faults.hold(false);
  ender.join();
  s.check(held.wait()[0], a.data());
}

TEST(the_wear_limit_stops_writes_and_time_gives_them_back) {
  Broken b(1, [](DiskConfig* c) { c->wear_bytes_per_day = 24 * kTierMiB; });  // a reserve of 1 MiB
  const Sample first(1, 200'000);
  CHECK_EQ(tier_put(*b.tier, first), TierStatus::Ok);
  std::uint64_t written = 1;
  for (std::uint64_t i = 2; i < 20; ++i) written += tier_put(*b.tier, Sample(i, 200'000)) == TierStatus::Ok ? 1 : 0;
  CHECK_GE(written, 4u);
  CHECK_LE(written, 7u);  // the last may go over the limit, none after it
  std::string why;
  await([&] { return b.health(&why) == TierHealth::Degraded; });
  CHECK(why.find("wear limit") != why.npos);
  CHECK_EQ(disk_get(*b.tier, first).status, TierStatus::Ok);
  b.clock.ms += 3'600'000;
  CHECK_EQ(tier_put(*b.tier, Sample(30, 200'000)), TierStatus::Ok);
  await([&] { return b.health() == TierHealth::Serving; });
}

TEST(whatever_fails_at_random_nothing_wrong_is_handed_out) {
  for (const std::uint64_t seed : {1u, 2u, 3u}) {
    std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
    Broken b(2);
    std::mt19937_64 random(seed), chance(seed + 100);
    b.faults.set([&](const IoOp& op, std::size_t) {
      return chance() % 12 == 0 ? (writes(op) && chance() % 2 == 0 ? ENOSPC : EIO) : 0;
    });
    std::vector<Sample> samples;
    for (std::uint64_t i = 0; i < 60; ++i) samples.emplace_back(i, 1 + random() % 300'000);
    for (int step = 0; step < 600; ++step) {
      const Sample& s = samples[random() % samples.size()];
      if (random() % 2 == 0) {
        (void)tier_put(*b.tier, s);
      } else {
        (void)disk_get(*b.tier, s);  // checks what is Ok
      }
      b.clock.ms += 1'000;
      CHECK_LE(b.tier->stats().used_bytes, 16 * kTierMiB);
    }
    CHECK_EQ(b.tier->stats().corrupt, 0u);
    CHECK_GT(b.tier->stats().evicted, 0u);
  }
}

TEST_MAIN()
