// A restarted daemon over the memory of the former one, which may have been killed at any point.
#include <signal.h>
#include <sys/wait.h>

#include <cstdlib>
#include <new>
#include <random>
#include <set>

#include "records.h"
#include "seq_points.h"
#include "store_fixture.h"
#include "xxh3.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using internal::SlotRecord;

namespace {
constexpr std::uint64_t kSlot = 64 << 10;

// The records as the next life will find them.
struct RecordsView {
  explicit RecordsView(World& w) : records(internal::Geometry::of(w.config), w.records->fd()) {}
  SlotRecord& at(const World& w, const SlotRef& slot, std::uint64_t stride) {
    const std::uint64_t slab = slot.offset_bytes / records.geometry().slab_bytes;
    const std::uint64_t within = slot.offset_bytes % records.geometry().slab_bytes;
    CHECK_LT(slot.offset_bytes, w.config.arena_bytes);
    return records.slot(static_cast<std::uint32_t>(slab * records.geometry().slots_per_slab + within / stride));
  }
  internal::Records records;
};
}  // namespace

TEST(an_adopted_store_serves_what_the_former_one_had) {
  World w(8 * kMiB);
  CHECK(!w.store->adopted());
  Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 20);
  std::vector<SlotRef> before, after;
  e.commit(e.reserve(keys), {9, 10});
  CHECK_EQ(w.store->pin(std::vector<Key>{keys[4]}, true), 1u);
  const auto lease = e.lease(keys);
  CHECK_EQ(e.begin(lease.lease, &before), Status::Ok);
  e.release(lease.lease);
  w.crash_and_adopt();
  CHECK(w.store->adopted());
  CHECK_EQ(w.store->unresolved_sessions().size(), 0u);
  CHECK_EQ(w.store->stats().chunks, 20u);
  CHECK_EQ(w.store->stats().pinned_chunks, 1u);
  e = Engine(w, 1, kSlot);
  const auto again = e.lease(keys);
  CHECK_EQ(again.hit_chunks, 20u);
  CHECK_EQ(e.begin(again.lease, &after), Status::Ok);
  CHECK(before == after);
  std::uint64_t cursor = 0;
  const auto items = w.store->inventory(&cursor, 100);
  CHECK_EQ(items.size(), 20u);
  CHECK_EQ(items[0].text_keys.size(), 2u);
}

TEST(what_a_former_session_filled_stays_in_quarantine_until_it_is_resolved) {
  World w(1 * kMiB);
  const Engine e(w, 1, kSlot);
  e.reserve(make_chain(1, 10));
  w.crash_and_adopt();
  CHECK_EQ(w.store->stats().slots_quarantined, 10u);
  CHECK_EQ(w.store->unresolved_sessions().size(), 1u);
  CHECK_EQ(w.store->unresolved_sessions()[0], e.id);
  const Engine fresh(w, 1, kSlot);
  const auto slots = fresh.reserve(make_chain(2, 8));
  CHECK_EQ(slots[5].status, ReserveStatus::Granted);
  CHECK_EQ(slots[6].status, ReserveStatus::Full);
  w.crash_and_adopt();  // and the next life inherits both
  CHECK_EQ(w.store->unresolved_sessions().size(), 2u);
  w.store->resolve_session(e.id);
  CHECK_EQ(w.store->stats().slots_quarantined, 6u);
  w.store->resolve_session(fresh.id);
  check_empty(*w.store);
}

TEST(what_a_former_session_reads_is_readable_and_not_evictable) {
  World w(1 * kMiB);
  Engine reader(w, 1, kSlot);
  const Engine bystander(w, 1, kSlot);
  const auto read = make_chain(1, 6);
  const auto other = make_chain(2, 10);
  reader.put(read);
  bystander.put(other);
  const auto lease = reader.lease(read);
  CHECK_EQ(reader.begin(lease.lease), Status::Ok);
  w.crash_and_adopt();
  CHECK_EQ(w.store->unresolved_sessions().size(), 1u);
  Engine fresh(w, 1, kSlot);
  CHECK_EQ(fresh.hits(read), 6u);
  const auto slots = fresh.reserve(make_chain(3, 12));
  CHECK_EQ(slots[9].status, ReserveStatus::Granted);
  CHECK_EQ(slots[10].status, ReserveStatus::Full);
  CHECK_EQ(fresh.hits(read), 6u);
  CHECK_EQ(w.store->clear(nullptr), 6u);
  CHECK_EQ(w.store->stats().slots_draining, 6u);
  w.store->resolve_session(reader.id);
  CHECK_EQ(w.store->stats().slots_draining, 0u);
}

TEST(former_readers_are_let_go_only_when_the_last_of_them_is_resolved) {
  World w(1 * kMiB);
  const Engine a(w, 1, kSlot);
  const Engine b(w, 1, kSlot);
  const auto keys = make_chain(1, 3);
  a.put(keys);
  CHECK_EQ(a.begin(a.lease(keys).lease), Status::Ok);
  CHECK_EQ(b.begin(b.lease(keys).lease), Status::Ok);
  w.crash_and_adopt();
  w.store->clear(nullptr);
  w.store->resolve_session(a.id);
  CHECK_EQ(w.store->stats().slots_draining, 3u);
  w.crash_and_adopt();
  CHECK_EQ(w.store->stats().slots_draining, 3u);
  w.store->resolve_session(b.id);
  check_empty(*w.store);
}

TEST(a_torn_record_is_dropped_with_what_follows_it) {
  World w(8 * kMiB);
  Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 5);
  const auto slots = e.reserve(keys);
  e.commit(slots);
  w.store.reset();
  RecordsView(w).at(w, slots[2].slot, kSlot).checksum ^= 1;
  w.open();
  e = Engine(w, 1, kSlot);
  CHECK_EQ(e.hits(keys), 2u);
  CHECK_EQ(w.store->stats().slots_sealed, 2u);
  CHECK_EQ(e.put(keys), 3u);
}

TEST(foreign_records_are_formatted_anew_and_counted) {
  World w(8 * kMiB);
  Engine(w, 1, kSlot).put(make_chain(1, 5));
  w.store.reset();
  w.config.slab_bytes = 2 * kMiB;
  w.config.arena_bytes = 16 * kMiB;
  w.arena = std::make_unique<Memory>(w.config.arena_bytes);
  CHECK_EQ(ftruncate(w.records->fd(), static_cast<off_t>(Store::records_bytes(w.config))), 0);
  w.store = std::make_unique<Store>(w.config, w.arena->fd(), w.records->fd());
  CHECK(!w.store->adopted());
  CHECK_EQ(w.store->stats().cold_starts, 1u);
  check_empty(*w.store);
  const Engine e(w, 1, kSlot);
  CHECK_EQ(e.hits(make_chain(1, 5)), 0u);
  CHECK_EQ(e.put(make_chain(1, 5)), 5u);
  w.crash_and_adopt();
  CHECK(w.store->adopted());
}

TEST(large_slots_survive_in_spans_of_several_slabs) {
  World w(16 * kMiB);
  Engine e(w, 1, 3 * kMiB);
  const auto keys = make_chain(1, 4);
  const auto slots = e.reserve(keys);
  for (const auto& r : slots) CHECK_EQ(r.status, ReserveStatus::Granted);
  e.commit(slots);
  w.crash_and_adopt();
  e = Engine(w, 1, 3 * kMiB);
  CHECK_EQ(e.hits(keys), 4u);
  const Engine small(w, 2, kSlot);
  CHECK_EQ(small.put(make_chain(2, 64)), 64u);
  CHECK_EQ(e.hits(keys), 4u);
}

namespace {

// Shared with the child that is killed.
struct Progress {
  std::atomic<std::uint64_t> points{0};
  std::atomic<std::uint64_t> kill_at{0};
};
Progress* g_progress = nullptr;

void die_at_point(SeqPoint) {
  if (g_progress->points.fetch_add(1) + 1 == g_progress->kill_at.load()) {
    raise(SIGKILL);
  }
}

void fill(std::byte* at, const Key& key) {
  for (std::size_t i = 0; i < kSlot; i += kKeyBytes) std::memcpy(at + i, key.bytes.data(), kKeyBytes);
}

// An engine and a node in one process, working until killed.
[[noreturn]] void work(World& w, std::uint64_t seed) {
  std::mt19937_64 rng(seed);
  seq_hook().store(die_at_point);
  for (;;) {
    const Engine a(w, 1 + rng() % 2, kSlot);
    const Engine b(w, 1 + rng() % 2, kSlot);
    for (int i = 0; i < 12; ++i) {
      const Engine& e = rng() % 2 == 0 ? a : b;
      const auto keys = make_chain(1 + rng() % 6 + (&e == &a ? 0 : 100), 1 + rng() % 5);
      const auto slots = e.reserve(keys);
      for (std::size_t k = 0; k < keys.size(); ++k) {
        if (slots[k].status == ReserveStatus::Granted) fill(w.arena->base() + slots[k].slot.offset_bytes, keys[k]);
      }
      e.commit(slots, {1, 2, 3}, 1);
      const auto lease = e.lease(keys);
      if (lease.lease != 0 && e.begin(lease.lease) == Status::Ok && rng() % 4 != 0) e.release(lease.lease);
      if (rng() % 40 == 0) w.store->clear(nullptr);
    }
    for (const Engine* e : {&a, &b}) {
      w.store->close_session(e->id);
      if (rng() % 4 != 0) w.store->resolve_session(e->id);
    }
    for (const SessionId id : w.store->unresolved_sessions()) {
      if (rng() % 3 == 0) w.store->resolve_session(id);
    }
  }
}

void run_child(World& w, std::uint64_t seed, bool at_point, std::mt19937_64& rng) {
  g_progress->points = 0;
  g_progress->kill_at = at_point ? 1 + rng() % 400 : 0;
  w.store.reset();
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    w.store = std::make_unique<Store>(w.config, w.arena->fd(), w.records->fd());
    work(w, seed);
  }
  if (!at_point) {  // anywhere: between two instructions of whatever the child is doing then
    const std::uint64_t target = 1 + rng() % 400;
    while (g_progress->points.load() < target && waitpid(child, nullptr, WNOHANG) == 0) {
    }
    for (std::uint64_t spin = rng() % 20'000; spin > 0; --spin) asm volatile("");
    kill(child, SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  w.open();
}

void check_life(World& w) {
  CHECK(w.store->adopted());
  for (std::uint64_t fp = 1; fp <= 2; ++fp) {
    const Engine e(w, fp, kSlot);
    for (std::uint64_t chain = 1; chain <= 106; ++chain) {
      const auto keys = make_chain(chain, 5);
      const auto lease = e.lease(keys);
      if (lease.lease == 0) continue;
      std::vector<SlotRef> slots;
      CHECK_EQ(e.begin(lease.lease, &slots), Status::Ok);
      for (std::size_t i = 0; i < slots.size(); ++i) {
        for (std::size_t at = 0; at < kSlot; at += kKeyBytes) {
          CHECK_EQ(std::memcmp(w.arena->base() + slots[i].offset_bytes + at, keys[i].bytes.data(), kKeyBytes), 0);
        }
      }
      e.release(lease.lease);
    }
    w.store->close_session(e.id);
  }
  const StoreStats s = w.store->stats();
  CHECK_LE(s.used_bytes, s.arena_bytes);
  CHECK_EQ(s.slots_filling, 0u);
  CHECK_EQ(s.used_bytes, (s.slots_sealed + s.slots_draining + s.slots_quarantined) * kSlot);
}

}  // namespace

TEST(kill_9_at_any_point_leaves_only_true_chunks_and_loses_no_slot) {
  const char* text = std::getenv("KVCOMMONS_SEED");
  const std::uint64_t seed = text != nullptr ? std::strtoull(text, nullptr, 10) : std::random_device{}();
  const char* more = std::getenv("KVCOMMONS_ROUNDS");
  const int rounds = more != nullptr ? std::atoi(more) : 60;
  std::fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(seed));
  std::mt19937_64 rng(seed);
  const Memory shared(4096);
  g_progress = new (shared.base()) Progress;
  World w(1 * kMiB);
  for (int round = 0; round < rounds; ++round) {
    run_child(w, rng(), round % 2 == 0, rng);
    check_life(w);
    if (round % 5 == 4) {
      for (const SessionId id : w.store->unresolved_sessions()) w.store->resolve_session(id);
      CHECK_EQ(w.store->stats().slots_quarantined + w.store->stats().slots_draining, 0u);
      w.store->clear(nullptr);
      check_empty(*w.store);
    }
  }
}

TEST_MAIN()
