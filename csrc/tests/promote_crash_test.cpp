// kill -9 at every named point of a promotion, from a real disk into memory that outlives the daemon: the next life
// serves nothing wrong, has all that the disk had, and nothing of the former one's room is left over.
#include <signal.h>
#include <sys/wait.h>

#include "core/seq_points.h"
#include "core/tiers/manager.h"
#include "disk_fixture.h"
#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kSlot = 64 << 10, kArena = 4 * kMiB, kDisk = 32 * kMiB;
constexpr std::uint32_t kRanks = 2;
constexpr std::size_t kLength = 12;

void fill(std::byte* at, const Key& key, std::uint32_t rank) {
  std::mt19937_64 random(key.prefix64() + rank);
  for (std::size_t i = 0; i < kSlot; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(at + i, &word, 8);
  }
}

// One life of the daemon over memory and a file that outlive it.
struct Life {
  Life(World& w, const Folder& folder) : world(w), disk(make_disk_tier(disk_config(folder, kDisk))) {
    TierManagerConfig config;
    config.arena_bytes = kArena;
    config.arena = world.arena->base();
    config.batch_bytes = 4 * kSlot * kRanks;  // a chain comes in several batches
    config.read_bytes_in_flight_max = kArena;
    config.former_ms = 0;  // no device writes into memory for a process that is gone: the kernel has waited for it
    manager = std::make_unique<TierManager>(config, world.store.get(), std::vector<std::shared_ptr<Tier>>{disk});
    manager->start();
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) engines.emplace_back(world, 1, kSlot, kRanks, rank);
  }
  void settle() const {
    await([this] { return manager->idle(); });
  }
  void put(const std::vector<Key>& chain) const {
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
      const auto slots = engines[rank].reserve(chain);
      std::vector<CommitItem> items;
      for (std::size_t i = 0; i < chain.size(); ++i) {
        if (slots[i].status != ReserveStatus::Granted) continue;
        fill(world.arena->base() + slots[i].slot.offset_bytes, chain[i], rank);
        items.push_back({slots[i].slot, 0, {}});
      }
      std::uint32_t accepted = 0;
      CHECK_EQ(world.store->commit(engines[rank].id, items, &accepted), Status::Ok);
    }
    settle();
  }
  // On the disk alone: memory is cleared of everything, and what the disk has is left there.
  void forget_memory() const {
    std::uint64_t tier_shards = 0;
    (void)manager->clear(Selection{}, kInMemory, std::span(&tier_shards, 1));
    CHECK_EQ(world.store->stats().chunks, 0u);
  }
  std::uint32_t want(const std::vector<Key>& chain) const {
    return manager->wanted(engines[0].id, 0, chain, engines[0].hits(chain)).chunks;
  }
  // Of the leading chunks that can be hit, every byte is right.
  std::uint32_t check(const std::vector<Key>& chain) const {
    const LookupResult found = engines[0].lease(chain);
    if (found.hit_chunks == 0) return 0;
    for (std::uint32_t rank = 0; rank < kRanks; ++rank) {
      std::vector<SlotRef> slots;
      CHECK_EQ(engines[rank].begin(found.lease, &slots), Status::Ok);
      std::vector<std::byte> right(kSlot);
      for (std::size_t i = 0; i < slots.size(); ++i) {
        fill(right.data(), chain[i], rank);
        CHECK(std::memcmp(right.data(), world.arena->base() + slots[i].offset_bytes, kSlot) == 0);
      }
    }
    for (const Engine& engine : engines) engine.release(found.lease);
    return found.hit_chunks;
  }

  World& world;
  std::shared_ptr<Tier> disk;
  std::unique_ptr<TierManager> manager;
  std::vector<Engine> engines;
};

std::atomic<int> kill_at{-1};
std::atomic<int> passes_left{0};

void die_there(SeqPoint point) {
  if (static_cast<int>(point) != kill_at.load()) return;
  if (passes_left.fetch_sub(1) == 0) (void)::kill(::getpid(), SIGKILL);
}

// Brings two chains into memory and dies on the way.
[[noreturn]] void live(World& world, const Folder& folder, const std::vector<std::vector<Key>>& chains, SeqPoint point,
                       int passes) {
  world.open();
  const Life life(world, folder);
  life.settle();
  kill_at = static_cast<int>(point);
  passes_left = passes;
  seq_hook().store(die_there);
  for (const auto& chain : chains) (void)life.want(chain);
  life.settle();
  ::_exit(1);  // it was not killed: the point was not passed so often
}

void killed_at(SeqPoint point, int passes) {
  World world(kArena);
  const Folder folder;
  const std::vector<std::vector<Key>> chains{make_chain(1, kLength), make_chain(2, kLength)};
  {
    const Life life(world, folder);
    for (const auto& chain : chains) life.put(chain);
    life.forget_memory();
  }
  world.store.reset();
  const pid_t child = ::fork();
  CHECK_GE(child, 0);
  if (child == 0) live(world, folder, chains, point, passes);
  int status = 0;
  CHECK_EQ(::waitpid(child, &status, 0), child);
  CHECK(WIFSIGNALED(status));
  CHECK_EQ(WTERMSIG(status), SIGKILL);

  world.open();
  const Life life(world, folder);
  CHECK_EQ(world.store->stats().slots_filling, 0u);
  // The dead daemon's own reservations need no proof of death: it was this one's former self.
  await([&] { return world.store->stats().slots_quarantined == 0 && world.store->unresolved_sessions().empty(); });
  for (const auto& chain : chains) (void)life.check(chain);
  for (const auto& chain : chains) {
    std::uint32_t hits = 0;
    await([&] {
      (void)life.want(chain);
      life.settle();
      return (hits = life.check(chain)) == kLength;
    });
  }
  std::uint64_t tier_shards = 0;
  life.manager->clear(nullptr, &tier_shards);
  CHECK_EQ(tier_shards, std::uint64_t{2 * kLength * kRanks});
  check_empty(*world.store);
}

}  // namespace

TEST(killed_with_room_for_what_was_not_read) {
  for (const int passes : {0, 2}) killed_at(SeqPoint::PromoteReserved, passes);
}

TEST(killed_with_bytes_that_were_not_committed) {
  for (const int passes : {0, 1, 3}) killed_at(SeqPoint::PromoteRead, passes);
}

TEST(killed_between_the_shards_of_a_chunk) {
  for (const int passes : {0, 1, 4}) killed_at(SeqPoint::PromoteCommitted, passes);
}

TEST(killed_when_all_of_it_was_there) {
  for (const int passes : {0, 3}) killed_at(SeqPoint::PromoteEnded, passes);
}

TEST_MAIN()
