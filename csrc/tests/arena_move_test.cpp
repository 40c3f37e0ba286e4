// An arena of another size: what fits of the former one is served on, what does not are the ends of old chains.
#include "arena_move.h"

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <map>
#include <random>

#include "memory.h"
#include "node_fixture.h"
#include "records.h"
#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {
constexpr std::uint64_t kSlot = 64 << 10;

std::byte content_of(const Key& key) { return static_cast<std::byte>(key.bytes[3] | 1); }

void fill(World& w, const Engine& e, const std::vector<Key>& keys, const Key& parent = {},
          std::uint64_t slot_bytes = kSlot) {
  const auto slots = e.reserve(keys, parent);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    CHECK_EQ(slots[i].status, ReserveStatus::Granted);
    std::memset(w.arena->base() + slots[i].slot.offset_bytes, static_cast<int>(content_of(keys[i])), slot_bytes);
  }
  CHECK_EQ(e.commit(slots, {7, 8}), keys.size());
  w.clock_ms += 1'000;
}

// What is left to serve of a chain, with its content checked.
std::uint32_t served(World& w, const Engine& e, const std::vector<Key>& keys, std::uint64_t slot_bytes = kSlot) {
  const auto lease = e.lease(keys);
  if (lease.hit_chunks == 0) return 0;
  std::vector<SlotRef> slots;
  CHECK_EQ(e.begin(lease.lease, &slots), Status::Ok);
  CHECK_EQ(slots.size(), lease.hit_chunks);
  for (std::size_t i = 0; i < slots.size(); ++i) {
    const std::byte* at = w.arena->base() + slots[i].offset_bytes;
    CHECK(std::all_of(at, at + slot_bytes, [&](std::byte b) { return b == content_of(keys[i]); }));
  }
  e.release(lease.lease);
  return lease.hit_chunks;
}

// The daemon ends, and the next one is configured otherwise.
struct Resize {
  explicit Resize(World& world) : w(world), old_arena(std::move(w.arena)), old_records(std::move(w.records)) {
    w.store.reset();
  }
  void make_new(std::uint64_t arena_bytes) {
    w.config.arena_bytes = arena_bytes;
    w.arena = std::make_unique<Memory>(arena_bytes);
    w.records = std::make_unique<Memory>(Store::records_bytes(w.config));
  }
  std::optional<MovedArena> move() {
    return move_arena({old_arena->fd(), old_records->fd(), w.arena->fd(), w.records->fd()}, w.config);
  }
  MovedArena to(std::uint64_t arena_bytes) {
    make_new(arena_bytes);
    const auto moved = move();
    CHECK(moved.has_value());
    w.open();
    return *moved;
  }
  World& w;
  std::unique_ptr<Memory> old_arena, old_records;
};
}  // namespace

TEST(a_larger_arena_serves_all_that_the_smaller_one_had) {
  World w(8 * kMiB);
  Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 40);
  fill(w, e, keys);
  w.store->pin(std::vector<Key>{keys[0]}, true);
  Resize resize(w);
  const MovedArena moved = resize.to(32 * kMiB);
  CHECK_EQ(moved.chunks, 40u);
  CHECK_EQ(moved.chunks_moved, 40u);
  CHECK_EQ(moved.bytes_moved, 40 * kSlot);
  CHECK(w.store->adopted());
  CHECK_EQ(w.store->stats().chunks, 40u);
  CHECK_EQ(w.store->stats().pinned_chunks, 1u);
  CHECK_EQ(w.store->stats().arena_bytes, 32 * kMiB);
  e = Engine(w, 1, kSlot);
  CHECK_EQ(served(w, e, keys), 40u);
  std::uint64_t cursor = 0;
  CHECK_EQ(w.store->inventory(&cursor, 100)[0].text_keys.size(), 2u);
  fill(w, e, make_chain(2, 300));  // the new room is there
  CHECK_EQ(served(w, e, keys), 40u);
}

TEST(a_smaller_arena_keeps_the_latest_and_loses_the_ends_of_old_chains) {
  World w(16 * kMiB);
  Engine e(w, 1, kSlot);
  const auto shared = make_chain(1, 10), old = make_chain(2, 90), fresh = make_chain(3, 60);
  fill(w, e, shared);
  fill(w, e, old, shared.back());
  fill(w, e, fresh, shared.back());  // the latest, on the oldest of all
  Resize resize(w);
  const MovedArena moved = resize.to(6 * kMiB);
  CHECK_EQ(moved.chunks, 160u);
  CHECK_EQ(moved.chunks_moved, 6 * kMiB / kSlot);
  e = Engine(w, 1, kSlot);
  auto chain = shared;
  chain.insert(chain.end(), fresh.begin(), fresh.end());
  CHECK_EQ(served(w, e, chain), 70u);
  chain = shared;
  chain.insert(chain.end(), old.begin(), old.end());
  CHECK_EQ(served(w, e, chain), 10u + 26u);  // a whole prefix of the old one, as far as there was room
  CHECK_EQ(w.store->stats().chunks, 96u);    // and nothing that no chain leads to
}

TEST(pinned_chunks_stay_before_all_others) {
  World w(8 * kMiB);
  Engine e(w, 1, kSlot);
  const auto pinned = make_chain(1, 20), later = make_chain(2, 80);
  fill(w, e, pinned);
  CHECK_EQ(w.store->pin(pinned, true), 20u);
  fill(w, e, later);
  Resize resize(w);
  resize.to(2 * kMiB);
  e = Engine(w, 1, kSlot);
  CHECK_EQ(served(w, e, pinned), 20u);
  CHECK_EQ(served(w, e, later), 12u);
  CHECK_EQ(w.store->stats().pinned_chunks, 20u);
}

TEST(a_chunk_of_several_shards_is_moved_whole_or_not_at_all) {
  World w(8 * kMiB);
  const auto keys = make_chain(1, 30);
  std::vector<Engine> ranks;
  for (std::uint32_t rank = 0; rank < 2; ++rank) {
    const Engine e(w, 1, kSlot, 2, rank);
    fill(w, e, keys);
  }
  Resize resize(w);
  CHECK_EQ(resize.to(kMiB + kMiB / 2).chunks_moved, 12u);
  const Engine a(w, 1, kSlot, 2, 0), b(w, 1, kSlot, 2, 1);
  CHECK_EQ(served(w, a, keys), 12u);
  CHECK_EQ(served(w, b, keys), 12u);
  CHECK_EQ(w.store->stats().slots_sealed, 24u);
}

TEST(memory_of_the_old_arena_is_given_back_but_for_what_is_read_of_it) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 100);
  fill(w, e, keys);
  const std::vector<Key> read(keys.begin(), keys.begin() + 3);
  std::vector<SlotRef> slots;
  CHECK_EQ(e.begin(e.lease(read).lease, &slots), Status::Ok);
  Resize resize(w);
  CHECK_EQ(resize.to(4 * kMiB).chunks_moved, 64u);
  CHECK_EQ(allocated_bytes(resize.old_arena->fd()), 3 * kSlot);
  CHECK_EQ(allocated_bytes(w.arena->fd()), 64 * kSlot);
  for (std::size_t i = 0; i < 3; ++i) {
    const std::byte* at = resize.old_arena->base() + slots[i].offset_bytes;
    CHECK(std::all_of(at, at + kSlot, [&](std::byte b) { return b == content_of(read[i]); }));
  }
  const Engine fresh(w, 1, kSlot);
  CHECK_EQ(served(w, fresh, keys), 64u);
}

TEST(other_slabs_and_other_limits_are_moved_to_as_well) {
  World w(16 * kMiB);
  Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 100);
  fill(w, e, keys);
  const auto before = recorded_arena(w.records->fd(), w.config);
  CHECK(before && before->as_configured);
  Resize resize(w);
  w.config.slab_bytes = 2 * kMiB;
  w.config.sessions_max = 8;
  const auto found = recorded_arena(resize.old_records->fd(), w.config);
  CHECK(found && !found->as_configured);
  CHECK_EQ(found->arena_bytes, 16 * kMiB);
  CHECK_EQ(resize.to(16 * kMiB).chunks_moved, 100u);
  e = Engine(w, 1, kSlot);
  CHECK_EQ(served(w, e, keys), 100u);
}

TEST(records_that_are_torn_are_not_moved_and_nothing_is_touched) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  fill(w, e, make_chain(1, 10));
  Resize resize(w);
  resize.make_new(16 * kMiB);
  const std::uint64_t had = allocated_bytes(resize.old_arena->fd());
  resize.old_records->base()[20] ^= std::byte{1};  // in the header
  CHECK(!recorded_arena(resize.old_records->fd(), w.config));
  CHECK(!resize.move());
  CHECK_EQ(allocated_bytes(resize.old_arena->fd()), had);
  CHECK_EQ(allocated_bytes(w.arena->fd()), 0u);
}

TEST(a_chunk_whose_record_is_torn_is_lost_with_what_follows_it) {
  World w(8 * kMiB);
  Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 20), other = make_chain(2, 5);
  const auto slots = e.reserve(keys);
  CHECK_EQ(e.commit(slots), 20u);
  fill(w, e, other);
  {
    internal::Records records(internal::Geometry::of(w.config), w.records->fd());
    const auto within = slots[8].slot.offset_bytes % records.geometry().slab_bytes / kSlot;
    const auto slab = slots[8].slot.offset_bytes / records.geometry().slab_bytes;
    records.slot(static_cast<std::uint32_t>(slab * records.geometry().slots_per_slab + within)).tenant ^= 1;
  }
  Resize resize(w);
  const MovedArena moved = resize.to(16 * kMiB);
  CHECK_EQ(moved.chunks_moved, 13u);
  CHECK_EQ(moved.chunks, 13u);
  e = Engine(w, 1, kSlot);
  CHECK_EQ(e.hits(keys), 8u);
  CHECK_EQ(served(w, e, other), 5u);
}

TEST(a_move_that_is_killed_goes_on_where_it_was_and_loses_nothing) {
  std::mt19937_64 random(4711);
  std::uint32_t cut_off = 0;
  for (int round = 0; round < 12; ++round) {
    World w(16 * kMiB);
    Engine e(w, 1, kSlot);
    std::vector<std::vector<Key>> chains;
    for (std::uint64_t i = 0; i < 6; ++i) {
      chains.push_back(make_chain(i + 1, 40));
      fill(w, e, chains.back());
    }
    Resize resize(w);
    resize.make_new(24 * kMiB);
    std::fflush(nullptr);
    const pid_t child = ::fork();
    CHECK(child >= 0);
    if (child == 0) {
      resize.move();
      ::_exit(0);
    }
    // At any moment of it: as soon as so much has come over.
    const std::uint64_t bytes = random() % (14 * kMiB);
    while (allocated_bytes(w.arena->fd()) < bytes && ::waitpid(child, nullptr, WNOHANG) == 0) {
    }
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    const auto moved = resize.move();
    CHECK(moved.has_value());
    cut_off += moved->bytes_moved != 0 ? 1 : 0;
    CHECK_EQ(moved->chunks, 240u);
    CHECK_EQ(moved->chunks_moved, 240u);
    CHECK_EQ(allocated_bytes(resize.old_arena->fd()), 0u);
    w.open();
    e = Engine(w, 1, kSlot);
    for (const auto& chain : chains) CHECK_EQ(served(w, e, chain), 40u);
  }
  CHECK(cut_off != 0);
}

TEST(random_arenas_keep_whole_chains_and_their_content) {
  std::mt19937_64 random(815);
  for (int round = 0; round < 40; ++round) {
    World w(8 * kMiB);
    w.config.verify_one_in = 0;
    std::map<std::uint64_t, std::vector<Key>> chains;
    const std::uint64_t sizes[] = {4'096, 12'288, kSlot, 5 * kSlot};
    for (std::uint64_t i = 0; i < 12; ++i) {
      const Engine e(w, 1 + i % 4, sizes[i % 4]);
      chains[i] = make_chain(100 * static_cast<std::uint64_t>(round) + i + 1, 1 + random() % 12);
      const auto slots = e.reserve(chains[i]);
      for (std::size_t k = 0; k < slots.size(); ++k) {
        if (slots[k].status != ReserveStatus::Granted) continue;
        std::memset(w.arena->base() + slots[k].slot.offset_bytes, static_cast<int>(content_of(chains[i][k])),
                    sizes[i % 4]);
      }
      e.commit(slots);
      w.clock_ms += random() % 3;
    }
    const std::uint64_t had = w.store->stats().chunks;
    Resize resize(w);
    const MovedArena moved = resize.to((2 + random() % 12) * kMiB);
    CHECK_EQ(moved.chunks, had);
    CHECK_EQ(w.store->stats().chunks, moved.chunks_moved);
    std::uint64_t found = 0;
    for (const auto& [i, keys] : chains) {
      const Engine e(w, 1 + i % 4, sizes[i % 4]);
      found += served(w, e, keys, sizes[i % 4]);
    }
    CHECK_EQ(found, moved.chunks_moved);
    w.store->clear(nullptr);
    check_empty(*w.store);
  }
}

TEST(a_node_that_is_started_with_another_size_keeps_its_engines_and_what_they_stored) {
  const TempDir directory;
  NodeConfig config = node_config(directory);
  config.holder_socket = directory.file("h");
  const auto holder = holder_process(config.holder_socket);
  auto node = std::make_unique<NodeCore>(config);
  node->start();
  Client client(client_config(config.socket_path));
  CHECK(client.ensure_connected());
  const auto keys = keys_of(1, 200);
  store_chunks(client, keys);
  const auto id = node->arena_id();
  for (const std::uint64_t arena_bytes : {4 * kTestArenaBytes, kTestArenaBytes / 8}) {
    node->stop();
    config.store.arena_bytes = arena_bytes;
    node = std::make_unique<NodeCore>(config);
    node->start();
    CHECK(node->adopted());
    CHECK(node->arena_id() != id);
    const bool grows = arena_bytes > kTestArenaBytes;
    CHECK_EQ(node->remarks().size(), grows ? 1u : 0u);
    CHECK_EQ(node->notes().size(), grows ? 0u : 1u);
    const std::uint32_t fit = grows ? 200 : static_cast<std::uint32_t>(arena_bytes / kSlotBytes);
    Client::Hit hit;
    const auto is_back = [&] {
      return client.ensure_connected() && client.lookup(keys, 1, false, &hit) == Status::Ok && hit.hit_chunks == fit;
    };
    wait_until(is_back, "the engine is back");
    CHECK(client.lookup(keys, 1, true, &hit) == Status::Ok);
    std::vector<SlotRef> slots;
    client.copy_started();
    CHECK(client.begin(hit.lease, &slots) == Status::Ok);
    const Client::ArenaRef arena = client.arena();
    for (std::size_t i = 0; i < slots.size(); ++i) {
      CHECK(std::to_integer<std::size_t>(arena.get()[slots[i].offset_bytes]) == (i + 1) % 256);
    }
    client.copy_finished();
    CHECK(client.release(hit.lease) == Status::Ok);
  }
  // And from there as every arena.
  node->stop();
  node->start();
  CHECK(node->adopted());
  CHECK_EQ(node->notes().size(), 0u);
}

TEST_MAIN()
