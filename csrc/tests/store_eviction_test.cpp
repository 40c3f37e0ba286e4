// Eviction in the store: every policy, tenants' shares, requests' hints, shadows, and what a restart leaves of it.
#include <cstring>
#include <stdexcept>
#include <string>

#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kSlot = 128 << 10;  // eight a slab, 64 in the arena
constexpr const char* kAll[] = {"lru", "s3fifo", "cost", "auto"};

std::vector<Key> slice(const std::vector<Key>& keys, std::size_t from, std::size_t to) {
  return {keys.begin() + static_cast<std::ptrdiff_t>(from), keys.begin() + static_cast<std::ptrdiff_t>(to)};
}

std::string refused(const StoreConfig& config) {
  try {
    const Memory arena(config.arena_bytes), records(Store::records_bytes(config));
    const Store store(config, arena.fd(), records.fd());
  } catch (const std::invalid_argument& e) {
    return e.what();
  }
  return "";
}

}  // namespace

TEST(a_policy_that_is_not_there_is_refused_by_name) {
  StoreConfig config;
  config.arena_bytes = 8 * kMiB;
  config.slab_bytes = kMiB;
  config.eviction = "fifo";
  CHECK_EQ(refused(config), std::string("eviction is \"fifo\": use lru, s3fifo, cost or auto"));
  config.eviction = "lru";
  config.tenant_percent_max = 0;
  CHECK_EQ(refused(config), std::string("tenant_percent_max is 0: give 1..100, 100 for no limit"));
}

TEST(under_every_policy_suffixes_go_first_and_leased_and_pinned_chunks_stay) {
  for (const char* policy : kAll) {
    World w(8 * kMiB, kMiB, 0, policy);
    const Engine engine(w, 1, kSlot);
    const auto leased = make_chain(1, 6), pinned = make_chain(2, 6), plain = make_chain(3, 10);
    CHECK_EQ(engine.put(leased), 6u);
    CHECK_EQ(engine.put(pinned), 6u);
    CHECK_EQ(engine.put(plain), 10u);
    const LookupResult lease = engine.lease(leased);
    CHECK_EQ(lease.hit_chunks, 6u);
    CHECK_EQ(w.store->pin(std::span(&pinned[5], 1), true), 1u);
    for (std::uint64_t i = 10; i < 60; ++i) CHECK_EQ(engine.put(make_chain(i, 4)), 4u);
    CHECK_EQ(w.store->lookup_any(make_key(1 + 0xf000'0000), leased), 6u);
    CHECK_EQ(w.store->lookup_any(make_key(1 + 0xf000'0000), pinned), 6u);
    CHECK_LE(w.store->stats().used_bytes, 8 * kMiB);
    CHECK(w.store->stats().evicted > 100u);
    CHECK_EQ(engine.release(lease.lease), Status::Ok);
  }
}

TEST(cost_keeps_what_is_asked_for_again_and_again_where_lru_does_not) {
  for (const char* policy : {"lru", "cost"}) {
    World w(8 * kMiB, kMiB, 0, policy);
    const Engine engine(w, 1, kSlot);
    const auto loved = make_chain(1, 4);
    engine.put(loved);
    for (int i = 0; i < 30; ++i) CHECK_EQ(engine.hits(loved), 4u);
    for (std::uint64_t i = 10; i < 50; ++i) engine.put(make_chain(i, 2));
    CHECK_EQ(engine.hits(loved), std::strcmp(policy, "cost") == 0 ? 4u : 0u);
  }
}

TEST(s3fifo_lets_a_scan_pass_by) {
  World w(8 * kMiB, kMiB, 0, "s3fifo");
  const Engine engine(w, 1, kSlot);
  for (std::uint64_t i = 1; i <= 40; ++i) engine.put(make_chain(i, 1));
  for (std::uint64_t i = 1; i <= 40; ++i) CHECK_EQ(engine.hits(make_chain(i, 1)), 1u);
  for (std::uint64_t i = 100; i < 400; ++i) CHECK_EQ(engine.put(make_chain(i, 1)), 1u);
  for (std::uint64_t i = 1; i <= 40; ++i) CHECK_EQ(engine.hits(make_chain(i, 1)), 1u);
}

TEST(one_shot_chunks_go_first_until_somebody_asks_for_them) {
  for (const char* policy : kAll) {
    World w(8 * kMiB, kMiB, 0, policy);
    const Engine engine(w, 1, kSlot);
    eviction::Hints once;
    once.one_shot = true;
    const auto old = make_chain(1, 8), passing = make_chain(2, 8), asked = make_chain(3, 8);
    engine.put(old);
    engine.put(passing, {}, once);
    engine.put(asked, {}, once);
    CHECK_EQ(engine.hits(asked), 8u);
    for (std::uint64_t i = 10; i < 16; ++i) engine.put(make_chain(i, 8));
    CHECK_EQ(engine.hits(passing), 0u);
    CHECK_EQ(engine.hits(asked), 8u);
    CHECK_EQ(engine.hits(old), 8u);
    CHECK_EQ(w.store->stats().hinted_chunks, 16u);
  }
}

TEST(an_ended_session_leaves_what_others_go_on_from) {
  World w(8 * kMiB);
  const Engine engine(w, 1, kSlot);
  eviction::Hints end;
  end.session_end = true;
  const auto shared = make_chain(1, 4), one = make_chain(2, 12), other = make_chain(3, 8);
  engine.put(shared);
  engine.put(other, shared.back());
  engine.put(slice(one, 0, 8), shared.back());
  engine.put(slice(one, 8, 12), one[7], end);
  for (std::uint64_t i = 10; i < 21; ++i) engine.put(make_chain(i, 4));
  std::vector<Key> ended = shared, kept = shared;
  ended.insert(ended.end(), one.begin(), one.end());
  kept.insert(kept.end(), other.begin(), other.end());
  CHECK_EQ(w.store->lookup_any(make_key(1 + 0xf000'0000), ended), 12u);  // four of its own had to go
  CHECK_EQ(w.store->lookup_any(make_key(1 + 0xf000'0000), kept), 12u);
}

TEST(a_touch_can_say_that_a_session_ended) {
  World w(8 * kMiB);
  const Engine engine(w, 1, kSlot);
  const auto ended = make_chain(1, 8), kept = make_chain(2, 8);
  engine.put(kept);
  engine.put(ended);
  eviction::Hints end;
  end.session_end = true;
  w.store->touch(engine.id, ended, end);
  for (std::uint64_t i = 10; i < 17; ++i) engine.put(make_chain(i, 8));
  CHECK_EQ(engine.hits(ended), 0u);
  CHECK_EQ(engine.hits(kept), 8u);
}

TEST(what_was_not_used_for_its_time_goes_first) {
  World w(8 * kMiB);
  const Engine engine(w, 1, kSlot);
  eviction::Hints brief;
  brief.ttl_seconds = 60;
  const auto old = make_chain(1, 8), expired = make_chain(2, 8), renewed = make_chain(3, 8);
  engine.put(old);
  engine.put(expired, {}, brief);
  engine.put(renewed, {}, brief);
  w.clock_ms += 40'000;
  w.store->expire_leases();
  CHECK_EQ(engine.hits(renewed), 8u);
  w.clock_ms += 40'000;
  w.store->expire_leases();
  CHECK_EQ(w.store->stats().expired_chunks, 8u);
  for (std::uint64_t i = 10; i < 16; ++i) engine.put(make_chain(i, 8));
  CHECK_EQ(engine.hits(expired), 0u);
  CHECK_EQ(engine.hits(renewed), 8u);
  CHECK_EQ(engine.hits(old), 8u);
}

TEST(priority_weighs_under_cost) {
  World w(8 * kMiB, kMiB, 0, "cost");
  const Engine engine(w, 1, kSlot);
  eviction::Hints dear;
  dear.priority = 4;
  const auto kept = make_chain(1, 4), plain = make_chain(2, 4);
  engine.put(kept, {}, dear);
  engine.put(plain);
  for (std::uint64_t i = 10; i < 30; ++i) engine.put(make_chain(i, 4));
  CHECK_EQ(engine.hits(plain), 0u);
  CHECK_EQ(engine.hits(kept), 4u);
}

TEST(a_tenant_over_its_share_gives_way_first) {
  for (const char* policy : kAll) {
    World w(8 * kMiB, kMiB, 0, policy);
    w.config.tenant_percent_max = 50;
    w.open();
    const Engine engine(w, 1, kSlot);
    const auto small = make_chain(1, 8);
    engine.put(small, {}, {}, 7);
    for (std::uint64_t i = 10; i < 30; ++i) engine.put(make_chain(i, 8), {}, {}, 8);  // alone it may fill the rest
    CHECK_EQ(engine.hits(small), 8u);
    for (std::uint64_t i = 40; i < 43; ++i) engine.put(make_chain(i, 8), {}, {}, 9);
    CHECK_EQ(engine.hits(small), 8u);
    for (std::uint64_t i = 40; i < 43; ++i) CHECK_EQ(engine.hits(make_chain(i, 8)), 8u);
    w.crash_and_adopt();  // who holds what is found again
    const Engine after(w, 1, kSlot);
    after.put(make_chain(50, 8), {}, {}, 9);
    CHECK_EQ(after.hits(small), 8u);
  }
}

TEST(shadows_tell_what_each_policy_would_have_hit) {
  World w(8 * kMiB);
  w.config.shadow_chunks_max = 1'000;
  w.open();
  const Engine engine(w, 1, kSlot);
  const auto ask = [&](const std::vector<Key>& chain) {
    const LookupResult found = engine.lease(chain);
    if (found.lease != 0) CHECK_EQ(engine.release(found.lease), Status::Ok);
    if (found.hit_chunks == chain.size()) return;
    engine.put(slice(chain, found.hit_chunks, chain.size()),
               found.hit_chunks == 0 ? Key{} : chain[found.hit_chunks - 1]);
  };
  for (std::uint64_t round = 0; round < 6; ++round) {
    for (std::uint64_t i = 1; i <= 10; ++i) ask(make_chain(i, 4));
    for (std::uint64_t i = 0; i < 20; ++i) ask(make_chain(1'000 + round * 20 + i, 4));
  }
  w.store->settle_shadows();
  const StoreStats s = w.store->stats();
  CHECK_EQ(s.shadow_one_in, 1u);
  CHECK_EQ(s.shadow_asked_chunks, s.lookup_chunks);
  CHECK_EQ(s.shadow_hit_chunks_lru, s.hit_chunks);  // the policy in force: its shadow is the store
  CHECK(s.shadow_hit_chunks_s3fifo > s.shadow_hit_chunks_lru);
  CHECK_EQ(s.eviction_policy, 0u);
  CHECK_EQ(s.shadow_dropped, 0u);
}

TEST(auto_follows_the_shadow_that_finds_more) {
  World w(8 * kMiB, kMiB, 0, "auto");
  const Engine engine(w, 1, kSlot);
  CHECK_EQ(w.store->stats().eviction_policy, 2u);
  // Recency alone tells: each of a moving window is asked for many times, then never more.
  for (std::uint64_t i = 0; i < 6'000; ++i) {
    const auto chain = make_chain(1 + i / 40 * 10 + i % 10, 5);
    const LookupResult found = engine.lease(chain);
    if (found.lease != 0) CHECK_EQ(engine.release(found.lease), Status::Ok);
    if (found.hit_chunks < 5) {
      engine.put(slice(chain, found.hit_chunks, 5), found.hit_chunks == 0 ? Key{} : chain[found.hit_chunks - 1]);
    }
    if (i % 200 == 0) w.store->settle_shadows();
  }
  w.store->settle_shadows();
  const StoreStats s = w.store->stats();
  const std::uint64_t hits[] = {s.shadow_hit_chunks_lru, s.shadow_hit_chunks_s3fifo, s.shadow_hit_chunks_cost};
  for (const std::uint64_t other : hits) CHECK(hits[s.eviction_policy] * 100 >= other * 97);
}

TEST_MAIN()
