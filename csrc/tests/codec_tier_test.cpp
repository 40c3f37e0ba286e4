// Codecs between memory and a tier: what was put comes back, in whatever form it lies there, or nothing does.
#include "core/tiers/codec_tier.h"

#include <cmath>

#include "core/tiers/memory_tier.h"
#include "core/zstd_library.h"
#include "disk_fixture.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using kvcodec::CodecId;
using kvcodec::CodecSpec;
using tiers::CodecTier;
using tiers::CodecTierConfig;
using tiers::MemoryTier;

namespace {

constexpr CodecSpec kNone{}, kLossless{CodecId::Lossless, 0}, kInt8{CodecId::Int8, 0}, kInt4{CodecId::Int4, 32};
constexpr KvForm kLayout{kernels::Element::Bf16, kvcodec::BlockOrder::HPN, 16, 64, 64};
constexpr std::uint64_t kSlotBytes = 4ull * 2 * 256 * (64 + 64) * 2;  // layers, heads, tokens, channels, bytes

CodecTierConfig config_of(const CodecSpec& codec) {
  CodecTierConfig config;
  config.codec = codec;
  config.decoders = 2;
  return config;
}

// Layouts that outlive the suite's tiers.
KvLayouts& shared_layouts() {
  static KvLayouts layouts;
  return layouts;
}

std::unique_ptr<Tier> over_memory(std::uint64_t capacity_bytes) {
  tiers::MemoryTierConfig inner;
  inner.capacity_bytes = capacity_bytes;
  return std::make_unique<CodecTier>(std::make_shared<MemoryTier>(inner), &shared_layouts(), config_of(kLossless));
}

std::unique_ptr<Tier> over_disk(std::uint64_t capacity_bytes) {
  std::shared_ptr<Tier> inner = passing_disk_tier(capacity_bytes, DiskEngine::Auto, 2);
  return std::make_unique<CodecTier>(std::move(inner), &shared_layouts(), config_of(kLossless));
}

// A chunk of normal values, as an engine's: two heads of 64 channels, four layers.
struct KvSample : Sample {
  explicit KvSample(std::uint64_t number, std::uint64_t fingerprint = 1, float scale = 1.0F)
      : Sample(number, kSlotBytes, fingerprint) {
    meta.id.rect = {0, 4, 0, 2};
    std::mt19937_64 random(number);
    std::normal_distribution<float> normal(0.0F, scale);
    for (std::uint64_t i = 0; i < kSlotBytes / 2; ++i) {
      const float x = normal(random);
      std::uint32_t bits = 0;
      std::memcpy(&bits, &x, sizeof bits);
      const auto half = static_cast<std::uint16_t>(bits >> 16);
      std::memcpy(bytes.data() + 2 * i, &half, 2);
    }
    meta.checksum = xxh3_64(bytes.data(), kSlotBytes);
  }
};

ShardMeta described(Tier& tier, const Sample& sample) {
  ShardMeta meta;
  CHECK(tier.describe(sample.meta.id, &meta));
  return meta;
}

// How far what came back is from what was put, over the largest value; -1 where nothing came back.
double error_of(Tier& tier, const Sample& sample) {
  const Aligned into(kSlotBytes);
  const GetResult got = tier_get(tier, sample.meta.id, into);
  if (got.status != TierStatus::Ok) return -1;
  CHECK_EQ(got.meta.codec, 0);
  CHECK_EQ(got.meta.payload_bytes, kSlotBytes);
  CHECK_EQ(got.meta.checksum, xxh3_64(into.data(), kSlotBytes));
  double worst = 0, largest = 0;
  for (std::uint64_t i = 0; i < kSlotBytes / 2; ++i) {
    const auto value = [&](const std::byte* from) {
      std::uint16_t half = 0;
      std::memcpy(&half, from + 2 * i, 2);
      return static_cast<double>(kernels::float_of_bf16(half));
    };
    worst = std::max(worst, std::abs(value(into.data()) - value(sample.bytes.data())));
    largest = std::max(largest, std::abs(value(sample.bytes.data())));
  }
  return worst / largest;
}

}  // namespace

namespace behind_memory {
KVCOMMONS_TIER_CONTRACT(over_memory)
}
namespace behind_disk {
KVCOMMONS_TIER_CONTRACT(over_disk)
}

TEST(a_lossless_tier_takes_less_room_and_gives_every_bit_back) {
  if (zstd_missing() != nullptr) return;
  const auto inner = std::make_shared<MemoryTier>(tiers::MemoryTierConfig{});
  KvLayouts layouts;
  CodecTier tier(inner, &layouts, config_of(kLossless));
  for (const bool known : {false, true}) {  // an engine that says nothing of its slots is served as well
    if (known) layouts.declare(tier_key(1'000'002), kLayout);
    const KvSample sample(1, known ? 2 : 1);
    CHECK_EQ(tier_put(tier, sample), TierStatus::Ok);
    const ShardMeta meta = described(tier, sample);
    CHECK_EQ(meta.codec, static_cast<std::uint16_t>(CodecId::Lossless));
    CHECK_EQ(meta.raw_bytes, kSlotBytes);
    CHECK_LT(meta.payload_bytes, kSlotBytes * 3 / 4);
    CHECK_EQ(tier_find(tier, sample.meta.id), kSlotBytes);
    const Aligned into(kSlotBytes);
    sample.check(tier_get(tier, sample.meta.id, into), into.data());
  }
  CHECK_EQ(tier.codec_stats().encoded, 2u);
  CHECK_EQ(tier.codec_stats().decoded, 2u);
  CHECK_LT(inner->stats().used_bytes, 2 * kSlotBytes * 3 / 4);
}

TEST(what_no_codec_makes_smaller_stays_as_it_is) {
  KvLayouts layouts;
  CodecTier tier(std::make_shared<MemoryTier>(tiers::MemoryTierConfig{}), &layouts, config_of(kLossless));
  const Sample noise(1, 40'000), odd(2, 40'001);
  for (const Sample* sample : {&noise, &odd}) {
    CHECK_EQ(tier_put(tier, *sample), TierStatus::Ok);
    CHECK_EQ(described(tier, *sample).codec, 0);
    const Aligned into(sample->meta.payload_bytes);
    sample->check(tier_get(tier, sample->meta.id, into), into.data());
  }
  CHECK_EQ(tier.codec_stats().kept_raw, 2u);
}

TEST(loss_needs_a_namespace_of_its_own_and_a_layout) {
  KvLayouts layouts;
  CodecTier tier(std::make_shared<MemoryTier>(tiers::MemoryTierConfig{}), &layouts, config_of(kInt8));
  const KvSample exact(1, 1), unknown(2, 2), lossy(3, 3);
  for (const std::uint64_t fingerprint : {1, 3}) layouts.declare(tier_key(1'000'000 + fingerprint), kLayout);
  for (const std::uint64_t fingerprint : {2, 3}) layouts.allow(tier_key(1'000'000 + fingerprint), kInt8);
  for (const KvSample* sample : {&exact, &unknown, &lossy}) CHECK_EQ(tier_put(tier, *sample), TierStatus::Ok);
  const Aligned into(kSlotBytes);
  for (const KvSample* sample : {&exact, &unknown}) {
    CHECK_NE(described(tier, *sample).codec, static_cast<std::uint16_t>(CodecId::Int8));
    sample->check(tier_get(tier, sample->meta.id, into), into.data());
  }
  CHECK_EQ(described(tier, lossy).codec, static_cast<std::uint16_t>(CodecId::Int8));
  const double error = error_of(tier, lossy);
  CHECK(error > 0 && error < 0.01);
  CHECK_EQ(tier.codec_stats().layout_unknown, 1u);
}

// Two engines that disagree about one fingerprint: whose numbers are right is not known.
TEST(layouts_that_disagree_are_unknown) {
  KvLayouts layouts;
  layouts.declare(tier_key(1), kLayout);
  layouts.declare(tier_key(1), kLayout);
  CHECK(layouts.find(tier_key(1)).has_value());
  KvForm other = kLayout;
  other.order = kvcodec::BlockOrder::HNP;
  layouts.declare(tier_key(1), other);
  CHECK(!layouts.find(tier_key(1)).has_value());
  layouts.declare(tier_key(1), kLayout);
  CHECK(!layouts.find(tier_key(1)).has_value());
}

TEST(values_that_no_codec_with_loss_takes_are_kept_without) {
  KvLayouts layouts;
  layouts.declare(tier_key(1'000'001), kLayout);
  layouts.allow(tier_key(1'000'001), kInt8);
  CodecTier tier(std::make_shared<MemoryTier>(tiers::MemoryTierConfig{}), &layouts, config_of(kInt8));
  KvSample sample(1);
  const std::uint16_t infinite = 0x7F80;
  std::memcpy(sample.bytes.data() + 1'000, &infinite, 2);
  sample.meta.checksum = xxh3_64(sample.bytes.data(), kSlotBytes);
  CHECK_EQ(tier_put(tier, sample), TierStatus::Ok);
  const Aligned into(kSlotBytes);
  sample.check(tier_get(tier, sample.meta.id, into), into.data());
  CHECK_EQ(tier.codec_stats().not_finite, 1u);
}

// Chunks with and without loss, each codec, in one file; then the settings change, one after the other.
TEST(a_file_of_mixed_codecs_is_read_whatever_is_set_now) {
  const Folder folder;
  const DiskConfig disk = disk_config(folder, 32 * kTierMiB);
  const Key lossy_space = tier_key(1'000'003);
  const KvSample plain(1), lossless(2), int8(3, 3), int4(4, 3);
  {
    KvLayouts layouts;
    layouts.declare(lossy_space, kLayout);
    CodecTier tier(make_disk_tier(disk), &layouts, config_of(kNone));
    CHECK_EQ(tier_put(tier, plain), TierStatus::Ok);
    for (const auto& [codec, sample] : {std::pair{kLossless, &lossless}, {kInt8, &int8}, {kInt4, &int4}}) {
      layouts.allow(lossy_space, codec);
      Answer<TierStatus> answer;
      CHECK(tier.put_as(codec, {sample->put()}, answer.taker()));
      CHECK_EQ(answer.wait().at(0), TierStatus::Ok);
    }
    CHECK_EQ(described(tier, int4).codec_group, 32);
  }
  for (const CodecSpec& now : {kNone, kLossless, kInt8}) {
    KvLayouts layouts;
    CodecTier tier(make_disk_tier(disk), &layouts, config_of(now));
    const Aligned into(kSlotBytes);
    for (const KvSample* sample : {&plain, &lossless}) {
      CHECK_EQ(tier_find(tier, sample->meta.id), kSlotBytes);
      sample->check(tier_get(tier, sample->meta.id, into), into.data());
    }
    // Nobody has said yet that loss is welcome there.
    CHECK_EQ(tier_get(tier, int8.meta.id, into).status, TierStatus::Missing);
    layouts.allow(lossy_space, kInt8);
    CHECK(error_of(tier, int8) > 0);
    CHECK_EQ(tier_get(tier, int4.meta.id, into).status, TierStatus::Missing);
    CHECK_EQ(described(tier, int4).codec_group, 32);
    CHECK_EQ(tier.codec_stats().lossy_refused, 2u);
  }
}

// A payload whose checksum is right and whose content is not: what no medium does, and a fault in a tier may.
TEST(a_damaged_payload_is_a_miss_whatever_byte_it_is) {
  if (zstd_missing() != nullptr) return;
  KvLayouts layouts;
  const auto inner = std::make_shared<MemoryTier>(tiers::MemoryTierConfig{});
  const KvSample sample(1);
  Aligned payload(2 * kSlotBytes);
  ShardMeta meta;
  {
    CodecTier tier(inner, &layouts, config_of(kLossless));
    CHECK_EQ(tier_put(tier, sample), TierStatus::Ok);
    meta = described(tier, sample);
    CHECK_EQ(tier_get(*inner, {GetItem{meta.id, payload.data(), payload.bytes()}}).at(0).status, TierStatus::Ok);
  }
  CodecTier tier(inner, &layouts, config_of(kNone));
  const Aligned into(kSlotBytes);
  std::mt19937_64 random(5);
  for (int step = 0; step < 300; ++step) {
    const std::uint64_t at = step < 80 ? static_cast<std::uint64_t>(step) : random() % meta.payload_bytes;
    const std::byte before = payload.data()[at];
    payload.data()[at] ^= static_cast<std::byte>(1 + random() % 255);
    ShardMeta damaged = meta;
    damaged.checksum = xxh3_64(payload.data(), meta.payload_bytes);
    (void)inner->remove(std::span(&meta.id, 1));
    CHECK_EQ(tier_put(*inner, {PutItem{damaged, payload.data()}}).at(0), TierStatus::Ok);
    const GetResult got = tier_get(tier, meta.id, into);
    if (got.status == TierStatus::Ok) sample.check(got, into.data());  // a bit that zstd does not use
    payload.data()[at] = before;
  }
  CHECK_GT(tier.codec_stats().decode_failed, 250u);
  CHECK_EQ(tier.stats().corrupt, tier.codec_stats().decode_failed);
}

// Every block of an encoded extent flipped once, header and payload, in the file that a tier is opened on.
TEST(encoded_extents_that_rot_on_the_disk_are_misses) {
  if (zstd_missing() != nullptr) return;
  const Folder folder;
  const DiskConfig disk = disk_config(folder, 8 * kTierMiB);
  const KvSample sample(1);
  {
    KvLayouts layouts;
    CodecTier tier(make_disk_tier(disk), &layouts, config_of(kLossless));
    CHECK_EQ(tier_put(tier, sample), TierStatus::Ok);
  }
  const std::vector<std::byte> good = bytes_of(folder.file());
  std::mt19937_64 random(11);
  int missed = 0;
  for (int step = 0; step < 24; ++step) {
    std::vector<std::byte> bad = good;
    const std::size_t at = disk::kBlockBytes + random() % (disk::kBlockBytes * (step % 2 == 0 ? 1 : 40));
    for (std::size_t i = 0; i < 16; ++i) bad[at - at % 16 + i] ^= std::byte{0xff};
    write_bytes(folder.file(), bad);
    KvLayouts layouts;
    CodecTier tier(make_disk_tier(disk), &layouts, config_of(kLossless));
    const Aligned into(kSlotBytes);
    const GetResult got = tier_get(tier, sample.meta.id, into);
    if (got.status == TierStatus::Ok) {
      sample.check(got, into.data());
    } else {
      ++missed;
    }
  }
  CHECK_GT(missed, 12);
}

TEST(a_shard_is_rewritten_in_another_form_and_the_newer_one_is_found_after_a_restart) {
  if (zstd_missing() != nullptr) return;
  const Folder folder;
  const DiskConfig disk = disk_config(folder, 16 * kTierMiB);
  const KvSample sample(1), absent(2);
  KvLayouts layouts;
  const auto rewrite = [&](CodecTier& tier, const CodecSpec& codec, const Sample& which) {
    PutItem item = which.put();
    item.replace = true;
    Answer<TierStatus> answer;
    CHECK(tier.put_as(codec, {item}, answer.taker()));
    return answer.wait().at(0);
  };
  {
    CodecTier tier(make_disk_tier(disk), &layouts, config_of(kNone));
    CHECK_EQ(tier_put(tier, sample), TierStatus::Ok);
    const std::uint64_t used = tier.stats().used_bytes;
    CHECK_EQ(rewrite(tier, kLossless, sample), TierStatus::Ok);
    CHECK_LT(tier.stats().used_bytes, used);
    CHECK_EQ(tier.stats().shards, 1u);
    CHECK_EQ(rewrite(tier, kLossless, absent), TierStatus::Missing);
    CHECK_EQ(tier_find(tier, absent.meta.id), 0u);
  }
  {
    CodecTier tier(make_disk_tier(disk), &layouts, config_of(kNone));
    CHECK_EQ(described(tier, sample).codec, static_cast<std::uint16_t>(CodecId::Lossless));
    const Aligned into(kSlotBytes);
    sample.check(tier_get(tier, sample.meta.id, into), into.data());
    CHECK_EQ(rewrite(tier, kNone, sample), TierStatus::Ok);
    bool gap = false;
    for (const TierEvent& event : tier.drain_events(100, &gap)) CHECK(event.kind != TierEvent::Kind::Dropped);
  }
  CodecTier tier(make_disk_tier(disk), &layouts, config_of(kLossless));
  CHECK_EQ(described(tier, sample).codec, 0);
  CHECK_EQ(tier.remove(std::span(&sample.meta.id, 1)), 1u);
  CHECK_EQ(rewrite(tier, kLossless, sample), TierStatus::Missing);
}

TEST_MAIN()
