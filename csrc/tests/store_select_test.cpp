// Some of the chunks: what is here, clearing by tenant, key and age, and letting the end of a chain go.
#include "store_fixture.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::testing;

constexpr std::uint64_t kSlot = 64 * 1024;
const Key kFirst = make_key(1 + 0xf000'0000);

void put(const Engine& engine, const std::vector<Key>& chain, std::uint64_t tenant = 0, std::size_t from = 0) {
  const std::vector<Key> keys(chain.begin() + static_cast<std::ptrdiff_t>(from), chain.end());
  const auto slots = engine.reserve(keys, from == 0 ? Key{} : chain[from - 1], {}, tenant);
  CHECK_EQ(engine.commit(slots), keys.size());
}

std::vector<Key> gone(World& w, const Selection& selection) {
  std::vector<Key> removed;
  const std::uint64_t count = w.store->clear(selection, &removed);
  CHECK(count <= removed.size());  // what was still being filled went too
  return removed;
}

}  // namespace

// A tenant's chunks go, whatever model they are of; the others' stay.
TEST(a_tenant_is_cleared_alone) {
  World w(8 * kMiB);
  const Engine one(w, 1, kSlot), two(w, 2, kSlot);
  const auto a = make_chain(1, 4), b = make_chain(2, 4), c = make_chain(3, 4);
  put(one, a, 7);
  put(two, b, 7);
  put(one, c, 8);
  CHECK_EQ(gone(w, {{}, 7, {}, 0}).size(), 8u);
  CHECK_EQ(one.hits(a) + two.hits(b), 0u);
  CHECK_EQ(one.hits(c), 4u);
  CHECK_EQ(gone(w, {kFirst, 8, {}, 0}).size(), 4u);
  check_empty(*w.store);
}

// A chunk goes with all that follows it, on every branch: none of it could be hit any more.
TEST(a_key_is_cleared_with_what_follows_it) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto chain = make_chain(1, 6);
  put(e, chain);
  auto branch = make_chain(2, 3);
  branch.insert(branch.begin(), chain.begin(), chain.begin() + 3);
  put(e, branch, 0, 3);
  CHECK_EQ(gone(w, {kFirst, {}, {chain[2]}, 0}).size(), 7u);
  CHECK_EQ(e.hits(chain), 2u);
  CHECK(w.store->present(kFirst, chain) == (std::vector<std::uint8_t>{1, 1, 0, 0, 0, 0}));
  CHECK_EQ(gone(w, {make_key(99), {}, {chain[0]}, 0}).size(), 0u);  // another model's
  put(e, chain, 0, 2);
  CHECK_EQ(e.hits(chain), 6u);
}

// By age, what was stored before goes, and what was stored later upon it.
TEST(old_chunks_are_cleared_with_what_is_built_upon_them) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto old = make_chain(1, 2), young = make_chain(2, 2);
  put(e, old);
  w.clock_ms += 5'000;
  auto longer = make_chain(3, 2);
  longer.insert(longer.begin(), old.begin(), old.end());
  put(e, longer, 0, 2);
  put(e, young);
  w.clock_ms += 1'000;
  CHECK_EQ(gone(w, {{}, {}, {}, 7'000}).size(), 0u);
  CHECK_EQ(gone(w, {{}, {}, {}, 6'000}).size(), 4u);
  CHECK_EQ(e.hits(young), 2u);
}

// A writer that was filling a chunk when its tenant was cleared finds its slot gone, and nothing leaks.
TEST(what_was_being_filled_is_cleared_too) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto chain = make_chain(1, 3);
  const auto slots = e.reserve(chain, {}, {}, 7);
  gone(w, {{}, 7, {}, 0});
  CHECK_EQ(e.commit(slots), 0u);
  check_empty(*w.store);
}

// Only the end of a chain goes, as far as nobody reads, pins or builds upon it.
TEST(the_end_of_a_chain_is_let_go) {
  World w(8 * kMiB);
  const Engine e(w, 1, kSlot);
  const auto chain = make_chain(1, 6);
  put(e, chain);
  CHECK_EQ(w.store->let_go(kFirst, std::span(chain).first(3)), 0u);  // built upon
  CHECK_EQ(w.store->let_go(kFirst, std::span(chain).subspan(4)), 2u);
  CHECK_EQ(w.store->pin(std::span(chain).subspan(2, 1), true), 1u);
  CHECK_EQ(w.store->let_go(kFirst, chain), 1u);
  CHECK_EQ(e.hits(chain), 3u);
  const auto lease = e.lease(std::vector<Key>(chain.begin(), chain.begin() + 3));
  CHECK_EQ(w.store->pin(std::span(chain).subspan(2, 1), false), 1u);
  CHECK_EQ(w.store->let_go(kFirst, chain), 0u);
  e.release(lease.lease);
  CHECK_EQ(w.store->let_go(kFirst, chain), 3u);
  check_empty(*w.store);
}

TEST_MAIN()
