// The policies on caches of metadata: order, room, shadows, the choice among them, and the future's bound.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "eviction/chooser.h"
#include "eviction/prefix_cache.h"
#include "eviction/replay.h"
#include "eviction/shadows.h"

using namespace kvcommons::eviction;

namespace {

std::uint64_t seed() {
  const char* given = std::getenv("KVCOMMONS_SEED");
  const std::uint64_t value = given != nullptr ? std::strtoull(given, nullptr, 10) : 20'260'101;
  std::fprintf(stderr, "KVCOMMONS_SEED=%llu\n", static_cast<unsigned long long>(value));
  return value;
}

std::vector<Item> chain_of(std::uint64_t name, std::size_t length, std::uint64_t shared_name = 0,
                           std::size_t shared = 0) {
  std::vector<Item> items;
  for (std::size_t i = 0; i < length; ++i) items.push_back({(i < shared ? shared_name : name) * 1'000 + i + 1, 1});
  return items;
}

struct Stream {
  std::vector<std::uint32_t> lengths;
  std::vector<std::uint64_t> keys;
  void add(const std::vector<Item>& chain) {
    lengths.push_back(static_cast<std::uint32_t>(chain.size()));
    for (const Item& item : chain) keys.push_back(item.key);
  }
  [[nodiscard]] std::uint64_t hits(std::string_view policy, std::uint64_t capacity) const {
    const auto result = replay({lengths, keys}, policy, capacity);
    CHECK(result.has_value());
    return result->hits;
  }
};

}  // namespace

// Under every policy, with hints and changes of policy: what is there always has its prefix there, what was found was
// put before, and no more is held than there is room for.
TEST(suffixes_go_before_their_prefixes) {
  std::mt19937_64 rng(seed());
  for (const Kind first : {Kind::Lru, Kind::S3Fifo, Kind::Cost}) {
    PrefixCache cache(first, 40, 40);
    std::map<std::uint64_t, std::uint64_t> parent_of;
    for (int step = 0; step < 4'000; ++step) {
      const auto chain = chain_of(1 + rng() % 30, 1 + rng() % 12, 100 + rng() % 3, rng() % 4);
      Hints hints;
      hints.one_shot = rng() % 10 == 0;
      hints.priority = static_cast<std::int8_t>(static_cast<int>(rng() % 9) - 4);
      std::uint64_t before = 0;
      bool same_tree = true;
      for (const Item& item : chain) {
        same_tree = same_tree && parent_of.try_emplace(item.key, before).first->second == before;
        before = item.key;
      }
      if (!same_tree) continue;  // a key has one parent
      const std::size_t hit = cache.request(chain, hints);
      CHECK(hit <= chain.size());
      if (rng() % 20 == 0) cache.ended(chain);
      if (rng() % 50 == 0) cache.follow(static_cast<Kind>(rng() % kKinds));
      CHECK(cache.used() <= 40u);
      CHECK_EQ(cache.used(), cache.size());
      for (const auto& [key, parent] : parent_of) {
        if (parent != 0 && cache.contains(key)) CHECK(cache.contains(parent));
      }
    }
    CHECK(cache.evicted() > 1'000u);
  }
}

TEST(a_chain_longer_than_the_cache_keeps_its_beginning) {
  for (const Kind kind : {Kind::Lru, Kind::S3Fifo, Kind::Cost}) {
    PrefixCache cache(kind, 4, 4);
    const auto chain = chain_of(1, 10);
    CHECK_EQ(cache.request(chain), 0u);
    CHECK_EQ(cache.use(chain), 4u);
  }
}

TEST(lru_evicts_what_was_used_longest_ago) {
  PrefixCache cache(Kind::Lru, 4, 4);
  cache.request(chain_of(1, 2));
  cache.request(chain_of(2, 2));
  cache.request(chain_of(1, 2));
  cache.request(chain_of(3, 1));
  CHECK_EQ(cache.use(chain_of(1, 2)), 2u);
  CHECK_EQ(cache.use(chain_of(2, 2)), 1u);
}

TEST(s3fifo_keeps_what_was_used_twice_through_a_scan) {
  PrefixCache cache(Kind::S3Fifo, 100, 100), lru(Kind::Lru, 100, 100);
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t i = 1; i <= 50; ++i) {
      cache.request(chain_of(i, 1));
      lru.request(chain_of(i, 1));
    }
  }
  for (std::uint64_t i = 1'000; i < 1'300; ++i) {
    cache.request(chain_of(i, 1));
    lru.request(chain_of(i, 1));
  }
  std::size_t kept = 0, kept_by_lru = 0;
  for (std::uint64_t i = 1; i <= 50; ++i) {
    kept += cache.use(chain_of(i, 1));
    kept_by_lru += lru.use(chain_of(i, 1));
  }
  CHECK_EQ(kept, 50u);
  CHECK_EQ(kept_by_lru, 0u);
}

TEST(cost_keeps_what_is_used_often_and_what_is_dear_and_forgets_it_when_it_ages) {
  Policy policy(Kind::Cost, 10);
  Chunk often, once, deep;
  deep.position = 256;
  for (Chunk* chunk : {&often, &once, &deep}) {
    chunk->pages = 1;
    policy.came(*chunk, static_cast<std::uint64_t>(chunk - &often) + 77, 1);
  }
  policy.used(often, 2);
  CHECK(policy.rank(once) < policy.rank(often));
  CHECK(policy.rank(once) < policy.rank(deep));
  policy.set_ageing(100);
  Chunk fresh;
  fresh.pages = 1;
  policy.came(fresh, 99, 3);
  CHECK(policy.rank(often) < policy.rank(fresh));
}

TEST(a_large_chunk_is_worth_less_than_a_small_one_that_is_used_as_often) {
  Policy policy(Kind::Cost, 10);
  Chunk large, small;
  large.pages = 8;
  small.pages = 2;
  policy.came(large, 1, 1);
  policy.came(small, 2, 2);
  CHECK(policy.rank(large) < policy.rank(small));
}

TEST(what_is_marked_goes_first_under_every_policy) {
  for (const Kind kind : {Kind::Lru, Kind::S3Fifo, Kind::Cost}) {
    PrefixCache cache(kind, 6, 6);
    cache.request(chain_of(1, 2));
    cache.request(chain_of(2, 2));
    Hints once;
    once.one_shot = true;
    cache.request(chain_of(3, 2), once);
    cache.request(chain_of(4, 2));
    CHECK_EQ(cache.use(chain_of(3, 2)), 0u);
    CHECK_EQ(cache.use(chain_of(1, 2)), 2u);
    CHECK_EQ(cache.use(chain_of(2, 2)), 2u);
  }
}

TEST(an_ended_session_gives_up_its_own_chunks_and_not_what_others_share) {
  PrefixCache cache(Kind::Lru, 8, 8);
  const auto ended = chain_of(1, 5, 9, 2), other = chain_of(2, 4, 9, 2);
  cache.request(other);
  cache.request(ended);
  cache.ended(ended);
  cache.request(chain_of(3, 4));
  CHECK_EQ(cache.use(other), 4u);
  CHECK_EQ(cache.use(ended), 2u);
}

TEST(history_remembers_what_left_and_lets_the_oldest_go) {
  History history(64);
  for (std::uint64_t key = 1; key <= 40; ++key) history.put(key, static_cast<std::uint8_t>(key), key);
  std::size_t found = 0;
  for (std::uint64_t key = 21; key <= 40; ++key) {
    const auto row = history.find(key, 40);
    if (!row) continue;
    ++found;
    CHECK_EQ(row->uses, static_cast<std::uint8_t>(key));
    CHECK_EQ(row->age, 40 - key);
  }
  CHECK(found >= 15u);
  CHECK(!history.find(12'345, 40).has_value());
}

TEST(hints_survive_their_word_and_nonsense_is_brought_into_range) {
  const Hints hints{true, true, -3, 900};
  CHECK(Hints::unpacked(hints.packed()) == hints);
  CHECK(Hints::unpacked(0) == Hints{});
  CHECK_EQ(Hints::unpacked(0x7f00).priority, 4);
  CHECK_EQ(Hints::unpacked(0x8000).priority, -4);
}

// Chooser: nothing happens for a handful of chunks or equal hits; a clear lead is followed; there and back again.
TEST(the_chooser_follows_a_clear_lead_and_no_noise) {
  Chooser chooser(1'000, Kind::Lru);
  std::mt19937_64 rng(seed());
  for (int i = 0; i < 2'000; ++i) {
    const std::uint64_t base = rng() % 10;
    chooser.observe({base, rng() % 10, rng() % 10}, 20, 10 * static_cast<std::uint64_t>(i));
  }
  CHECK(chooser.switches() <= 12u);
  Chooser steady(1'000, Kind::Lru);
  std::uint64_t evicted = 0;
  for (int i = 0; i < 500; ++i) CHECK(steady.observe({10, 10, 10}, 20, evicted += 10) == Kind::Lru);
  for (int i = 0; i < 3'000; ++i) steady.observe({8, 8, 10}, 20, evicted += 10);
  CHECK(steady.current() == Kind::Cost);
  for (int i = 0; i < 9'000; ++i) steady.observe({12, 8, 10}, 20, evicted += 10);
  CHECK(steady.current() == Kind::Lru);
  CHECK_EQ(steady.switches(), 2u);
}

TEST(no_policy_finds_more_than_one_that_knows_the_future) {
  std::mt19937_64 rng(seed());
  Stream stream;
  for (int i = 0; i < 3'000; ++i) {
    const std::uint64_t name = 1 + std::min(rng() % 200, rng() % 200);
    stream.add(chain_of(name, 1 + name % 7, 900 + name % 4, 1 + name % 3));
  }
  for (const std::uint64_t capacity : {5u, 50u, 400u}) {
    const std::uint64_t best = stream.hits("belady", capacity);
    for (const char* policy : {"lru", "s3fifo", "cost", "auto"}) CHECK(stream.hits(policy, capacity) <= best);
  }
  const std::uint64_t all = stream.hits("belady", 1'000'000);
  for (const char* policy : {"lru", "s3fifo", "cost", "auto"}) CHECK_EQ(stream.hits(policy, 1'000'000), all);
}

TEST(replay_refuses_unknown_policies_and_lengths_that_do_not_add_up) {
  const std::vector<std::uint32_t> lengths{2, 2};
  const std::vector<std::uint64_t> keys{1, 2, 3};
  CHECK(!replay({lengths, keys}, "lru", 2).has_value());
  CHECK(!replay({{}, {}}, "fifo", 2).has_value());
  CHECK_EQ(replay({{}, {}}, "auto", 2)->hits, 0u);
}

// A scan with a few chunks used again and again: s3fifo's game. Sampled or not, the shadows see who wins.
TEST(sampled_shadows_rank_the_policies_as_whole_ones_do) {
  std::mt19937_64 rng(seed());
  Shadows whole({.capacity_pages = 8'000, .chunks_max = 8'000}),
      sampled({.capacity_pages = 8'000, .chunks_max = 1'000});
  std::vector<std::uint64_t> chain;
  for (std::uint64_t i = 0; i < 30'000; ++i) {
    chain = {1, 2, 3};  // a system prompt for all: the hub
    const std::uint64_t tail = i % 2 == 0 ? 1'000 + rng() % 1'500 : 1'000'000 + i;
    for (std::uint64_t j = 0; j < 4; ++j) chain.push_back(tail * 10 + j);
    whole.request(chain, 1);
    sampled.request(chain, 1);
  }
  const ShadowStats all = whole.stats(), some = sampled.stats();
  CHECK_EQ(all.one_in, 1u);
  CHECK_EQ(some.one_in, 8u);
  CHECK(some.asked * 12 > all.asked && some.asked * 5 < all.asked);
  for (std::size_t i = 0; i < kKinds; ++i) {
    const double true_rate = static_cast<double>(all.hits[i]) / static_cast<double>(all.asked);
    const double rate = static_cast<double>(some.hits[i]) / static_cast<double>(some.asked);
    CHECK(rate > true_rate - 0.04 && rate < true_rate + 0.04);
  }
}

TEST_MAIN()
