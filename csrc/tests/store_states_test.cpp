// Each transition of a slot and of a lease, one at a time.
#include <algorithm>

#include "records.h"
#include "store_fixture.h"
#include "xxh3.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {
constexpr std::uint64_t kSlot = 64 << 10;
}

TEST(what_was_committed_is_found_and_what_is_being_filled_is_not) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 4);
  const auto slots = e.reserve(keys);
  for (const auto& r : slots) CHECK_EQ(r.status, ReserveStatus::Granted);
  CHECK_EQ(e.hits(keys), 0u);
  CHECK_EQ(w.store->stats().slots_filling, 4u);
  CHECK_EQ(e.commit(slots), 4u);
  CHECK_EQ(e.hits(keys), 4u);
  CHECK_EQ(w.store->stats().slots_sealed, 4u);
  CHECK_EQ(w.store->stats().chunks, 4u);
  auto longer = keys;
  longer.push_back(make_key(77));
  CHECK_EQ(e.hits(longer), 4u);
}

TEST(a_hit_ends_at_the_first_chunk_that_is_absent) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 4);
  const auto slots = e.reserve(keys);
  std::vector<Reservation> without_second{slots[0], slots[2], slots[3]};
  CHECK_EQ(e.commit(without_second), 3u);
  CHECK_EQ(e.hits(keys), 1u);
  CHECK_EQ(e.commit({slots[1]}), 1u);
  CHECK_EQ(e.hits(keys), 4u);
}

TEST(slots_are_apart_aligned_and_inside_the_arena) {
  World w(8 * kMiB);
  const Engine e(w, 1, 100'000);
  const auto slots = e.reserve(make_chain(1, 1'000));
  std::vector<std::uint64_t> offsets;
  for (const auto& r : slots) {
    if (r.status == ReserveStatus::Granted) offsets.push_back(r.slot.offset_bytes);
  }
  CHECK_GE(offsets.size(), 70u);
  std::sort(offsets.begin(), offsets.end());
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    CHECK_EQ(offsets[i] % kSlotAlignBytes, 0u);
    CHECK_LE(offsets[i] + 100'000, 8 * kMiB);
    if (i > 0) CHECK_GE(offsets[i], offsets[i - 1] + 100'000);
  }
  CHECK_EQ(slots.back().status, ReserveStatus::Full);
}

TEST(a_chunk_is_stored_by_one_writer_only) {
  World w(8 * kMiB);
  const Engine a(w, 1, kSlot);
  const Engine b(w, 1, kSlot);
  const auto keys = make_chain(1, 1);
  const auto slots = a.reserve(keys);
  CHECK_EQ(b.reserve(keys)[0].status, ReserveStatus::Busy);
  a.commit(slots);
  CHECK_EQ(b.reserve(keys)[0].status, ReserveStatus::Exists);
  CHECK_EQ(b.hits(keys), 1u);
}

TEST(a_chunk_without_its_prefix_is_refused) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 3);
  CHECK_EQ(e.reserve({keys[1]}, keys[0])[0].status, ReserveStatus::ParentMissing);
  e.put({keys[0]});
  CHECK_EQ(e.reserve({keys[1]}, keys[0])[0].status, ReserveStatus::Granted);
}

TEST(an_aborted_reservation_leaves_nothing) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 3);
  const auto slots = e.reserve(keys);
  std::vector<SlotRef> refs;
  for (const auto& r : slots) refs.push_back(r.slot);
  CHECK_EQ(w.store->abort(e.id, refs), Status::Ok);
  check_empty(*w.store);
  CHECK_EQ(e.commit(slots), 0u);
  CHECK_EQ(e.reserve({keys[1]}, keys[0])[0].status, ReserveStatus::ParentMissing);
  CHECK_EQ(e.put(keys), 3u);
  CHECK_EQ(e.hits(keys), 3u);
}

TEST(a_stale_slot_commits_and_aborts_nothing) {
  World w(8 * kMiB);
  const Engine a(w, 1, kSlot);
  const Engine b(w, 1, kSlot);
  const auto first = a.reserve(make_chain(1, 1));
  std::vector<SlotRef> refs{first[0].slot};
  w.store->abort(a.id, refs);
  const auto second = a.reserve(make_chain(2, 1));
  CHECK_EQ(second[0].slot.offset_bytes, first[0].slot.offset_bytes);
  CHECK_NE(second[0].slot.generation, first[0].slot.generation);
  CHECK_EQ(a.commit(first), 0u);
  CHECK_EQ(b.commit(second), 0u);  // another session's slot
  CHECK_EQ(w.store->abort(a.id, refs), Status::Ok);
  CHECK_EQ(a.commit(second), 1u);
  CHECK_EQ(a.hits(make_chain(2, 1)), 1u);
}

TEST(a_generation_never_recurs_at_a_place_that_changed_its_stride) {
  World w(1 * kMiB);
  std::vector<SlotRef> seen;
  for (std::uint64_t round = 0; round < 60; ++round) {
    const Engine e(w, round, (1 + round % 5) * 16'384);
    const auto slots = e.reserve(make_chain(round, 3));
    for (const auto& r : slots) {
      CHECK_EQ(r.status, ReserveStatus::Granted);
      CHECK(std::find(seen.begin(), seen.end(), r.slot) == seen.end());
      seen.push_back(r.slot);
    }
    w.store->close_session(e.id);
    w.store->resolve_session(e.id);
  }
  check_empty(*w.store);
}

TEST(a_chunk_is_present_only_with_every_shard_of_the_layout) {
  World w(8 * kMiB);
  const Engine scheduler(w, 1, kSlot, 2, std::nullopt);
  const Engine rank0(w, 1, kSlot, 2, 0);
  const Engine rank1(w, 1, kSlot, 2, 1);
  const auto keys = make_chain(1, 3);
  rank0.put(keys);
  CHECK_EQ(scheduler.hits(keys), 0u);
  CHECK_EQ(events_of(*w.store, Event::Kind::Committed).size(), 0u);
  const auto second = rank1.reserve(keys);
  CHECK_EQ(rank1.commit({second[0], second[1]}), 2u);
  CHECK_EQ(scheduler.hits(keys), 2u);
  CHECK_EQ(events_of(*w.store, Event::Kind::Committed).size(), 2u);
  const auto lease = scheduler.lease(keys);
  CHECK_EQ(lease.hit_chunks, 2u);
  std::vector<SlotRef> a, b;
  CHECK_EQ(rank0.begin(lease.lease, &a), Status::Ok);
  CHECK_EQ(rank1.begin(lease.lease, &b), Status::Ok);
  CHECK_EQ(a.size(), 2u);
  CHECK(b[0] == second[0].slot && b[1] == second[1].slot);
  CHECK_EQ(rank0.release(lease.lease), Status::Ok);
  CHECK_EQ(w.store->stats().leases_copying, 1u);
  CHECK_EQ(rank1.release(lease.lease), Status::Ok);
  CHECK_EQ(w.store->stats().leases_copying + w.store->stats().leases_pending, 0u);
  CHECK_EQ(rank1.release(lease.lease), Status::Gone);
  CHECK_EQ(scheduler.begin(lease.lease), Status::Denied);
}

TEST(ranks_that_share_a_shard_each_begin_it) {
  World w(8 * kMiB);
  SessionSpec spec{make_key(1), 256, {shard(0, kSlot)}, std::nullopt, 2};
  SessionId scheduler = 0;
  CHECK_EQ(w.store->open_session(spec, &scheduler), Status::Ok);
  spec.own_shard = 0;
  SessionId ranks[2];
  for (SessionId& id : ranks) CHECK_EQ(w.store->open_session(spec, &id), Status::Ok);
  std::vector<Reservation> slots;
  const auto keys = make_chain(1, 1);
  CHECK_EQ(w.store->reserve(ranks[0], 0, {}, keys, &slots), Status::Ok);
  const std::vector<CommitItem> items{{slots[0].slot, 0, {}}};
  std::uint32_t accepted = 0;
  CHECK_EQ(w.store->commit(ranks[0], items, &accepted), Status::Ok);
  const auto lease = w.store->lookup(scheduler, keys, true);
  std::vector<SlotRef> refs;
  CHECK_EQ(w.store->begin(ranks[0], lease.lease, &refs), Status::Ok);
  CHECK_EQ(w.store->release(ranks[0], lease.lease), Status::Ok);
  CHECK_EQ(w.store->begin(ranks[1], lease.lease, &refs), Status::Ok);
  CHECK_EQ(w.store->release(ranks[1], lease.lease), Status::Ok);
  CHECK_EQ(w.store->begin(ranks[1], lease.lease, &refs), Status::Gone);
}

TEST(time_revokes_a_pending_lease_and_never_a_copying_one) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 2);
  e.put(keys);
  const auto pending = e.lease(keys);
  const auto copying = e.lease(keys);
  CHECK_EQ(e.begin(copying.lease), Status::Ok);
  w.clock_ms += w.config.lease_pending_ms_max - 1;
  w.store->expire_leases();
  CHECK_EQ(w.store->stats().leases_pending, 1u);
  w.clock_ms += 1;
  w.store->expire_leases();
  CHECK_EQ(w.store->stats().leases_pending, 0u);
  CHECK_EQ(w.store->stats().leases_revoked, 1u);
  CHECK_EQ(e.begin(pending.lease), Status::Gone);
  CHECK_EQ(w.store->stats().leases_copying, 1u);
  w.clock_ms += 1'000'000'000;
  w.store->expire_leases();
  CHECK_EQ(w.store->stats().leases_copying, 1u);
  CHECK_EQ(e.release(copying.lease), Status::Ok);
  CHECK_EQ(w.store->stats().leases_copying, 0u);
}

TEST(a_lease_is_begun_once_and_only_with_its_fingerprint) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const Engine other(w, 2, kSlot);
  const auto keys = make_chain(1, 2);
  e.put(keys);
  CHECK_EQ(other.hits(keys), 0u);
  CHECK_EQ(other.reserve(keys)[0].status, ReserveStatus::Busy);  // a forged key: it is another fingerprint's
  const auto lease = e.lease(keys);
  CHECK_EQ(other.begin(lease.lease), Status::Denied);
  CHECK_EQ(e.begin(lease.lease), Status::Ok);
  CHECK_EQ(e.begin(lease.lease), Status::Busy);
  CHECK_EQ(e.release(lease.lease), Status::Ok);
  CHECK_EQ(e.begin(lease.lease), Status::Gone);
  CHECK_EQ(e.begin(lease.lease + 1), Status::Gone);
}

TEST(eviction_takes_the_suffix_first_and_the_least_recently_used_chain) {
  World w(1 * kMiB);  // 16 slots
  const Engine e(w, 1, kSlot);
  const auto a = make_chain(1, 8);
  const auto b = make_chain(2, 8);
  e.put(a);
  e.put(b);
  CHECK_EQ(e.hits(a), 8u);  // touched: b is the older one now
  CHECK_EQ(e.put(make_chain(3, 3)), 3u);
  CHECK_EQ(e.hits(b), 5u);
  CHECK_EQ(e.hits(a), 8u);
  CHECK_EQ(w.store->stats().evicted, 3u);
}

TEST(eviction_never_takes_what_is_leased_pinned_or_a_parent) {
  World w(1 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto leased = make_chain(1, 5);
  const auto pinned = make_chain(2, 5);
  const auto copied = make_chain(3, 6);
  e.put(leased);
  e.put(pinned);
  e.put(copied);
  CHECK_EQ(w.store->pin(std::vector<Key>{pinned.back()}, true), 1u);
  const auto pending = e.lease(leased);
  const auto copying = e.lease(copied);
  CHECK_EQ(e.begin(copying.lease), Status::Ok);
  for (const auto& r : e.reserve(make_chain(4, 4))) CHECK_EQ(r.status, ReserveStatus::Full);
  CHECK_EQ(w.store->stats().evicted, 0u);
  e.release(pending.lease);
  CHECK_EQ(e.put(make_chain(5, 5)), 5u);
  CHECK_EQ(e.hits(leased), 0u);
  CHECK_EQ(e.hits(pinned), 5u);
  CHECK_EQ(e.hits(copied), 6u);
}

TEST(a_cleared_chunk_drains_while_it_is_copied) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 3);
  e.put(keys);
  const auto copying = e.lease(keys);
  const auto pending = e.lease(keys);
  CHECK_EQ(e.begin(copying.lease), Status::Ok);
  CHECK_EQ(w.store->clear(nullptr), 3u);
  CHECK_EQ(e.hits(keys), 0u);
  CHECK_EQ(w.store->stats().slots_draining, 3u);
  CHECK_EQ(e.begin(pending.lease), Status::Gone);
  CHECK_EQ(e.put(keys), 3u);  // stored anew beside the draining ones
  CHECK_EQ(w.store->clear(nullptr), 3u);
  CHECK_EQ(e.release(copying.lease), Status::Ok);
  check_empty(*w.store);
}

TEST(clear_of_a_fingerprint_leaves_the_others) {
  World w(8 * kMiB);
  const Engine a(w, 1, kSlot);
  const Engine b(w, 2, kSlot);
  a.put(make_chain(1, 3));
  b.put(make_chain(2, 3));
  const Key fingerprint = make_key(1 + 0xf000'0000);
  CHECK_EQ(w.store->clear(&fingerprint), 3u);
  CHECK_EQ(a.hits(make_chain(1, 3)), 0u);
  CHECK_EQ(b.hits(make_chain(2, 3)), 3u);
}

TEST(what_was_reserved_before_a_clear_is_not_accepted_after_it) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 3);
  const auto before = e.reserve(keys);
  w.store->clear(nullptr);
  const auto after = e.reserve(keys);
  CHECK_EQ(e.commit(before), 0u);
  CHECK_EQ(e.hits(keys), 0u);
  CHECK_EQ(e.commit(after), 3u);
  CHECK_EQ(e.hits(keys), 3u);
  CHECK_EQ(w.store->stats().slots_filling, 0u);
}

TEST(a_session_that_vanishes_leaves_quarantined_slots_until_it_is_resolved) {
  World w(8 * kMiB);
  const Engine writer(w, 1, kSlot);
  Engine reader(w, 1, kSlot);
  const auto keys = make_chain(1, 2);
  writer.put(keys);
  writer.reserve(make_chain(2, 3));
  const auto lease = reader.lease(keys);
  const auto unbegun = reader.lease(keys);
  CHECK_EQ(reader.begin(lease.lease), Status::Ok);
  w.store->close_session(writer.id);
  w.store->close_session(reader.id);
  CHECK_EQ(w.store->stats().slots_quarantined, 3u);
  CHECK_EQ(w.store->stats().leases_pending, 0u);
  CHECK_EQ(w.store->stats().leases_copying, 1u);
  CHECK_EQ(w.store->stats().sessions, 0u);
  CHECK_EQ(w.store->stats().sessions_unresolved, 2u);
  CHECK_EQ(w.store->clear(nullptr), 2u);
  CHECK_EQ(w.store->stats().slots_draining, 2u);
  w.store->resolve_session(reader.id);
  CHECK_EQ(w.store->stats().slots_draining, 0u);
  w.store->resolve_session(writer.id);
  w.store->resolve_session(writer.id);
  check_empty(*w.store);
  CHECK_EQ(reader.begin(unbegun.lease), Status::Gone);
}

TEST(a_schedulers_death_does_not_stop_a_worker_that_copies) {
  World w(8 * kMiB);
  const Engine scheduler(w, 1, kSlot, 1, std::nullopt);
  const Engine worker(w, 1, kSlot);
  const auto keys = make_chain(1, 2);
  worker.put(keys);
  const auto lease = scheduler.lease(keys);
  CHECK_EQ(worker.begin(lease.lease), Status::Ok);
  w.store->close_session(scheduler.id);
  w.store->resolve_session(scheduler.id);
  CHECK_EQ(w.store->stats().leases_copying, 1u);
  CHECK_EQ(worker.release(lease.lease), Status::Ok);
  CHECK_EQ(w.store->stats().leases_copying, 0u);
}

TEST(a_flipped_bit_is_found_at_begin_and_takes_the_chunk_and_what_follows_it) {
  World w(8 * kMiB, kMiB, 1);
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 4);
  const auto slots = e.reserve(keys);
  for (const auto& r : slots) std::memset(w.arena->base() + r.slot.offset_bytes, 7, kSlot);
  const std::uint64_t sum = xxh3_64(w.arena->base() + slots[0].slot.offset_bytes, kSlot);
  CHECK_EQ(e.commit(slots, {}, sum), 4u);
  const auto fine = e.lease(keys);
  CHECK_EQ(e.begin(fine.lease), Status::Ok);
  e.release(fine.lease);
  w.arena->base()[slots[1].slot.offset_bytes + 12'345] ^= std::byte{1};
  const auto bad = e.lease(keys);
  CHECK_EQ(bad.hit_chunks, 4u);
  CHECK_EQ(e.begin(bad.lease), Status::Gone);
  CHECK_EQ(w.store->stats().checksum_failures, 1u);
  CHECK_EQ(e.hits(keys), 1u);
  CHECK_EQ(w.store->stats().slots_sealed, 1u);
  CHECK_EQ(events_of(*w.store, Event::Kind::Freed).size(), 3u);
  CHECK_EQ(w.store->stats().leases_pending + w.store->stats().leases_copying, 0u);
  CHECK_EQ(e.put(keys), 3u);
}

TEST(a_fingerprint_keeps_the_sizes_it_was_declared_with) {
  World w(8 * kMiB);
  SessionId id = 0;
  SessionSpec spec{make_key(1), 256, {shard(0, kSlot)}, 0, 1};
  CHECK_EQ(w.store->open_session(spec, &id), Status::Ok);
  spec.shards[0].slot_bytes = 2 * kSlot;
  CHECK_EQ(w.store->open_session(spec, &id), Status::BadFingerprint);
  spec.shards[0] = shard(0, kSlot);
  spec.chunk_tokens = 128;
  CHECK_EQ(w.store->open_session(spec, &id), Status::BadFingerprint);
  spec.chunk_tokens = 256;
  spec.shards.push_back(shard(1, kSlot));  // another parallel layout of the same model
  CHECK_EQ(w.store->open_session(spec, &id), Status::Ok);
  spec.shards[1].slot_bytes = 9 * kMiB;
  CHECK_EQ(w.store->open_session(spec, &id), Status::TooLarge);
  spec.own_shard = 2;
  CHECK_EQ(w.store->open_session(spec, &id), Status::BadFrame);
}

TEST(sessions_and_leases_are_bounded) {
  World w(8 * kMiB);
  w.config.sessions_max = 2;
  w.config.leases_max = 3;
  w.arena.reset();
  w.open();
  const Engine a(w, 1, kSlot);
  const Engine b(w, 1, kSlot);
  SessionId id = 0;
  CHECK_EQ(w.store->open_session({make_key(1), 256, {shard(0, kSlot)}, 0, 1}, &id), Status::Full);
  const auto keys = make_chain(1, 1);
  a.put(keys);
  for (int i = 0; i < 3; ++i) CHECK_NE(a.lease(keys).lease, 0u);
  const auto over = a.lease(keys);
  CHECK_EQ(over.hit_chunks, 1u);
  CHECK_EQ(over.lease, 0u);
  w.store->close_session(a.id);
  CHECK_NE(b.lease(keys).lease, 0u);
  CHECK_EQ(w.store->stats().leases_pending, 1u);
}

TEST(events_are_ordered_carry_text_keys_and_overflow_into_a_gap) {
  World w(8 * kMiB);
  w.config.events_max = 8;
  w.arena.reset();
  w.open();
  int calls = 0;
  w.store->set_event_callback([&] { ++calls; });
  const Engine e(w, 1, kSlot);
  CHECK_EQ(calls, 1);
  const auto keys = make_chain(1, 2);
  e.commit(e.reserve(keys), {5, 6});
  w.clock_ms += 40;
  w.store->clear(nullptr);
  bool gap = true;
  const auto events = w.store->drain_events(100, &gap);
  CHECK(!gap);
  CHECK_EQ(events.size(), 5u);
  CHECK(events[0].kind == Event::Kind::SessionOpened);
  CHECK(events[1].kind == Event::Kind::Committed && events[1].key == keys[0]);
  CHECK_EQ(events[1].text_keys.size(), 2u);
  CHECK(events[3].kind == Event::Kind::Freed);
  CHECK_EQ(events[3].age_ms, 40u);
  CHECK_EQ(events[3].text_keys.size(), 2u);
  e.put(make_chain(2, 10));
  CHECK_EQ(calls, 2);
  CHECK_EQ(w.store->drain_events(100, &gap).size(), 2u);
  CHECK(gap);
  CHECK_EQ(w.store->drain_events(100, &gap).size(), 0u);
  CHECK(!gap);
  CHECK_EQ(w.store->stats().events_dropped, 8u);
}

TEST(feedback_is_passed_on_only_if_it_is_a_short_utf8_object) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  w.store->feedback(e.id, "{\"request_id\":\"gr\xc3\xbc\xc3\x9f\"}");
  w.store->feedback(e.id, "{\"x\":\"\xc3\"}");
  w.store->feedback(e.id, "{\"x\":\"\xed\xa0\x80\"}");
  w.store->feedback(e.id, "[]");
  w.store->feedback(e.id, "{" + std::string(5'000, ' ') + "}");
  CHECK_EQ(events_of(*w.store, Event::Kind::Feedback).size(), 1u);
}

TEST(the_inventory_lists_every_complete_chunk_once) {
  World w(8 * kMiB);
  const Engine scheduler(w, 1, kSlot, 2, std::nullopt);
  const Engine rank0(w, 1, kSlot, 2, 0);
  const Engine rank1(w, 1, kSlot, 2, 1);
  const auto keys = make_chain(1, 20);
  rank0.commit(rank0.reserve(keys), {1});
  auto half = keys;
  half.resize(11);
  rank1.commit(rank1.reserve(half), {1, 2});
  std::vector<Key> seen;
  std::uint64_t cursor = 0;
  do {
    for (const auto& item : w.store->inventory(&cursor, 3)) {
      CHECK(std::find(seen.begin(), seen.end(), item.key) == seen.end());
      CHECK_EQ(item.text_keys.size(), 2u);
      seen.push_back(item.key);
    }
  } while (cursor != 0);
  CHECK_EQ(seen.size(), 11u);
  CHECK_EQ(w.store->lookup_any(make_key(1 + 0xf000'0000), keys), 11u);
}

TEST(a_bad_configuration_is_refused_with_field_value_and_remedy) {
  World w(8 * kMiB);
  for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{4096}, 8 * kMiB + 1}) {
    StoreConfig bad = w.config;
    bad.arena_bytes = bytes;
    try {
      (void)Store::records_bytes(bad);
      CHECK(false);
    } catch (const std::invalid_argument& error) {
      CHECK(std::string(error.what()).find("arena_bytes = " + std::to_string(bytes)) != std::string::npos);
    }
  }
  const Memory small(4096);
  CHECK_THROWS(Store(w.config, w.arena->fd(), small.fd()), std::invalid_argument);
}

TEST_MAIN()
