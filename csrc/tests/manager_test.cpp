// What moves chunks between memory and a tier: written behind the engines, brought back on a lookup, and under faults.
#include "core/tiers/manager.h"

#include <poll.h>

#include <chrono>
#include <random>
#include <thread>

#include "core/tiers/faulty_tier.h"
#include "core/tiers/memory_tier.h"
#include "core/xxh3.h"
#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using tiers::FaultRates;
using tiers::FaultyTier;
using tiers::MemoryTier;

namespace {

constexpr std::uint64_t kSlot = 64 << 10;

void wait_until(const std::function<bool()>& holds, const char* what) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!holds()) {
    if (std::chrono::steady_clock::now() > deadline) fail(what, 0, "did not come true in 20 s");
    ::poll(nullptr, 0, 1);
  }
}

void fill(std::byte* at, const Key& key, std::uint16_t rank) {
  std::mt19937_64 random(key.prefix64() + rank);
  for (std::size_t i = 0; i < kSlot; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(at + i, &word, 8);
  }
}

// A store, a tier behind it that can be held and made to fail, and what moves between them.
struct Rig {
  World world;
  std::shared_ptr<MemoryTier> medium;
  std::shared_ptr<FaultyTier> tier;
  std::unique_ptr<TierManager> manager;

  explicit Rig(TierManagerConfig config = {}, std::uint64_t arena_bytes = 4 * kMiB,
               std::uint64_t tier_bytes = 64 * kMiB)
      : world(arena_bytes) {
    tiers::MemoryTierConfig kept;
    kept.capacity_bytes = tier_bytes;
    medium = std::make_shared<MemoryTier>(kept);
    tier = std::make_shared<FaultyTier>(medium, 1);
    config.arena_bytes = arena_bytes;
    config.arena = world.arena->base();
    config.now_ms = [this] { return world.clock_ms.load(); };
    manager = std::make_unique<TierManager>(config, world.store.get(), std::vector<std::shared_ptr<Tier>>{tier});
    manager->start();
  }
  ~Rig() {
    tier->hold(false);
    manager.reset();
  }

  // As an engine with one rank does; false where the store had no room.
  bool put(const Engine& engine, const std::vector<Key>& chain, std::uint16_t rank = 0, std::size_t from = 0) {
    const std::vector<Key> keys(chain.begin() + static_cast<std::ptrdiff_t>(from), chain.end());
    const auto slots = engine.reserve(keys, from == 0 ? Key{} : chain[from - 1]);
    std::vector<CommitItem> items;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (slots[i].status != ReserveStatus::Granted) continue;
      std::byte* at = world.arena->base() + slots[i].slot.offset_bytes;
      fill(at, keys[i], rank);
      items.push_back({slots[i].slot, i % 2 == 0 ? xxh3_64(at, kSlot) : 0, {}});
    }
    std::uint32_t accepted = 0;
    CHECK_EQ(world.store->commit(engine.id, items, &accepted), Status::Ok);
    return items.size() == keys.size();
  }
  void settle() {
    wait_until([&] { return manager->idle(); }, "the manager is idle");
  }
  // Other chunks until memory has none of these; nobody looks at them meanwhile, for that would keep them.
  void evict(const Engine& engine, const std::vector<Key>& chain) {
    static std::uint64_t next = 500'000;
    for (int i = 0; i < 100 && world.store->lookup_any(make_key(1 + 0xf000'0000), std::span(chain.data(), 1)) != 0;
         ++i) {
      put(engine, make_chain(next++, 4));
      settle();
    }
  }
  // In a tier, and no longer in memory.
  void put_behind(const Engine& engine, const std::vector<Key>& chain) {
    put(engine, chain);
    settle();
    evict(engine, chain);
  }
  std::uint32_t expected(const Engine& engine, const std::vector<Key>& chain) {
    return manager->wanted(engine.id, 0, chain, engine.hits(chain)).chunks;
  }
  // The bytes of every chunk that can be hit are those that were stored under its key. Returns how many.
  std::uint32_t check(const Engine& engine, const std::vector<Key>& chain, std::uint16_t rank = 0) {
    const LookupResult found = engine.lease(chain);
    if (found.hit_chunks == 0) return 0;
    std::vector<SlotRef> slots;
    if (engine.begin(found.lease, &slots) != Status::Ok) return 0;
    std::vector<std::byte> right(kSlot);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      fill(right.data(), chain[i], rank);
      CHECK(std::memcmp(right.data(), world.arena->base() + slots[i].offset_bytes, kSlot) == 0);
    }
    engine.release(found.lease);
    return found.hit_chunks;
  }
  void check_nothing_leaks() {
    settle();
    std::uint64_t unused = 0;
    manager->clear(nullptr, &unused);
    check_empty(*world.store);
    CHECK_EQ(tier->stats().shards, 0u);
    CHECK_EQ(manager->stats().write_in_flight_bytes + manager->stats().read_in_flight_bytes, 0u);
  }
};

}  // namespace

// What memory had to let go of is answered from the tier, byte for byte as it was stored.
TEST(evicted_chunks_come_back) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 12);
  CHECK(rig.put(engine, chain));
  rig.settle();
  CHECK_EQ(rig.manager->stats().written, 12u);
  rig.evict(engine, chain);
  CHECK_EQ(rig.manager->where(make_key(1 + 0xf000'0000), chain[3]), 0);
  CHECK_EQ(rig.expected(engine, chain), 12u);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 12u);
  CHECK_EQ(rig.manager->stats().promoted, 12u);
  rig.settle();
  const auto touched = rig.tier->touched();
  CHECK_EQ(rig.expected(engine, chain), 0u);  // memory has all of it, and the tier hears that it is wanted
  rig.settle();
  CHECK_EQ(rig.tier->touched(), touched + 12);
  const auto written = rig.manager->stats().written;
  rig.settle();
  CHECK_EQ(rig.manager->stats().written, written);  // what came from there is not written there again
  rig.check_nothing_leaks();
}

// Only what an engine of this layout can use is promised: every shard of a chunk, and no chunk behind a gap.
TEST(a_chunk_is_on_a_tier_with_all_its_shards) {
  Rig rig;
  const Engine first(rig.world, 1, kSlot, 2, 0), second(rig.world, 1, kSlot, 2, 1);
  const Engine one_rank(rig.world, 2, kSlot);
  const auto chain = make_chain(1, 6);
  CHECK(rig.put(first, chain, 0));
  const std::vector<Key> some(chain.begin(), chain.begin() + 4);
  CHECK(rig.put(second, some, 1));
  rig.settle();
  rig.evict(one_rank, chain);
  rig.world.store->clear(nullptr);  // memory alone
  CHECK_EQ(rig.expected(first, chain), 4u);
  rig.settle();
  CHECK_EQ(rig.check(first, chain, 0), 4u);
  CHECK_EQ(rig.check(second, chain, 1), 4u);
  CHECK_EQ(rig.manager->where(make_key(1 + 0xf000'0000), chain[5]), 0);  // a hint, without the layout
  rig.check_nothing_leaks();
}

// The queue of writes has a bound, and what it can't take is counted and costs the engine nothing.
TEST(writes_that_cannot_wait_are_dropped_and_counted) {
  TierManagerConfig config;
  config.write_queue_max = 4;
  config.write_bytes_in_flight_max = 2 * kSlot;
  Rig rig(config);
  const Engine engine(rig.world, 1, kSlot);
  rig.tier->hold(true);
  CHECK(rig.put(engine, make_chain(1, 2)));
  wait_until([&] { return rig.tier->held_batches() == 1; }, "two shards are under way");
  CHECK(rig.put(engine, make_chain(2, 10)));
  CHECK_EQ(rig.manager->stats().write_dropped, 6u);
  CHECK_EQ(rig.manager->stats().write_waiting, 4u);
  CHECK_EQ(rig.manager->stats().write_in_flight_bytes, 2 * kSlot);
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(rig.manager->stats().written, 6u);
  rig.check_nothing_leaks();
}

// A slow tier never keeps memory from being reused: what was evicted before its turn is not written.
TEST(chunks_evicted_before_their_turn_are_counted) {
  TierManagerConfig config;
  config.write_bytes_in_flight_max = kSlot;
  Rig rig(config);
  const Engine engine(rig.world, 1, kSlot);
  rig.tier->hold(true);
  for (std::uint64_t i = 0; i < 100; ++i) rig.put(engine, make_chain(1 + i, 1));
  CHECK_EQ(engine.hits(make_chain(1, 1)), 1u);  // being written: it stays
  CHECK_EQ(engine.hits(make_chain(2, 1)), 0u);
  rig.tier->hold(false);
  rig.settle();
  const TierManagerStats stats = rig.manager->stats();
  CHECK_GT(stats.write_missed, 30u);
  CHECK_EQ(stats.written + stats.write_missed, 100u);
  rig.check_nothing_leaks();
}

// Several batches of one chain are read at once, within the bound of what may be under way.
TEST(batches_are_read_beside_each_other_within_the_bound) {
  TierManagerConfig config;
  config.batch_bytes = 2 * kSlot;
  config.read_bytes_in_flight_max = 6 * kSlot;
  Rig rig(config);
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 12);
  rig.put_behind(engine, chain);
  rig.tier->hold(true);
  CHECK_EQ(rig.expected(engine, chain), 12u);
  wait_until([&] { return rig.tier->held_batches() == 3; }, "three batches are under way");
  CHECK_EQ(rig.manager->stats().read_in_flight_bytes, 6 * kSlot);
  CHECK_EQ(rig.world.store->stats().slots_filling, 6u);
  CHECK_EQ(rig.expected(engine, chain), 12u);  // asked again: nothing is begun twice
  CHECK_EQ(rig.manager->stats().read_chains, 1u);
  CHECK(rig.tier->release_one());
  wait_until([&] { return engine.hits(chain) == 2; }, "the first batch can be hit");
  CHECK_EQ(rig.expected(engine, chain), 10u);
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 12u);
  rig.check_nothing_leaks();
}

// A chunk that does not come ends its chain there: what was read behind it is given up, and for a while nobody waits.
TEST(a_chain_ends_where_a_chunk_does_not_come) {
  TierManagerConfig config;
  config.batch_bytes = 2 * kSlot;
  Rig rig(config);
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 8);
  rig.put_behind(engine, chain);
  CHECK(rig.medium->rot({make_key(1 + 0xf000'0000), chain[5], shard(0, kSlot).rect}, 99));
  CHECK_EQ(rig.expected(engine, chain), 8u);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 5u);
  CHECK_EQ(rig.expected(engine, chain), 0u);
  CHECK_EQ(rig.manager->stats().read_failed, 1u);
  CHECK_EQ(rig.world.store->stats().slots_filling, 0u);
  rig.put(engine, chain, 0, 5);  // computed again, and stored
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 8u);
  rig.check_nothing_leaks();
}

// Two prompts that share a prefix share its chunks' way, and each gets the whole of its own.
TEST(chains_that_share_a_prefix) {
  TierManagerConfig config;
  config.batch_bytes = 2 * kSlot;
  Rig rig(config);
  const Engine engine(rig.world, 1, kSlot);
  auto one = make_chain(1, 8), other = one;
  for (std::size_t i = 4; i < 8; ++i) other[i] = make_key(77'000 + i);
  rig.put(engine, one);
  rig.put(engine, other, 0, 4);
  rig.settle();
  rig.evict(engine, one);
  rig.tier->hold(true);
  CHECK_EQ(rig.expected(engine, one), 8u);
  CHECK_EQ(rig.expected(engine, other), 8u);
  CHECK_EQ(rig.manager->stats().read_chains, 2u);
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(rig.check(engine, one), 8u);
  CHECK_EQ(rig.check(engine, other), 8u);
  CHECK_EQ(rig.manager->stats().promoted, 12u);
  rig.check_nothing_leaks();
}

// What was being written when it was cleared is removed again, and is promised to nobody meanwhile.
TEST(cleared_while_it_is_written) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot), other(rig.world, 2, kSlot);
  const auto chain = make_chain(1, 4), kept = make_chain(2, 4);
  rig.put(other, kept);
  rig.settle();
  rig.tier->hold(true);
  rig.put(engine, chain);
  wait_until([&] { return rig.tier->held_batches() > 0; }, "the write is under way");
  const Key fingerprint = make_key(1 + 0xf000'0000);
  std::uint64_t shards = 0;
  CHECK_EQ(rig.manager->clear(&fingerprint, &shards), 4u);
  CHECK_EQ(shards, 0u);
  CHECK_EQ(rig.expected(engine, chain), 0u);
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(rig.manager->where(fingerprint, chain[0]), -1);
  CHECK_EQ(rig.expected(engine, chain), 0u);
  CHECK_EQ(rig.tier->stats().shards, 4u);  // the other model's
  CHECK_EQ(rig.check(other, kept), 4u);
  rig.check_nothing_leaks();
}

// What was being read when it was cleared does not come back, and its slots are free.
TEST(cleared_while_it_is_read) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 8);
  rig.put_behind(engine, chain);
  rig.tier->hold(true);
  CHECK_EQ(rig.expected(engine, chain), 8u);
  wait_until([&] { return rig.tier->held_batches() > 0; }, "the read is under way");
  std::uint64_t shards = 0;
  rig.manager->clear(nullptr, &shards);
  CHECK_GT(shards, 7u);
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(engine.hits(chain), 0u);
  CHECK_EQ(rig.manager->stats().promoted_chunks, 0u);
  rig.check_nothing_leaks();
}

// An engine computes and stores what is being read: both end well, whoever is first.
TEST(stored_while_it_is_read) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 8);
  rig.put_behind(engine, chain);
  const std::vector<Key> prefix(chain.begin(), chain.begin() + 3);
  CHECK(rig.put(engine, prefix));  // before
  rig.tier->hold(true);
  CHECK_EQ(rig.expected(engine, chain), 5u);
  wait_until([&] { return rig.tier->held_batches() > 0; }, "the read is under way");
  CHECK(!rig.put(engine, chain));  // meanwhile: busy
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 8u);
  rig.check_nothing_leaks();
}

// A tier that does not write is left alone and read on; one that is gone is nobody's hope.
TEST(a_tier_that_is_ill) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 4), later = make_chain(2, 4);
  rig.put(engine, chain);
  rig.settle();
  rig.tier->set_health(TierHealth::Degraded);
  rig.put(engine, later);
  rig.settle();
  CHECK_EQ(rig.manager->stats().write_refused, 4u);
  rig.evict(engine, chain);
  CHECK_EQ(rig.expected(engine, chain), 4u);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 4u);
  rig.evict(engine, chain);
  rig.tier->set_health(TierHealth::Gone);
  CHECK_EQ(rig.expected(engine, chain), 0u);
  CHECK_EQ(rig.check(engine, chain), 0u);
  rig.tier->set_health(TierHealth::Serving);
  rig.check_nothing_leaks();
}

// A tier whose queue is full is asked again for a while; the lookup's promise then ends in recomputing.
TEST(a_tier_that_stays_busy) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 4);
  rig.put_behind(engine, chain);
  FaultRates rates;
  rates.busy = 1'000;
  rig.tier->set_rates(rates);
  CHECK_EQ(rig.expected(engine, chain), 4u);
  CHECK_EQ(rig.expected(engine, chain), 4u);
  while (!rig.manager->idle()) {
    rig.world.clock_ms += 100;
    ::poll(nullptr, 0, 1);
  }
  CHECK_EQ(engine.hits(chain), 0u);
  rig.tier->set_rates({});
  CHECK_EQ(rig.expected(engine, chain), 4u);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 4u);
  rig.check_nothing_leaks();
}

// Where leases hold all of memory nothing is brought in, and the lookup is not made to wait again and again.
TEST(no_room_in_memory) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 4);
  rig.put_behind(engine, chain);
  std::vector<LeaseId> leases;
  for (std::uint64_t i = 0; i < 64; ++i) {
    const auto mine = make_chain(900 + i, 1);
    if (rig.put(engine, mine)) leases.push_back(engine.lease(mine).lease);
  }
  CHECK_EQ(rig.expected(engine, chain), 4u);
  rig.settle();
  CHECK_EQ(engine.hits(chain), 0u);
  CHECK_GT(rig.manager->stats().read_no_room, 0u);
  CHECK_EQ(rig.expected(engine, chain), 0u);
  for (const LeaseId lease : leases) engine.release(lease);
  rig.world.clock_ms += 1'001;
  CHECK_EQ(rig.expected(engine, chain), 4u);
  rig.settle();
  CHECK_EQ(rig.check(engine, chain), 4u);
  rig.check_nothing_leaks();
}

// A direction moves no more than it may in a second.
TEST(a_rate_is_kept) {
  TierManagerConfig config;
  config.write_bytes_per_second_max = 20 * kSlot;
  config.batch_bytes = kSlot;
  Rig rig(config);
  const Engine engine(rig.world, 1, kSlot);
  rig.put(engine, make_chain(1, 30));
  for (std::uint64_t ms = 0; ms < 1'000; ms += 100) {
    wait_until([&] { return rig.manager->stats().written >= ms / 50; }, "what the rate allows is written");
    CHECK_GT(ms / 50 + 4, rig.manager->stats().written);
    rig.world.clock_ms += 100;
  }
  rig.world.clock_ms += 60'000;
  wait_until([&] { return rig.manager->stats().written >= 20; }, "the rest follows");
  while (!rig.manager->idle()) {
    rig.world.clock_ms += 100;
    ::poll(nullptr, 0, 1);
  }
  CHECK_EQ(rig.manager->stats().written, 30u);
  rig.check_nothing_leaks();
}

// A node that stops writes what waits, gives back what it holds, and leaves no slot half full.
TEST(stopping_in_the_middle) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 8);
  rig.put_behind(engine, chain);
  const auto written = rig.manager->stats().written;
  rig.tier->hold(true);
  CHECK_EQ(rig.expected(engine, chain), 8u);
  rig.put(engine, make_chain(2, 8));
  wait_until([&] { return rig.tier->held_batches() >= 2; }, "a read and a write are under way");
  std::thread stopping([&] { rig.manager->stop(); });
  rig.tier->hold(false);
  stopping.join();
  CHECK_EQ(rig.manager->stats().written, written + 8);
  const StoreStats stats = rig.world.store->stats();
  CHECK_EQ(stats.slots_filling + stats.slots_quarantined + stats.slots_draining, 0u);
  rig.world.store->clear(nullptr);
  check_empty(*rig.world.store);
}

// Slots that a dead daemon's manager was filling are free again once nothing can write into them any more.
TEST(after_a_daemon_that_died) {
  World world(4 * kMiB);
  SessionSpec spec;
  spec.fingerprint = make_key(1 + 0xf000'0000);
  spec.chunk_tokens = 256;
  spec.shards = {shard(0, kSlot)};
  spec.own_shard = 0;
  SessionId own = 0;
  CHECK_EQ(world.store->open_internal(spec, &own), Status::Ok);
  std::vector<Reservation> slots;
  CHECK_EQ(world.store->reserve(own, 0, Key{}, make_chain(1, 3), &slots), Status::Ok);
  world.crash_and_adopt();
  TierManagerConfig config;
  config.arena_bytes = 4 * kMiB;
  config.arena = world.arena->base();
  config.now_ms = [&] { return world.clock_ms.load(); };
  TierManager manager(config, world.store.get(), {std::make_shared<MemoryTier>(tiers::MemoryTierConfig{})});
  manager.start();
  CHECK_EQ(world.store->stats().slots_quarantined, 3u);
  world.clock_ms += 10'000;
  wait_until([&] { return world.store->stats().slots_quarantined == 0; }, "they are free");
  manager.stop();
  check_empty(*world.store);
}

namespace {

// Engines that store, look up and wait, while the tier fails now and then, chunks are evicted and cleared.
void random_life(std::uint64_t seed, int steps) {
  TierManagerConfig config;
  config.batch_bytes = 3 * kSlot;
  config.failed_ms = 1;
  Rig rig(config, 4 * kMiB, 6 * kMiB);
  FaultRates rates;
  rates.put_failed = rates.put_full = rates.put_dropped = 30;
  rates.get_failed = rates.get_corrupt = rates.get_missing = 30;
  rates.busy = 100;
  rig.tier->set_rates(rates);
  std::mt19937_64 random(seed);
  const std::vector<Engine> engines{Engine(rig.world, 1, kSlot), Engine(rig.world, 2, kSlot, 2, 0),
                                    Engine(rig.world, 2, kSlot, 2, 1)};
  std::uint64_t from_tier = 0;
  for (int i = 0; i < steps; ++i) {
    const std::size_t who = random() % engines.size();
    const auto rank = static_cast<std::uint16_t>(who == 2 ? 1 : 0);
    const auto chain = make_chain((who == 0 ? 1'000u : 2'000u) + random() % 12, 1 + random() % 10);
    const std::uint32_t before = rig.check(engines[who], chain, rank);
    const std::uint32_t more = rig.manager->wanted(engines[who].id, 0, chain, before).chunks;
    CHECK(before + more <= chain.size());
    if (more > 0 && random() % 4 != 0) {
      for (int turn = 0; turn < 200 && rig.expected(engines[who], chain) != 0; ++turn) ::poll(nullptr, 0, 1);
      const std::uint32_t after = rig.check(engines[who], chain, rank);
      from_tier += after > before ? after - before : 0;
    } else {
      const std::size_t done = rig.check(engines[who], chain, rank);
      if (done < chain.size()) rig.put(engines[who], chain, rank, done);
    }
    rig.world.clock_ms += random() % 3;
    std::uint64_t unused = 0;
    const Key fingerprint = make_key(1 + random() % 2 + 0xf000'0000);
    if (random() % 100 == 0) rig.manager->clear(random() % 2 == 0 ? nullptr : &fingerprint, &unused);
  }
  CHECK_GT(from_tier, static_cast<std::uint64_t>(steps) / 20);
  rig.tier->set_rates({});
  rig.check_nothing_leaks();
}

}  // namespace

// A daemon that was killed before it had written what memory holds writes it in its next life.
TEST(what_a_former_life_left_unwritten_is_written) {
  World world(4 * kMiB);
  const auto chain = make_chain(1, 12);
  for (std::uint16_t rank = 0; rank < 2; ++rank) CHECK_EQ(Engine(world, 1, kSlot, 2, rank).put(chain), 12u);
  world.crash_and_adopt();
  std::uint64_t cursor = 0;
  CHECK_EQ(world.store->sealed(&cursor, 5).size(), 5u);
  CHECK_NE(cursor, 0u);
  const auto medium = std::make_shared<MemoryTier>(tiers::MemoryTierConfig{});
  TierManagerConfig config;
  config.arena_bytes = 4 * kMiB;
  config.arena = world.arena->base();
  TierManager manager(config, world.store.get(), {medium});
  CHECK(!manager.idle());
  manager.start();
  wait_until([&] { return manager.idle(); }, "the manager is idle");
  CHECK_EQ(manager.stats().written, 24u);
  CHECK_EQ(medium->stats().shards, 24u);
  manager.stop();
}

TEST(whatever_happens_nothing_wrong_is_served_and_nothing_leaks) {
  const char* asked = std::getenv("KVCOMMONS_SEED");
  const std::uint64_t seed = asked != nullptr ? std::strtoull(asked, nullptr, 10) : std::random_device{}();
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  random_life(seed, 1'500);
  random_life(4711, 500);
}

TEST_MAIN()
