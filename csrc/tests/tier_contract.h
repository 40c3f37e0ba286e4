// What every tier does, whatever its medium: one suite. A test file of a tier ends with
//   KVCOMMONS_TIER_CONTRACT(make)   where make(capacity_bytes) returns a fresh, empty std::unique_ptr<Tier>
//   TEST_MAIN()
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "check.h"
#include "core/tier.h"
#include "core/xxh3.h"

namespace kvcommons::testing {

using TierMaker = std::function<std::unique_ptr<Tier>(std::uint64_t capacity_bytes)>;

inline constexpr std::uint64_t kTierMiB = 1ull << 20;

// Memory as slots of the arena are: aligned, with room up to the next multiple of kSlotAlignBytes.
class Aligned {
 public:
  explicit Aligned(std::uint64_t bytes)
      : bytes_((bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes),
        data_(static_cast<std::byte*>(std::aligned_alloc(kSlotAlignBytes, bytes_)), &std::free) {
    CHECK(data_ != nullptr);
    std::memset(data_.get(), 0, bytes_);
  }
  [[nodiscard]] std::byte* data() const { return data_.get(); }
  [[nodiscard]] std::uint64_t bytes() const { return bytes_; }

 private:
  std::uint64_t bytes_;
  std::unique_ptr<std::byte, void (*)(void*)> data_;
};

inline Key tier_key(std::uint64_t number) {
  Key key;
  std::mt19937_64 random(number + 0x7e57);
  for (std::size_t i = 0; i < kKeyBytes; i += 8) {
    const std::uint64_t part = random();
    std::memcpy(key.bytes.data() + i, &part, sizeof part);
  }
  return key;
}

// One shard with its bytes, all of it made from one number.
struct Sample {
  ShardMeta meta;
  Aligned bytes;

  explicit Sample(std::uint64_t number, std::uint64_t payload_bytes = 40'000, std::uint64_t fingerprint = 1,
                  std::uint16_t rank = 0)
      : bytes(payload_bytes) {
    std::mt19937_64 random(number * 31 + rank);
    for (std::uint64_t i = 0; i < payload_bytes; ++i) bytes.data()[i] = static_cast<std::byte>(random());
    meta.id = {tier_key(fingerprint + 1'000'000), tier_key(number), {0, 4, rank, static_cast<std::uint16_t>(rank + 1)}};
    meta.parent = number % 4 == 0 ? Key{} : tier_key(number - 1);
    meta.tenant = number * 7;
    meta.payload_bytes = payload_bytes;
    meta.checksum = xxh3_64(bytes.data(), payload_bytes);
    meta.chunk_tokens = 256;
    for (std::uint64_t i = 0; i < number % 5; ++i) meta.text_keys.push_back(number * 100 + i);
  }
  [[nodiscard]] PutItem put() const { return {meta, bytes.data()}; }
  void check(const GetResult& result, const std::byte* data) const {
    CHECK_EQ(result.status, TierStatus::Ok);
    CHECK(result.meta.id == meta.id);
    CHECK(result.meta.parent == meta.parent);
    CHECK_EQ(result.meta.tenant, meta.tenant);
    CHECK_EQ(result.meta.payload_bytes, meta.payload_bytes);
    CHECK_EQ(result.meta.checksum, meta.checksum);
    CHECK_EQ(result.meta.chunk_tokens, meta.chunk_tokens);
    CHECK_EQ(result.meta.codec, meta.codec);
    CHECK(result.meta.text_keys == meta.text_keys);
    CHECK_EQ(std::memcmp(data, bytes.data(), meta.payload_bytes), 0);
  }
};

// Waits for one batch. Its answer comes once, and on another thread than the caller's.
template <typename Item>
class Answer {
 public:
  std::function<void(std::span<const Item>)> taker() {
    return [state = state_](std::span<const Item> items) {
      const std::lock_guard lock(state->mutex);
      CHECK(!state->over);
      CHECK(std::this_thread::get_id() != state->caller);
      state->items.assign(items.begin(), items.end());
      state->over = true;
      state->changed.notify_all();
    };
  }
  std::vector<Item> wait() {
    std::unique_lock lock(state_->mutex);
    CHECK(state_->changed.wait_for(lock, std::chrono::seconds(60), [this] { return state_->over; }));
    return state_->items;
  }
  [[nodiscard]] bool over() const {
    const std::lock_guard lock(state_->mutex);
    return state_->over;
  }

 private:
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::thread::id caller = std::this_thread::get_id();
    std::vector<Item> items;
    bool over = false;
  };
  std::shared_ptr<State> state_ = std::make_shared<State>();
};

// Offers the batch again as long as the tier has no room for it.
inline std::vector<TierStatus> tier_put(Tier& tier, std::vector<PutItem> batch) {
  Answer<TierStatus> answer;
  while (!tier.put(batch, answer.taker())) std::this_thread::yield();
  return answer.wait();
}

inline std::vector<GetResult> tier_get(Tier& tier, std::vector<GetItem> batch) {
  Answer<GetResult> answer;
  while (!tier.get(batch, answer.taker())) std::this_thread::yield();
  return answer.wait();
}

inline TierStatus tier_put(Tier& tier, const Sample& sample) { return tier_put(tier, {sample.put()}).at(0); }

inline GetResult tier_get(Tier& tier, const ShardId& id, const Aligned& into) {
  return tier_get(tier, {GetItem{id, into.data(), into.bytes()}}).at(0);
}

inline std::uint64_t tier_find(Tier& tier, const ShardId& id) {
  std::uint64_t bytes = 0;
  tier.find(std::span(&id, 1), std::span(&bytes, 1));
  return bytes;
}

using ShardOrder = std::tuple<std::array<std::uint8_t, kKeyBytes>, std::array<std::uint8_t, kKeyBytes>, std::uint64_t>;
inline ShardOrder order_of(const ShardId& id) {
  return {id.fingerprint.bytes, id.key.bytes, std::bit_cast<std::uint64_t>(id.rect)};
}

namespace contract {

// What was put is handed out byte for byte with all that was said of it, and another's identity finds nothing.
inline void round_trip(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  std::vector<Sample> samples;
  std::vector<PutItem> batch;
  for (const std::uint64_t payload : {1ull, 4'095ull, 4'096ull, 4'097ull, 40'000ull, 1'000'000ull}) {
    samples.emplace_back(samples.size() + 1, payload);
  }
  samples.emplace_back(3, 40'000, 1, 1);  // the same key, another rank's rectangle
  samples.emplace_back(3, 40'000, 2);     // the same key of another model
  for (const Sample& s : samples) batch.push_back(s.put());
  for (const TierStatus status : tier_put(*tier, batch)) CHECK_EQ(status, TierStatus::Ok);
  std::vector<Aligned> into;
  std::vector<GetItem> wanted;
  for (const Sample& s : samples) {
    into.emplace_back(s.meta.payload_bytes);
    wanted.push_back({s.meta.id, into.back().data(), into.back().bytes()});
    CHECK_EQ(tier_find(*tier, s.meta.id), s.meta.payload_bytes);
    ShardMeta meta;
    CHECK(tier->describe(s.meta.id, &meta));
    CHECK(meta.parent == s.meta.parent);
    CHECK(meta.text_keys == s.meta.text_keys);
    CHECK_EQ(meta.checksum, s.meta.checksum);
  }
  const auto results = tier_get(*tier, wanted);
  for (std::size_t i = 0; i < samples.size(); ++i) samples[i].check(results[i], into[i].data());

  ShardId strange = samples[0].meta.id;
  strange.rect.head_end = 9;
  ShardId foreign = samples[1].meta.id;
  foreign.fingerprint = tier_key(99);
  for (const ShardId& id : {strange, foreign, ShardId{samples[0].meta.id.fingerprint, tier_key(1'234), {0, 4, 0, 1}}}) {
    CHECK_EQ(tier_get(*tier, id, into[0]).status, TierStatus::Missing);
    CHECK_EQ(tier_find(*tier, id), 0u);
    ShardMeta meta;
    CHECK(!tier->describe(id, &meta));
  }
  const TierStats stats = tier->stats();
  CHECK_EQ(stats.shards, samples.size());
  CHECK_GE(stats.used_bytes, 1'000'000u);
}

// Batches may be empty, and mix what is here with what is not.
inline void mixed_batches(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  CHECK(tier_put(*tier, std::vector<PutItem>{}).empty());
  CHECK(tier_get(*tier, std::vector<GetItem>{}).empty());
  const Sample here(1), absent(2);
  CHECK_EQ(tier_put(*tier, here), TierStatus::Ok);
  const Aligned a(40'000), b(40'000), c(40'000);
  const auto got = tier_get(*tier, {{absent.meta.id, a.data(), a.bytes()},
                                    {here.meta.id, b.data(), b.bytes()},
                                    {here.meta.id, c.data(), c.bytes()}});
  CHECK_EQ(got[0].status, TierStatus::Missing);
  here.check(got[1], b.data());
  here.check(got[2], c.data());
}

// What is there already is Ok and takes no second place.
inline void twice(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  const Sample s(1);
  CHECK_EQ(tier_put(*tier, s), TierStatus::Ok);
  const std::uint64_t used = tier->stats().used_bytes;
  CHECK_EQ(tier_put(*tier, s), TierStatus::Ok);
  for (const TierStatus status : tier_put(*tier, {s.put(), s.put()})) CHECK_EQ(status, TierStatus::Ok);
  CHECK_EQ(tier->stats().shards, 1u);
  CHECK_EQ(tier->stats().used_bytes, used);
}

// Bytes that do not have their checksum are never called Ok, and a buffer too small is not written beyond its end.
inline void never_wrong(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  Sample lying(1);
  lying.meta.checksum ^= 1;
  (void)tier_put(*tier, lying);
  const Aligned into(40'000);
  CHECK_NE(tier_get(*tier, lying.meta.id, into).status, TierStatus::Ok);
  const Sample good(2);
  CHECK_EQ(tier_put(*tier, good), TierStatus::Ok);
  std::memset(into.data(), 0x5a, into.bytes());
  CHECK_NE(tier_get(*tier, {{good.meta.id, into.data(), kSlotAlignBytes}}).at(0).status, TierStatus::Ok);
  for (std::uint64_t i = kSlotAlignBytes; i < into.bytes(); ++i) CHECK(into.data()[i] == std::byte{0x5a});
  good.check(tier_get(*tier, good.meta.id, into), into.data());
}

// The capacity is never exceeded, what had to go is told, and what the events leave is what is found.
inline void capacity_and_events(const TierMaker& make) {
  const std::uint64_t capacity = 16 * kTierMiB;
  const auto tier = make(capacity);
  std::map<ShardOrder, ShardId> told;
  const auto hear = [&] {
    bool gap = false;
    for (auto events = tier->drain_events(100, &gap); !events.empty(); events = tier->drain_events(100, &gap)) {
      CHECK(!gap);
      for (const TierEvent& event : events) {
        const ShardOrder key = order_of(event.meta.id);
        if (event.kind == TierEvent::Kind::Stored) {
          CHECK(told.emplace(key, event.meta.id).second);
        } else {
          CHECK_EQ(told.erase(key), 1u);
        }
      }
    }
  };
  std::vector<ShardId> ids;
  for (std::uint64_t i = 0; i < 96; ++i) {
    const Sample s(i, 500'000);
    ids.push_back(s.meta.id);
    (void)tier_put(*tier, s);
    CHECK_LE(tier->stats().used_bytes, capacity);
    CHECK_LE(tier->stats().capacity_bytes, capacity);
    hear();
  }
  const TierStats stats = tier->stats();
  CHECK_GT(stats.shards, 8u);  // a third of the capacity at least is of use
  CHECK_LT(stats.shards, 34u);
  CHECK_GT(stats.evicted, 0u);
  std::uint64_t found = 0;
  for (std::uint64_t i = 0; i < ids.size(); ++i) {
    const bool here = tier_find(*tier, ids[i]) != 0;
    CHECK_EQ(here, told.contains(order_of(ids[i])));
    found += here ? 1 : 0;
    if (here) {
      const Aligned into(500'000);
      Sample(i, 500'000).check(tier_get(*tier, ids[i], into), into.data());
    }
  }
  CHECK_EQ(found, stats.shards);
}

// Removed shards are gone at once; clear() takes one fingerprint's or all; each is told.
inline void removal(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 12; ++i) samples.emplace_back(i, 40'000, 1 + i % 2);
  for (const Sample& s : samples) CHECK_EQ(tier_put(*tier, s), TierStatus::Ok);
  const std::vector<ShardId> two{samples[0].meta.id, samples[1].meta.id, {tier_key(1), tier_key(99), {0, 1, 0, 1}}};
  CHECK_EQ(tier->remove(two), 2u);
  CHECK_EQ(tier->remove(two), 0u);
  const Aligned into(40'000);
  CHECK_EQ(tier_get(*tier, two[0], into).status, TierStatus::Missing);
  CHECK_EQ(tier_find(*tier, two[1]), 0u);
  const Key other = samples[1].meta.id.fingerprint;
  CHECK_EQ(tier->clear(&other), 5u);
  CHECK_EQ(tier->stats().shards, 5u);
  for (std::size_t i = 2; i < samples.size(); ++i) {
    const bool cleared = samples[i].meta.id.fingerprint == other;
    CHECK_EQ(tier_get(*tier, samples[i].meta.id, into).status, cleared ? TierStatus::Missing : TierStatus::Ok);
  }
  CHECK_EQ(tier_put(*tier, samples[0]), TierStatus::Ok);  // what was removed may come again
  samples[0].check(tier_get(*tier, samples[0].meta.id, into), into.data());
  CHECK_EQ(tier->clear(nullptr), 6u);
  CHECK_EQ(tier->stats().shards, 0u);
  bool gap = false;
  std::uint64_t stored = 0, dropped = 0;
  for (const TierEvent& event : tier->drain_events(1'000, &gap)) {
    (event.kind == TierEvent::Kind::Stored ? stored : dropped) += 1;
  }
  CHECK(!gap);
  CHECK_EQ(stored, 13u);
  CHECK_EQ(dropped, 13u);
}

// A quiet tier's inventory lists each shard once, in pages of any size.
inline void inventory(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  std::set<ShardOrder> expected;
  for (std::uint64_t i = 0; i < 25; ++i) {
    const Sample s(i, 5'000);
    CHECK_EQ(tier_put(*tier, s), TierStatus::Ok);
    expected.insert(order_of(s.meta.id));
  }
  for (const std::size_t page : {1u, 7u, 25u, 100u}) {
    std::set<ShardOrder> listed;
    std::uint64_t cursor = 0;
    int pages = 0;
    do {
      for (const ShardMeta& meta : tier->inventory(&cursor, page)) {
        CHECK(listed.insert(order_of(meta.id)).second);
        CHECK_EQ(meta.payload_bytes, 5'000u);
      }
      CHECK_LT(++pages, 1'000);
    } while (cursor != 0);
    CHECK(listed == expected);
  }
}

// A flood is refused at a bound or taken: each batch that was taken is answered once, no other is.
inline void flood(const TierMaker& make) {
  constexpr std::size_t kRounds = 5;
  std::atomic<int> answered{0};
  int taken = 0;
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 200; ++i) samples.emplace_back(i, 40'000);
  std::vector<Aligned> into;  // one for each get: a buffer is the tier's until it has answered
  for (std::size_t i = 0; i < kRounds * samples.size(); ++i) into.emplace_back(40'000);
  {
    const auto tier = make(64 * kTierMiB);
    for (std::size_t round = 0; round < kRounds; ++round) {
      for (std::size_t i = 0; i < samples.size(); ++i) {
        const Sample& s = samples[i];
        const Aligned& buffer = into[round * samples.size() + i];
        taken += tier->put({s.put()}, [&](std::span<const TierStatus> items) {
          CHECK_EQ(items.size(), 1u);
          ++answered;
        });
        taken += tier->get({GetItem{s.meta.id, buffer.data(), buffer.bytes()}}, [&](std::span<const GetResult> items) {
          CHECK_EQ(items.size(), 1u);
          ++answered;
        });
      }
    }
    CHECK_GT(taken, 0);
  }  // a tier's end answers everything first
  CHECK_EQ(answered.load(), taken);
}

// The answer's callback may use the tier: the next batch of a pipeline is begun there.
inline void from_the_callback(const TierMaker& make) {
  const auto tier = make(64 * kTierMiB);
  const Sample s(1);
  const Aligned into(40'000);
  Answer<GetResult> answer;
  CHECK(tier->put({s.put()}, [&](std::span<const TierStatus> statuses) {
    CHECK_EQ(statuses[0], TierStatus::Ok);
    CHECK_EQ(tier_find(*tier, s.meta.id), s.meta.payload_bytes);
    std::string why;
    (void)tier->health(&why);
    (void)tier->stats();
    std::thread([&, taker = answer.taker()] {  // another thread, so that the answer's check of the caller holds
      CHECK(tier->get({GetItem{s.meta.id, into.data(), into.bytes()}}, taker));
    })
        .join();
  }));
  s.check(answer.wait()[0], into.data());
}

// Many threads at once, with removals and clears between: whatever is called Ok is right.
inline void concurrent(const TierMaker& make) {
  const auto tier = make(16 * kTierMiB);
  std::vector<Sample> samples;
  for (std::uint64_t i = 0; i < 64; ++i) samples.emplace_back(i, 300'000 + i * 1'000, i % 3);
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      const Aligned into(400'000);
      for (int step = 0; step < 150; ++step) {
        const Sample& s = samples[random() % samples.size()];
        switch (random() % 8) {
          case 0:
            (void)tier->remove(std::span(&s.meta.id, 1));
            break;
          case 1:
            if (random() % 16 == 0) (void)tier->clear(&s.meta.id.fingerprint);
            break;
          case 2:
          case 3:
          case 4:
            (void)tier_put(*tier, s);
            break;
          default: {
            const GetResult result = tier_get(*tier, s.meta.id, into);
            if (result.status == TierStatus::Ok) {
              s.check(result, into.data());
            } else {
              CHECK(result.status == TierStatus::Missing || result.status == TierStatus::Busy);
            }
          }
        }
        CHECK_LE(tier->stats().used_bytes, 16 * kTierMiB);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(tier->stats().corrupt, 0u);
}

// It has a name for its metrics, and says that it serves.
inline void says_what_it_is(const TierMaker& make) {
  const auto tier = make(16 * kTierMiB);
  CHECK(!tier->name().empty());
  std::string why = "something";
  CHECK_EQ(tier->health(&why), TierHealth::Serving);
  CHECK(why.empty());
  CHECK_GT(tier->stats().capacity_bytes, 0u);
}

}  // namespace contract
}  // namespace kvcommons::testing

#define KVCOMMONS_TIER_CONTRACT(make)                                                             \
  TEST(contract_round_trip) { kvcommons::testing::contract::round_trip(make); }                   \
  TEST(contract_mixed_batches) { kvcommons::testing::contract::mixed_batches(make); }             \
  TEST(contract_twice) { kvcommons::testing::contract::twice(make); }                             \
  TEST(contract_never_wrong) { kvcommons::testing::contract::never_wrong(make); }                 \
  TEST(contract_capacity_and_events) { kvcommons::testing::contract::capacity_and_events(make); } \
  TEST(contract_removal) { kvcommons::testing::contract::removal(make); }                         \
  TEST(contract_inventory) { kvcommons::testing::contract::inventory(make); }                     \
  TEST(contract_flood) { kvcommons::testing::contract::flood(make); }                             \
  TEST(contract_from_the_callback) { kvcommons::testing::contract::from_the_callback(make); }     \
  TEST(contract_concurrent) { kvcommons::testing::contract::concurrent(make); }                   \
  TEST(contract_says_what_it_is) { kvcommons::testing::contract::says_what_it_is(make); }
