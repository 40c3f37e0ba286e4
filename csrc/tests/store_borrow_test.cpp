// What the node itself does with chunks: borrowing sealed shards, sessions of its own.
#include <thread>

#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kSlot = 128 << 10;

Key fingerprint_of(std::uint64_t n) { return make_key(n + 0xf000'0000); }

SessionSpec spec_of(std::uint64_t fingerprint, std::uint32_t ranks = 1, std::uint32_t own = 0) {
  SessionSpec spec;
  spec.fingerprint = fingerprint_of(fingerprint);
  spec.chunk_tokens = 256;
  for (std::uint32_t r = 0; r < ranks; ++r) spec.shards.push_back(shard(static_cast<std::uint16_t>(r), kSlot));
  spec.own_shard = own;
  return spec;
}

// Chunks that other work would need room for: as many as fit, and more.
void press(const Engine& engine, std::uint64_t chain, std::size_t chunks = 64) {
  for (std::size_t i = 0; i < chunks; ++i) engine.put(make_chain(chain * 1'000 + i, 1));
}

}  // namespace

// A borrowed shard is neither evicted nor reused, and all that is known of it comes with it.
TEST(borrowed_shards_stay) {
  World world(4 * kMiB);
  const Engine engine(world, 1, kSlot);
  const auto chain = make_chain(1, 2);
  engine.commit(engine.reserve({chain[0]}), {7, 8}, 4711);
  engine.put({chain[1]}, chain[0]);
  Borrowed first, second;
  CHECK(world.store->borrow(fingerprint_of(1), chain[0], shard(0, kSlot).rect, &first));
  CHECK(world.store->borrow(fingerprint_of(1), chain[1], shard(0, kSlot).rect, &second));
  CHECK(first.text_keys == (std::vector<std::uint64_t>{7, 8}));
  CHECK_EQ(first.checksum, 4711u);
  CHECK_EQ(first.payload_bytes, kSlot);
  CHECK_EQ(first.chunk_tokens, 256u);
  CHECK(first.parent.zero());
  CHECK(second.parent == chain[0]);
  press(engine, 2);
  CHECK_EQ(engine.hits(chain), 2u);
  world.store->give_back(first);
  world.store->give_back(second);
  press(engine, 3);
  CHECK_EQ(engine.hits(chain), 0u);
  world.store->clear(nullptr);
  check_empty(*world.store);
}

// What is not sealed, is another model's or another rank's cannot be borrowed.
TEST(only_sealed_shards_can_be_borrowed) {
  World world(4 * kMiB);
  const Engine engine(world, 1, kSlot, 2, 0);
  const Engine other(world, 2, kSlot);
  const auto chain = make_chain(1, 1);
  Borrowed out;
  const auto slots = engine.reserve(chain);
  CHECK(!world.store->borrow(fingerprint_of(1), chain[0], shard(0, kSlot).rect, &out));
  engine.commit(slots);
  CHECK(world.store->borrow(fingerprint_of(1), chain[0], shard(0, kSlot).rect, &out));
  world.store->give_back(out);
  CHECK(!world.store->borrow(fingerprint_of(1), chain[0], shard(1, kSlot).rect, &out));
  CHECK(!world.store->borrow(fingerprint_of(2), chain[0], shard(0, kSlot).rect, &out));
  CHECK(!world.store->borrow(fingerprint_of(3), chain[0], shard(0, kSlot).rect, &out));
}

// A chunk that is cleared while it is borrowed can't be hit, and its slot is reused only when it was given back.
TEST(cleared_while_borrowed) {
  World world(4 * kMiB);
  const Engine engine(world, 1, kSlot);
  const auto chain = make_chain(1, 1);
  engine.put(chain);
  Borrowed out;
  CHECK(world.store->borrow(fingerprint_of(1), chain[0], shard(0, kSlot).rect, &out));
  world.store->clear(nullptr);
  CHECK_EQ(engine.hits(chain), 0u);
  CHECK_EQ(world.store->stats().slots_draining, 1u);
  press(engine, 2);
  for (const auto& slot : engine.reserve(make_chain(9, 8))) CHECK_NE(slot.slot.offset_bytes, out.slot.offset_bytes);
  engine.put(chain);  // stored again meanwhile: another slot, and the borrower's end changes nothing of it
  world.store->give_back(out);
  CHECK_EQ(world.store->stats().slots_draining, 0u);
  CHECK_EQ(engine.hits(chain), 1u);
}

// The daemon died while it read from a slot: the next life serves the chunk and may evict it.
TEST(borrowed_by_a_daemon_that_died) {
  World world(4 * kMiB);
  const auto chain = make_chain(1, 2);
  {
    const Engine engine(world, 1, kSlot);
    engine.put(chain);
    Borrowed out;
    CHECK(world.store->borrow(fingerprint_of(1), chain[1], shard(0, kSlot).rect, &out));
    world.store->resolve_session(engine.id);
  }
  world.crash_and_adopt();
  const Engine engine(world, 1, kSlot);
  CHECK_EQ(engine.hits(chain), 2u);
  press(engine, 2);
  CHECK_EQ(engine.hits(chain), 0u);
  world.store->clear(nullptr);
  check_empty(*world.store);
}

// An internal session fills slots as an engine does, for each rectangle, and tells of the chunk but not of itself.
TEST(internal_sessions_complete_chunks) {
  World world(4 * kMiB);
  const Engine engine(world, 1, kSlot, 2, 0);
  const auto chain = make_chain(1, 1);
  (void)events_of(*world.store, Event::Kind::SessionOpened);
  std::vector<SessionId> own(2);
  for (std::uint32_t r = 0; r < 2; ++r) CHECK_EQ(world.store->open_internal(spec_of(1, 2, r), &own[r]), Status::Ok);
  CHECK_EQ(world.store->stats().sessions, 1u);
  for (std::uint32_t r = 0; r < 2; ++r) {
    CHECK(world.store->sealed_shards(engine.id, chain) == (std::vector<std::uint8_t>{r == 1, 0}));
    std::vector<Reservation> slots;
    CHECK_EQ(world.store->reserve(own[r], 5, Key{}, chain, &slots), Status::Ok);
    const CommitItem item{slots[0].slot, 1, {}};
    std::uint32_t accepted = 0;
    CHECK_EQ(world.store->commit(own[r], std::span(&item, 1), &accepted), Status::Ok);
    CHECK_EQ(accepted, 1u);
    CHECK_EQ(engine.hits(chain), r);
  }
  for (const SessionId id : own) world.store->close_internal(id);
  bool gap = false;
  const auto events = world.store->drain_events(100, &gap);
  CHECK_EQ(events.size(), 1u);
  CHECK_EQ(events[0].kind, Event::Kind::Committed);
  CHECK_EQ(world.store->stats().sessions_unresolved, 0u);
}

// Slots that a dead daemon's own session was filling wait for a word of their own, not for an engine's proof.
TEST(internal_sessions_of_a_former_life) {
  World world(4 * kMiB);
  SessionId own = 0;
  CHECK_EQ(world.store->open_internal(spec_of(1), &own), Status::Ok);
  std::vector<Reservation> slots;
  CHECK_EQ(world.store->reserve(own, 0, Key{}, make_chain(1, 3), &slots), Status::Ok);
  world.crash_and_adopt();
  CHECK(world.store->unresolved_sessions().empty());
  CHECK_EQ(world.store->stats().slots_quarantined, 3u);
  world.store->resolve_former_internal();
  CHECK_EQ(world.store->stats().slots_quarantined, 0u);
  world.store->clear(nullptr);
  check_empty(*world.store);
}

// The node hears of each commit of an engine, not of its own sessions', and can ask what a session declared.
TEST(commits_are_heard) {
  World world(4 * kMiB);
  std::vector<SealedShard> sealed;
  world.store->set_sealed_hook([&](std::span<const SealedShard> s) { sealed.assign(s.begin(), s.end()); });
  const Engine engine(world, 1, kSlot);
  const auto chain = make_chain(1, 2);
  engine.put(chain);
  CHECK_EQ(sealed.size(), 2u);
  CHECK(sealed[0].fingerprint == fingerprint_of(1));
  CHECK(sealed[1].key == chain[1]);
  CHECK(sealed[1].rect == shard(0, kSlot).rect);
  CHECK_EQ(sealed[1].payload_bytes, kSlot);
  sealed.clear();
  SessionId own = 0;
  CHECK_EQ(world.store->open_internal(spec_of(1), &own), Status::Ok);
  std::vector<Reservation> slots;
  CHECK_EQ(world.store->reserve(own, 0, chain[1], make_chain(2, 1), &slots), Status::Ok);
  const CommitItem item{slots[0].slot, 1, {}};
  std::uint32_t accepted = 0;
  CHECK_EQ(world.store->commit(own, std::span(&item, 1), &accepted), Status::Ok);
  CHECK_EQ(accepted, 1u);
  CHECK(sealed.empty());
  world.store->close_internal(own);
  SessionSpec spec;
  CHECK(world.store->session_spec(engine.id, &spec));
  CHECK(spec.fingerprint == fingerprint_of(1));
  CHECK_EQ(spec.chunk_tokens, 256u);
  CHECK(spec.shards == std::vector<ShardSpec>{shard(0, kSlot)});
  CHECK(!world.store->session_spec(12'345, &spec));
}

// Borrowers beside evictions, clears and lookups: nothing is reused under a borrower, and nothing is left behind.
TEST(borrowers_beside_evictions_and_clears) {
  World world(4 * kMiB);
  std::atomic<bool> over{false};
  std::atomic<std::uint64_t> borrowed{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      std::uint64_t turn = t;
      while (!over.load()) {
        Borrowed out;
        const Key key = make_chain(1 + turn++ % 40, 1)[0];
        if (!world.store->borrow(fingerprint_of(1), key, shard(0, kSlot).rect, &out)) continue;
        const auto* marker = reinterpret_cast<const std::uint64_t*>(world.arena->base() + out.slot.offset_bytes);
        for (int i = 0; i < 50; ++i) CHECK_EQ(__atomic_load_n(marker, __ATOMIC_RELAXED), out.checksum);
        ++borrowed;
        world.store->give_back(out);
      }
    });
  }
  const Engine engine(world, 1, kSlot);
  for (std::uint64_t round = 0; round < 3'000 || borrowed.load() < 100; ++round) {
    const auto slots = engine.reserve(make_chain(1 + round % 40, 1));
    if (slots[0].status == ReserveStatus::Granted) {
      auto* marker = reinterpret_cast<std::uint64_t*>(world.arena->base() + slots[0].slot.offset_bytes);
      __atomic_store_n(marker, round + 1, __ATOMIC_RELAXED);
      engine.commit(slots, {}, round + 1);
    }
    if (round % 500 == 499) world.store->clear(nullptr);
  }
  over.store(true);
  for (auto& thread : threads) thread.join();
  world.store->clear(nullptr);
  check_empty(*world.store);
}

TEST_MAIN()
