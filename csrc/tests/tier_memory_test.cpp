// The tier in memory, alone and behind the wrapper that injects faults.
#include "core/tiers/faulty_tier.h"
#include "core/tiers/memory_tier.h"
#include "tier_contract.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using tiers::FaultRates;
using tiers::FaultyTier;
using tiers::MemoryTier;

namespace {

std::unique_ptr<Tier> make(std::uint64_t capacity_bytes) {
  tiers::MemoryTierConfig config;
  config.capacity_bytes = capacity_bytes;
  return std::make_unique<FaultyTier>(std::make_shared<MemoryTier>(config), 1);  // without faults: as the inner one
}

}  // namespace

KVCOMMONS_TIER_CONTRACT(make)

TEST(rotten_bytes_are_found_once_and_removed) {
  MemoryTier tier({});
  const Sample s(1);
  CHECK_EQ(tier_put(tier, s), TierStatus::Ok);
  CHECK(tier.rot(s.meta.id, 17));
  const Aligned into(40'000);
  CHECK_EQ(tier_get(tier, s.meta.id, into).status, TierStatus::Corrupt);
  CHECK_EQ(tier_get(tier, s.meta.id, into).status, TierStatus::Missing);
  CHECK_EQ(tier.stats().corrupt, 1u);
}

TEST(held_batches_begin_when_they_are_let_go) {
  FaultyTier tier(std::make_shared<MemoryTier>(tiers::MemoryTierConfig{}), 1);
  const Sample s(1);
  tier.hold(true);
  Answer<TierStatus> answer;
  CHECK(tier.put({s.put()}, answer.taker()));
  CHECK_EQ(tier.held_batches(), 1u);
  CHECK_EQ(tier_find(tier, s.meta.id), 0u);
  CHECK(!answer.over());
  CHECK(tier.release_one());
  CHECK_EQ(answer.wait()[0], TierStatus::Ok);
  CHECK(!tier.release_one());
}

TEST(faults_come_as_often_as_they_were_asked_for_and_never_as_wrong_bytes) {
  FaultRates rates;
  rates.put_failed = rates.put_dropped = rates.get_failed = rates.get_corrupt = rates.get_missing = 100;
  FaultyTier tier(std::make_shared<MemoryTier>(tiers::MemoryTierConfig{}), 7, rates);
  std::map<TierStatus, int> puts, gets;
  const Aligned into(4'096);
  for (std::uint64_t i = 0; i < 500; ++i) {
    const Sample s(i, 4'000);
    ++puts[tier_put(tier, s)];
    const GetResult result = tier_get(tier, s.meta.id, into);
    ++gets[result.status];
    if (result.status == TierStatus::Ok) s.check(result, into.data());
  }
  CHECK_GT(puts[TierStatus::Failed], 20);
  CHECK_GT(gets[TierStatus::Failed], 20);
  CHECK_GT(gets[TierStatus::Corrupt], 20);
  CHECK_GT(gets[TierStatus::Missing], 50);
  CHECK_GT(gets[TierStatus::Ok], 200);
}

TEST_MAIN()
