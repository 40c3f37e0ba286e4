// Whole devices whose headers, tables and trailers say anything at all under right checksums, as no rot and no crash
// would leave them but a forger or an error of ours might: a tier opens them, hands out nothing that its own checksum
// does not vouch for, takes new shards, and finds these again in its next life.
//   KVCOMMONS_SEED=N repeats a run, KVCOMMONS_ROUNDS=N makes N of them.
#include <algorithm>
#include <cstdlib>
#include <random>

#include "core/xxh3.h"
#include "disk_fixture.h"
#include "fuzz_disk_format.h"

using namespace kvcommons;
using namespace kvcommons::testing;

namespace {

constexpr std::uint64_t kCapacity = 5 * kTierMiB, kShards = 34, kFresh = 6;
constexpr std::size_t kBlock = disk::kBlockBytes;

std::uint64_t setting(const char* name, std::uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text != nullptr ? std::strtoull(text, nullptr, 10) : otherwise;
}

std::vector<Sample> samples_from(std::uint64_t first, std::uint64_t count) {
  std::vector<Sample> out;
  for (std::uint64_t i = first; i < first + count; ++i) out.emplace_back(i, 1 + (i * 77'003) % 150'000);
  return out;
}

DiskBlock block_at(std::vector<std::byte>* bytes, std::size_t number) {
  return DiskBlock(bytes->data() + number * kBlock, kBlock);
}

// Blocks that hold a header of some kind.
std::vector<std::size_t> headers_of(std::vector<std::byte>* bytes) {
  std::vector<std::size_t> out;
  for (std::size_t i = 0; i < bytes->size() / kBlock; ++i) {
    std::uint64_t magic = 0;
    std::memcpy(&magic, bytes->data() + i * kBlock, sizeof magic);
    if (magic == disk::kSegmentMagic || magic == disk::kExtentMagic || magic == disk::kTrailerMagic) out.push_back(i);
  }
  return out;
}

// The table of a sealed segment says something else, and its trailer vouches for it.
void forge_table(std::vector<std::byte>* bytes, std::size_t trailer_block, std::mt19937_64* random) {
  disk::Trailer trailer;
  const DiskBlock block = block_at(bytes, trailer_block);
  std::memcpy(&trailer, block.data(), sizeof trailer);
  const std::size_t segment = trailer_block * kBlock / kTestSegmentBytes * kTestSegmentBytes;
  const std::size_t at = segment + trailer.table_block * kBlock;
  if (trailer.magic != disk::kTrailerMagic || trailer.table_bytes == 0 || at + trailer.table_bytes > bytes->size()) {
    return;
  }
  const auto table = std::span(*bytes).subspan(at, trailer.table_bytes);
  mutate(table, random);
  trailer.table_checksum = xxh3_64(table.data(), table.size());
  std::memcpy(block.data(), &trailer, sizeof trailer);
  seal_again<disk::Trailer>(block);
}

void forge(std::vector<std::byte>* bytes, std::mt19937_64* random) {
  const auto headers = headers_of(bytes);
  if (headers.empty()) return;
  const std::size_t chosen = headers[(*random)() % headers.size()];
  const DiskBlock block = block_at(bytes, chosen);
  switch ((*random)() % 4) {
    case 0:
      mutate(block.subspan(8, 248), random);  // all but its magic
      break;
    case 1:  // another header's block, where this one stood
      std::memcpy(block.data(), block_at(bytes, headers[(*random)() % headers.size()]).data(), kBlock);
      break;
    case 2:
      forge_table(bytes, chosen, random);
      return;
    default: {  // an extent that says it belongs where it stands now
      disk::ExtentHeader head;
      std::memcpy(&head, block.data(), sizeof head);
      if (head.magic != disk::kExtentMagic) return;
      const std::size_t to = (*random)() % (bytes->size() / kBlock);
      head.segment = static_cast<std::uint32_t>(to * kBlock / kTestSegmentBytes);
      head.block = static_cast<std::uint32_t>(to % (kTestSegmentBytes / kBlock));
      std::memcpy(block_at(bytes, to).data(), block.data(), kBlock);
      std::memcpy(block_at(bytes, to).data(), &head, sizeof head);
      (void)seal_again(block_at(bytes, to));
      return;
    }
  }
  (void)seal_again(block);
}

// Missing, Corrupt, or bytes that have the checksum which is said of them.
void check_vouched(Tier& tier, const Sample& sample) {
  const Aligned into(sample.meta.payload_bytes);
  const GetResult result = tier_get(tier, sample.meta.id, into);
  CHECK(result.status != TierStatus::Failed);
  if (result.status != TierStatus::Ok) return;
  CHECK_LE(result.meta.payload_bytes, into.bytes());
  CHECK_EQ(result.meta.checksum, xxh3_64(into.data(), result.meta.payload_bytes));
}

void one_round(std::uint64_t seed, const std::vector<std::byte>& whole, const Folder& folder) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes = whole;
  for (std::uint64_t left = 1 + random() % 6; left > 0; --left) forge(&bytes, &random);
  write_bytes(folder.file(), bytes);
  const DiskConfig config = disk_config(folder, kCapacity, DiskEngine::Threads);
  const auto former = samples_from(0, kShards), fresh = samples_from(1'000, kFresh);
  {
    const auto tier = make_disk_tier(config);
    CHECK_LE(tier->stats().used_bytes, kCapacity);
    for (const Sample& s : former) check_vouched(*tier, s);
    for (const Sample& s : fresh) CHECK_EQ(tier_put(*tier, s), TierStatus::Ok);
    for (const Sample& s : fresh) CHECK_EQ(disk_get(*tier, s).status, TierStatus::Ok);
  }
  const auto tier = make_disk_tier(config);
  for (const Sample& s : former) check_vouched(*tier, s);
  for (const Sample& s : fresh) CHECK_EQ(disk_get(*tier, s).status, TierStatus::Ok);
  std::uint64_t cursor = 0;
  do {
    for (const ShardMeta& meta : tier->inventory(&cursor, 64)) CHECK_LT(meta.payload_bytes, kTestSegmentBytes);
  } while (cursor != 0);
}

}  // namespace

TEST(whatever_a_device_says_new_shards_are_kept_and_nothing_unvouched_is_handed_out) {
  const std::uint64_t first = setting("KVCOMMONS_SEED", std::random_device{}());
  const std::uint64_t rounds = setting("KVCOMMONS_ROUNDS", std::getenv("KVCOMMONS_SEED") != nullptr ? 1 : 60);
  const Folder folder;
  {
    const auto tier = make_disk_tier(disk_config(folder, kCapacity, DiskEngine::Threads));
    for (const Sample& s : samples_from(0, kShards)) CHECK_EQ(tier_put(*tier, s), TierStatus::Ok);
  }
  const std::vector<std::byte> whole = bytes_of(folder.file());
  for (std::uint64_t seed = first; seed < first + rounds; ++seed) {
    std::fprintf(stderr, "seed %llu\n", static_cast<unsigned long long>(seed));
    one_round(seed, whole, folder);
  }
}

TEST_MAIN()
