// Interleavings that matter, each played exactly: one thread stops at a named point, the other does its work, the first
// goes on. Then all at once, for the thread sanitizer and for what nobody thought of.
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>

#include "seq_points.h"
#include "store_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {
constexpr std::uint64_t kSlot = 64 << 10;

// Runs a function in a thread that stops at its first passage of a point until it is told to go on.
class Stopped {
 public:
  template <typename F>
  Stopped(SeqPoint point, F&& body) {
    current_ = this;
    point_ = point;
    seq_hook().store(&Stopped::hook);
    thread_ = std::thread([this, body = std::forward<F>(body)] {
      mine_ = true;
      body();
      const std::lock_guard lock(mutex_);
      done_ = true;
      changed_.notify_all();
    });
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return reached_ || done_; });
    CHECK(reached_);  // else the point is not on this way any more
  }
  void go_on() {
    {
      const std::lock_guard lock(mutex_);
      go_ = true;
      changed_.notify_all();
    }
    thread_.join();
    seq_hook().store(nullptr);
  }

 private:
  static void hook(SeqPoint point) {
    Stopped* self = current_;
    if (!mine_ || point != self->point_) return;
    std::unique_lock lock(self->mutex_);
    if (self->reached_) return;
    self->reached_ = true;
    self->changed_.notify_all();
    self->changed_.wait(lock, [self] { return self->go_; });
  }
  static inline thread_local bool mine_ = false;
  static inline Stopped* current_ = nullptr;
  SeqPoint point_{};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false, go_ = false, done_ = false;
  std::thread thread_;
};

struct Small {  // 16 slots, full of two chains, the first of them the older one
  Small() : w(1 * kMiB), e(w, 1, kSlot), other(w, 1, kSlot), old_chain(make_chain(1, 8)), new_chain(make_chain(2, 8)) {
    e.put(old_chain);
    e.put(new_chain);
  }
  World w;
  Engine e, other;
  std::vector<Key> old_chain, new_chain;
};
}  // namespace

TEST(a_chunk_evicted_between_the_walk_and_the_hold_is_not_leased) {
  Small s;
  LookupResult result;
  Stopped lookup(SeqPoint::LookupWalked, [&] { result = s.e.lease(s.old_chain); });
  s.other.hits(s.new_chain);                    // the chain that was just walked is the older one again
  CHECK_EQ(s.other.put(make_chain(3, 2)), 2u);  // takes its last two chunks
  lookup.go_on();
  CHECK_EQ(result.hit_chunks, 6u);
  std::vector<SlotRef> slots;
  CHECK_EQ(s.e.begin(result.lease, &slots), Status::Ok);
  CHECK_EQ(slots.size(), 6u);
}

TEST(a_chunk_held_by_a_lookup_is_not_evicted) {
  Small s;
  LookupResult result;
  Stopped lookup(SeqPoint::LookupHeld, [&] { result = s.e.lease(s.old_chain); });
  s.other.hits(s.new_chain);
  CHECK_EQ(s.other.put(make_chain(3, 3)), 3u);  // from the newer chain: the older one is held
  lookup.go_on();
  CHECK_EQ(result.hit_chunks, 8u);
  CHECK_EQ(s.e.begin(result.lease), Status::Ok);
  CHECK_EQ(s.e.hits(s.new_chain), 5u);
}

TEST(a_victim_that_is_leased_after_it_was_chosen_is_spared) {
  Small s;
  std::uint32_t stored = 0;
  LookupResult result;
  Stopped evict(SeqPoint::EvictChosen, [&] { stored = s.other.put(make_chain(3, 1)); });
  result = s.e.lease(s.old_chain);
  CHECK_EQ(result.hit_chunks, 8u);
  evict.go_on();
  CHECK_EQ(stored, 1u);
  CHECK_EQ(s.e.begin(result.lease), Status::Ok);
  CHECK_EQ(s.e.hits(s.old_chain), 8u);
  CHECK_EQ(s.e.hits(s.new_chain), 7u);
}

TEST(a_victim_that_left_the_index_is_a_miss_before_its_slot_is_granted_again) {
  Small s;
  Stopped evict(SeqPoint::EvictRemoved, [&] { s.other.put(make_chain(3, 1)); });
  CHECK_EQ(s.e.hits(s.old_chain), 7u);
  const auto freed = events_of(*s.w.store, Event::Kind::Freed);
  CHECK_EQ(freed.size(), 1u);
  CHECK(freed[0].key == s.old_chain.back());
  evict.go_on();
}

TEST(a_parent_that_a_reservation_hangs_on_is_not_evicted) {
  Small s;
  const Key child = make_key(4'242);
  std::vector<Reservation> out;
  Stopped reserve(SeqPoint::ReserveLinked, [&] { out = s.e.reserve({child}, s.old_chain.back()); });
  CHECK_EQ(s.other.put(make_chain(3, 4)), 4u);  // from the newer chain, whose last chunk is the oldest left
  CHECK_EQ(s.other.hits(s.old_chain), 8u);
  reserve.go_on();
  CHECK_EQ(out[0].status, ReserveStatus::Granted);
  CHECK_EQ(s.e.commit(out), 1u);
}

TEST(two_writers_of_one_chunk_are_told_apart_before_room_is_made) {
  Small s;
  const std::uint64_t evicted = s.w.store->stats().evicted;
  std::vector<Reservation> first;
  Stopped reserve(SeqPoint::ReservePlaced, [&] { first = s.e.reserve({make_key(9)}); });
  CHECK_EQ(s.other.reserve({make_key(9)})[0].status, ReserveStatus::Busy);
  CHECK_EQ(s.w.store->stats().evicted, evicted);
  reserve.go_on();
  CHECK_EQ(first[0].status, ReserveStatus::Granted);
}

TEST(a_part_that_is_being_begun_does_not_expire) {
  Small s;
  const auto lease = s.e.lease(s.old_chain);
  Status status = Status::Internal;
  Stopped begin(SeqPoint::BeginClaimed, [&] { status = s.e.begin(lease.lease); });
  s.w.clock_ms += 1'000'000;
  s.w.store->expire_leases();
  CHECK_EQ(s.other.put(make_chain(3, 2)), 2u);
  begin.go_on();
  CHECK_EQ(status, Status::Ok);
  CHECK_EQ(s.e.hits(s.old_chain), 8u);
  CHECK_EQ(s.e.release(lease.lease), Status::Ok);
}

TEST(a_lease_that_expires_first_is_not_begun) {
  Small s;
  const auto lease = s.e.lease(s.old_chain);
  s.w.clock_ms += 1'000'000;
  Stopped expire(SeqPoint::ExpireRevoked, [&] { s.w.store->expire_leases(); });
  CHECK_EQ(s.e.begin(lease.lease), Status::Gone);
  expire.go_on();
  CHECK_EQ(s.other.hits(s.new_chain), 8u);
  CHECK_EQ(s.other.put(make_chain(3, 8)), 8u);
  CHECK_EQ(s.e.hits(s.old_chain), 0u);
}

TEST(a_clear_between_claim_and_readers_makes_begin_gone) {
  Small s;
  const auto lease = s.e.lease(s.old_chain);
  Status status = Status::Internal;
  Stopped begin(SeqPoint::BeginClaimed, [&] { status = s.e.begin(lease.lease); });
  CHECK_EQ(s.w.store->clear(nullptr), 16u);
  begin.go_on();
  CHECK_EQ(status, Status::Gone);
  check_empty(*s.w.store);
}

TEST(a_clear_after_the_readers_drains) {
  Small s;
  const auto lease = s.e.lease(s.old_chain);
  Status status = Status::Internal;
  Stopped begin(SeqPoint::BeginVerified, [&] { status = s.e.begin(lease.lease); });
  CHECK_EQ(s.w.store->clear(nullptr), 16u);
  CHECK_EQ(s.w.store->stats().slots_draining, 8u);
  begin.go_on();
  CHECK_EQ(status, Status::Ok);
  s.e.release(lease.lease);
  check_empty(*s.w.store);
}

TEST(a_clear_between_claim_and_seal_refuses_the_commit) {
  World w(1 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto slots = e.reserve(make_chain(1, 1));
  std::uint32_t accepted = 9;
  Stopped commit(SeqPoint::CommitClaimed, [&] { accepted = e.commit(slots); });
  w.store->clear(nullptr);
  commit.go_on();
  CHECK_EQ(accepted, 0u);
  CHECK_EQ(e.hits(make_chain(1, 1)), 0u);
  check_empty(*w.store);
}

TEST(a_commit_between_fence_and_sweep_is_swept) {
  World w(1 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto slots = e.reserve(make_chain(1, 2));
  Stopped clear(SeqPoint::ClearFenced, [&] { w.store->clear(nullptr); });
  CHECK_EQ(e.commit(slots), 2u);
  const auto late = e.reserve(make_chain(1, 3));
  CHECK_EQ(late[1].status, ReserveStatus::Exists);
  clear.go_on();
  CHECK_EQ(e.hits(make_chain(1, 3)), 0u);
  CHECK_EQ(e.commit(late), 0u);
  check_empty(*w.store);
}

TEST(a_reservation_that_a_clear_overtakes_is_not_placed) {
  Small s;
  std::vector<Reservation> out;
  Stopped reserve(SeqPoint::ReserveLinked, [&] { out = s.e.reserve({make_key(9)}, s.old_chain.back()); });
  s.w.store->clear(nullptr);
  reserve.go_on();
  CHECK_EQ(out[0].status, ReserveStatus::Busy);
  check_empty(*s.w.store);
}

TEST(a_clear_while_room_is_sought_takes_the_place_back) {
  Small s;
  std::vector<Reservation> out;
  Stopped reserve(SeqPoint::ReservePlaced, [&] { out = s.e.reserve({make_key(9)}, s.old_chain.back()); });
  s.w.store->clear(nullptr);
  const auto second = s.other.reserve({make_key(9)});
  CHECK_EQ(second[0].status, ReserveStatus::Granted);
  reserve.go_on();
  CHECK_EQ(out[0].status, ReserveStatus::Busy);
  CHECK_EQ(s.other.commit(second), 1u);
  CHECK_EQ(s.w.store->stats().slots_filling, 0u);
}

TEST(many_threads_at_once_never_share_a_slot_and_leave_nothing) {
  const char* text = std::getenv("KVCOMMONS_ROUNDS");
  const int rounds = text != nullptr ? std::atoi(text) : 300;
  World w(4 * kMiB, kMiB, 3);
  constexpr int kThreads = 6;
  constexpr std::size_t kWords = kSlot / 8;
  const auto body = [&](int number) {
    std::mt19937_64 rng(static_cast<std::uint64_t>(number));
    for (int round = 0; round < rounds; ++round) {
      const Engine e(w, 1 + rng() % 2, kSlot);
      const auto mark = [&](const Key& key) { return key.prefix64(); };
      const auto keys = make_chain((e.id % 2) + 10 * (1 + rng() % 4), 1 + rng() % 6);
      auto slots = e.reserve(keys);
      for (std::size_t i = 0; i < keys.size(); ++i) {
        if (slots[i].status != ReserveStatus::Granted) continue;
        auto* at = reinterpret_cast<std::uint64_t*>(w.arena->base() + slots[i].slot.offset_bytes);
        for (std::size_t k = 0; k < kWords; k += 512) at[k] = mark(keys[i]);
      }
      if (rng() % 8 != 0) e.commit(slots);
      const auto lease = e.lease(keys);
      std::vector<SlotRef> refs;
      if (lease.lease != 0 && e.begin(lease.lease, &refs) == Status::Ok) {
        for (std::size_t i = 0; i < refs.size(); ++i) {
          const auto* at = reinterpret_cast<const std::uint64_t*>(w.arena->base() + refs[i].offset_bytes);
          for (std::size_t k = 0; k < kWords; k += 512) CHECK_EQ(at[k], mark(keys[i]));
        }
        if (rng() % 2 == 0) e.release(lease.lease);
      }
      switch (rng() % 24) {
        case 0:
          w.store->clear(nullptr);
          break;
        case 1:
          w.store->pin(keys, true);
          break;
        case 2:
          w.store->pin(keys, false);
          break;
        case 3:
          w.clock_ms += 20'000;
          w.store->expire_leases();
          break;
        case 4: {
          std::uint64_t cursor = 0;
          (void)w.store->inventory(&cursor, 10);
          break;
        }
        case 5: {
          bool gap = false;
          (void)w.store->drain_events(100, &gap);
          break;
        }
        case 6:
          (void)w.store->stats();
          break;
        default:
          break;
      }
      if (rng() % 2 == 0) w.store->close_session(e.id);
      w.store->resolve_session(e.id);
      CHECK_LE(w.store->stats().used_bytes, w.config.arena_bytes);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(body, i);
  for (auto& t : threads) t.join();
  w.store->clear(nullptr);
  check_empty(*w.store);
  CHECK_EQ(w.store->stats().sessions + w.store->stats().sessions_unresolved, 0u);
}

TEST(a_thousand_sessions_that_die_with_leases_and_reservations_leak_nothing) {
  World w(1 * kMiB);
  const Engine base(w, 1, kSlot);
  const auto kept = make_chain(1, 4);
  base.put(kept);
  for (std::uint64_t round = 0; round < 1'000; ++round) {
    const Engine e(w, 1, kSlot);
    const auto pending = e.lease(kept);
    const auto copying = e.lease(kept);
    CHECK_NE(pending.lease, 0u);
    CHECK_EQ(e.begin(copying.lease), Status::Ok);
    const auto slots = e.reserve(make_chain(2 + round, 12));
    for (const auto& r : slots) CHECK_EQ(r.status, ReserveStatus::Granted);
    if (round % 3 == 0) e.commit({slots.begin(), slots.begin() + 5});
    if (round % 2 == 0) w.store->close_session(e.id);
    w.store->resolve_session(e.id);
    const StoreStats s = w.store->stats();
    CHECK_EQ(s.slots_filling + s.slots_quarantined + s.slots_draining, 0u);
    CHECK_EQ(s.leases_pending + s.leases_copying, 0u);
    CHECK_EQ(s.sessions, 1u);
    CHECK_EQ(s.sessions_unresolved, 0u);
    CHECK_EQ(base.hits(kept), 4u);
  }
  w.store->clear(nullptr);
  check_empty(*w.store);
}

TEST_MAIN()
