// What can be asked of a store: which fingerprints it knows, and how much of what is read it checks.
#include "store_fixture.h"
#include "xxh3.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;

constexpr std::uint64_t kSlot = 64 * 1024;

const FingerprintInfo& info_of(const std::vector<FingerprintInfo>& all, std::uint64_t fingerprint) {
  const auto at = std::find_if(all.begin(), all.end(),
                               [&](const auto& one) { return one.key == make_key(fingerprint + 0xf000'0000); });
  CHECK(at != all.end());
  return *at;
}

// Chunks committed with the checksum of what they hold.
void put_filled(World& w, const Engine& e, const std::vector<Key>& keys) {
  const auto slots = e.reserve(keys);
  for (const auto& r : slots) std::memset(w.arena->base() + r.slot.offset_bytes, 7, kSlot);
  CHECK_EQ(e.commit(slots, {}, xxh3_64(w.arena->base() + slots[0].slot.offset_bytes, kSlot)), keys.size());
}

// How many loads of `keys` go well before the one flipped byte in chunk `bad` is found.
std::uint64_t loads_until_found(std::uint64_t verify_bytes_max, std::size_t bad) {
  World w(32 * kMiB, kMiB, 2);
  w.config.verify_bytes_max = verify_bytes_max;
  w.open();
  const Engine e(w, 1, kSlot);
  const auto keys = make_chain(1, 64);
  put_filled(w, e, keys);
  std::vector<SlotRef> slots;
  const auto whole = e.lease(keys);
  if (e.begin(whole.lease, &slots) == Status::Ok) e.release(whole.lease);
  w.arena->base()[slots[bad].offset_bytes + 99] ^= std::byte{1};
  for (std::uint64_t loads = 0; loads < 10'000; ++loads) {
    const auto lease = e.lease(keys);
    if (e.begin(lease.lease) != Status::Ok) return loads;
    e.release(lease.lease);
  }
  fail("loads_until_found", static_cast<int>(bad), "the flipped byte was never found");
  return 0;
}

}  // namespace

// An engine is its scheduler: its ranks are processes of it, and no engines of their own.
TEST(engines_are_counted_by_their_schedulers) {
  World w(8 * kMiB);
  const Engine scheduler(w, 1, kSlot, 2, std::nullopt), first(w, 1, kSlot, 2, 0), second(w, 1, kSlot, 2, 1);
  CHECK_EQ(w.store->stats().sessions, 3u);
  CHECK_EQ(w.store->stats().engines, 1u);
  w.store->close_session(scheduler.id);
  w.store->close_session(first.id);
  CHECK_EQ(w.store->stats().sessions, 1u);
  CHECK_EQ(w.store->stats().engines, 0u);
}

TEST(a_fingerprint_is_told_with_its_chunks_bytes_and_processes) {
  World w(8 * kMiB);
  const Engine first(w, 1, kSlot);
  const Engine again(w, 1, kSlot);
  const Engine other(w, 2, kSlot);
  w.store->note_process(first.id, 4711);
  w.store->note_process(again.id, 12);
  first.put(make_chain(1, 5));
  other.reserve(make_chain(2, 3));
  const auto all = w.store->fingerprints();
  CHECK_EQ(all.size(), 2u);
  CHECK_EQ(info_of(all, 1).chunks, 5u);
  CHECK_EQ(info_of(all, 1).used_bytes, 5 * kSlot);
  CHECK(info_of(all, 1).pids == (std::vector<std::uint32_t>{12, 4711}));
  CHECK_EQ(info_of(all, 2).chunks, 0u);  // what is being filled takes room and cannot be hit
  CHECK_EQ(info_of(all, 2).used_bytes, 3 * kSlot);
  CHECK(info_of(all, 2).pids.empty());
}

TEST(a_fingerprints_chunks_are_counted_through_a_restart_and_a_clear) {
  World w(8 * kMiB);
  {
    const Engine e(w, 1, kSlot);
    e.put(make_chain(1, 5));
  }
  w.crash_and_adopt();
  CHECK_EQ(info_of(w.store->fingerprints(), 1).chunks, 5u);
  CHECK_EQ(w.store->clear(nullptr), 5u);
  CHECK_EQ(info_of(w.store->fingerprints(), 1).chunks, 0u);
  CHECK_EQ(info_of(w.store->fingerprints(), 1).used_bytes, 0u);
}

TEST(one_begin_checks_a_bounded_number_of_bytes_and_later_ones_the_rest) {
  for (const std::size_t bad : {std::size_t{0}, std::size_t{31}, std::size_t{63}}) {
    // Every second of 64 chunks would be checked: all of that at once, or one slot at a time.
    CHECK(loads_until_found(64 * kSlot, bad) < 12);
    CHECK(loads_until_found(1, bad) > 0);
  }
  std::uint64_t bounded = 0;
  for (std::size_t bad = 0; bad < 64; bad += 7) bounded += loads_until_found(1, bad);
  CHECK(bounded > 10 * 16);  // of ten places: far more than the two loads each that all at once would take
}

TEST_MAIN()
