// Some of the chunks, in memory and behind it: where they are, and clearing them in some places.
#include <poll.h>

#include <chrono>

#include "core/tiers/faulty_tier.h"
#include "core/tiers/manager.h"
#include "core/tiers/memory_tier.h"
#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kSlot = 64 << 10;
constexpr Places kOnTier = place_of_tier(0);
const Key kFirst = make_key(1 + 0xf000'0000);

struct Rig {
  World world{8 * kMiB};
  std::shared_ptr<tiers::FaultyTier> tier;
  std::unique_ptr<TierManager> manager;

  Rig() {
    tiers::MemoryTierConfig kept;
    kept.capacity_bytes = 64 * kMiB;
    tier = std::make_shared<tiers::FaultyTier>(std::make_shared<tiers::MemoryTier>(kept), 1);
    TierManagerConfig config;
    config.arena_bytes = 8 * kMiB;
    config.arena = world.arena->base();
    config.now_ms = [this] { return world.clock_ms.load(); };
    manager = std::make_unique<TierManager>(config, world.store.get(), std::vector<std::shared_ptr<Tier>>{tier});
    manager->start();
  }
  ~Rig() {
    tier->hold(false);
    manager.reset();
  }
  void put(const Engine& engine, const std::vector<Key>& chain, std::uint64_t tenant = 0, std::size_t from = 0) {
    const std::vector<Key> keys(chain.begin() + static_cast<std::ptrdiff_t>(from), chain.end());
    const auto slots = engine.reserve(keys, from == 0 ? Key{} : chain[from - 1], {}, tenant);
    CHECK_EQ(engine.commit(slots), keys.size());
  }
  void settle() {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (!manager->idle()) {
      CHECK(std::chrono::steady_clock::now() < deadline);
      ::poll(nullptr, 0, 1);
    }
  }
  std::pair<std::uint64_t, std::uint64_t> clear(const Selection& selection, Places places = kEverywhere) {
    std::vector<std::uint64_t> shards(1);
    const std::uint64_t chunks = manager->clear(selection, places, shards);
    return {chunks, shards[0]};
  }
  std::vector<Places> places(const std::vector<Key>& chain) { return manager->places(kFirst, chain); }
};

using Cleared = std::pair<std::uint64_t, std::uint64_t>;

}  // namespace

// A tenant's chunks go from memory and from the tier, also those that memory no longer has.
TEST(a_tenant_is_cleared_everywhere) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto mine = make_chain(1, 4), theirs = make_chain(2, 4), behind = make_chain(3, 4);
  rig.put(engine, mine, 7);
  rig.put(engine, theirs, 8);
  rig.put(engine, behind, 7);
  rig.settle();
  CHECK_EQ(rig.world.store->let_go(kFirst, behind), 4u);
  CHECK(rig.clear({{}, 7, {}, 0}) == (Cleared{4, 8}));
  CHECK(rig.places(mine) == std::vector<Places>(4, 0));
  CHECK(rig.places(behind) == std::vector<Places>(4, 0));
  CHECK(rig.places(theirs) == std::vector<Places>(4, kInMemory | kOnTier));
}

// One place alone: what memory loses is still on the tier, what the tier loses still in memory.
TEST(one_place_is_cleared_alone) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 4);
  rig.put(engine, chain);
  rig.settle();
  CHECK(rig.clear({kFirst, {}, {}, 0}, kInMemory) == (Cleared{4, 0}));
  CHECK(rig.places(chain) == std::vector<Places>(4, kOnTier));
  CHECK_EQ(rig.manager->wanted(engine.id, 0, chain, 0).chunks, 4u);
  rig.settle();
  CHECK(rig.places(chain) == std::vector<Places>(4, kInMemory | kOnTier));
  CHECK(rig.clear({kFirst, 0, {}, 0}, kOnTier) == (Cleared{0, 4}));
  CHECK(rig.places(chain) == std::vector<Places>(4, kInMemory));
}

// A chunk that only the tier has goes with all that follows it there, of which memory knows nothing.
TEST(what_follows_on_a_tier_goes_with_a_key) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 6);
  rig.put(engine, chain);
  rig.settle();
  CHECK_EQ(rig.world.store->let_go(kFirst, chain), 6u);
  CHECK(rig.clear({kFirst, {}, {chain[2]}, 0}) == (Cleared{0, 4}));
  CHECK(rig.places(chain) == (std::vector<Places>{kOnTier, kOnTier, 0, 0, 0, 0}));
}

// By age the tier loses what memory loses; what it alone has is of no known age and stays.
TEST(a_tier_loses_by_age_what_memory_loses) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto kept = make_chain(1, 2), old = make_chain(2, 2);
  rig.put(engine, kept);
  rig.put(engine, old);
  rig.settle();
  CHECK_EQ(rig.world.store->let_go(kFirst, kept), 2u);
  rig.world.clock_ms += 1'000;
  CHECK(rig.clear({{}, {}, {}, 1'000}) == (Cleared{2, 2}));
  CHECK(rig.places(old) == std::vector<Places>(2, 0));
  CHECK(rig.places(kept) == std::vector<Places>(2, kOnTier));
}

// What was on its way to the tier when it was cleared does not stay there; what was not meant does.
TEST(a_write_under_way_is_undone_where_it_was_meant) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  rig.tier->hold(true);
  const auto mine = make_chain(1, 2), theirs = make_chain(2, 2), named = make_chain(3, 3);
  rig.put(engine, mine, 7);
  rig.put(engine, theirs, 8);
  rig.put(engine, named, 9);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (rig.manager->stats().write_waiting != 0) {
    CHECK(std::chrono::steady_clock::now() < deadline);
    ::poll(nullptr, 0, 1);
  }
  CHECK_EQ(rig.clear({{}, 7, {}, 0}).first, 2u);
  CHECK_EQ(rig.clear({kFirst, {}, {named[1]}, 0}).first, 2u);
  rig.tier->hold(false);
  rig.settle();
  CHECK_EQ(rig.tier->stats().shards, 3u);
  CHECK(rig.places(mine) == std::vector<Places>(2, 0));
  CHECK(rig.places(theirs) == std::vector<Places>(2, kInMemory | kOnTier));
  CHECK(rig.places(named) == (std::vector<Places>{kInMemory | kOnTier, 0, 0}));
}

// What is moved behind memory is written there first, and then let go of; brought back, it is in both; and a tier may
// lose it again.
TEST(chunks_are_moved_behind_memory_and_back) {
  Rig rig;
  const Engine engine(rig.world, 1, kSlot);
  const auto chain = make_chain(1, 5);
  rig.put(engine, chain);
  rig.settle();
  CHECK(rig.clear({kFirst, 0, {}, 0}, kOnTier) == (Cleared{0, 5}));
  CHECK_EQ(rig.manager->write(kFirst, chain), 5u);
  CHECK_EQ(rig.manager->write(make_key(9), chain), 0u);
  rig.settle();
  CHECK(rig.places(chain) == std::vector<Places>(5, kInMemory | kOnTier));
  CHECK_EQ(rig.world.store->let_go(kFirst, std::span(chain).subspan(2)), 3u);
  CHECK_EQ(rig.manager->bring(kFirst, chain).chunks, 3u);
  rig.settle();
  CHECK(rig.places(chain) == std::vector<Places>(5, kInMemory | kOnTier));
  CHECK_EQ(engine.hits(chain), 5u);
  CHECK_EQ(rig.manager->bring(kFirst, chain).chunks, 0u);
  CHECK_EQ(rig.manager->remove(0, kFirst, std::span(chain).first(2)), 2u);
  CHECK_EQ(rig.manager->remove(1, kFirst, chain), 0u);
  CHECK(rig.places(chain) ==
        (std::vector<Places>{kInMemory, kInMemory, kInMemory | kOnTier, kInMemory | kOnTier, kInMemory | kOnTier}));
}

TEST_MAIN()
