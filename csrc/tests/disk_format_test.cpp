// The disk tier's structures: what is written is read back, and no bytes, however well sealed, are read out of bounds.
#include "core/xxh3.h"
#include "disk_fixture.h"
#include "fuzz_disk_format.h"

using namespace kvcommons;
using namespace kvcommons::testing;
using namespace kvcommons::disk;

namespace {

struct Blocks {
  explicit Blocks(std::uint64_t count) : memory(count * kBlockBytes) {}
  [[nodiscard]] DiskBlock block(std::uint64_t number = 0) const {
    return DiskBlock(memory.data() + number * kBlockBytes, kBlockBytes);
  }
  Aligned memory;
};

SegmentLife life() {
  SegmentLife life{kTestSegmentBytes, 7, 3, {}};
  life.device.fill(9);
  return life;
}

bool same(const ShardMeta& a, const ShardMeta& b) {
  return a.id == b.id && a.parent == b.parent && a.tenant == b.tenant && a.payload_bytes == b.payload_bytes &&
         a.checksum == b.checksum && a.chunk_tokens == b.chunk_tokens && a.codec == b.codec &&
         a.text_keys == b.text_keys;
}

Extent placed(const Sample& sample, std::uint32_t block) {
  Extent extent = extent_of(sample.meta);
  extent.block = block;
  return extent;
}

}  // namespace

TEST(every_structure_reads_back_as_it_was_written) {
  const Blocks blocks(4);
  SegmentLife found;
  write_segment_header(blocks.block(), life());
  CHECK_EQ(read_segment_header(blocks.block(), &found), HeaderState::Ours);
  CHECK(found.generation == 7 && found.segment == 3 && found.device == life().device);
  std::vector<std::byte> table;
  for (const std::uint64_t number : {4u, 9u}) {  // with four text keys each
    const Sample sample(number, 9'000);
    const auto at = static_cast<std::uint32_t>(number * 10);
    Extent extent;
    write_extent_header(blocks.block(1), life(), placed(sample, at));
    CHECK(read_extent_header(blocks.block(1), life(), at, &extent));
    CHECK(same(meta_of(extent), sample.meta));
    CHECK(!read_extent_header(blocks.block(1), life(), at + 1, &extent));  // it strayed
    SegmentLife later = life();
    ++later.generation;
    CHECK(!read_extent_header(blocks.block(1), later, at, &extent));  // of an earlier life
    append_table(&table, placed(sample, at));
  }
  std::memset(blocks.block(2).data(), 0, kBlockBytes);
  std::memcpy(blocks.block(2).data(), table.data(), table.size());
  write_trailer(blocks.block(3), life(), blocks.block(2), table.size(), 2);
  Trailer trailer;
  std::vector<Extent> extents;
  CHECK(read_trailer(blocks.block(3), life(), &trailer));
  CHECK(read_table(blocks.block(2).first(table.size()), trailer, life(), &extents));
  CHECK_EQ(extents.size(), 2u);
  CHECK(same(meta_of(extents[1]), Sample(9, 9'000).meta));
}

TEST(any_single_flipped_bit_of_a_header_is_seen) {
  const Blocks blocks(1);
  const Sample sample(4, 9'000);
  write_extent_header(blocks.block(), life(), placed(sample, 5));
  Extent extent;
  for (std::size_t bit = 0; bit < kBlockBytes * 8; ++bit) {
    blocks.block()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    CHECK(!read_extent_header(blocks.block(), life(), 5, &extent));
    blocks.block()[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
  }
  CHECK(read_extent_header(blocks.block(), life(), 5, &extent));
}

TEST(well_sealed_nonsense_is_refused_or_stays_within_its_segment) {
  constexpr std::uint64_t seed = 31;
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  std::mt19937_64 random(seed);
  const Blocks blocks(2);
  int believed = 0;
  for (int step = 0; step < 20'000; ++step) {
    Extent extent;
    write_extent_header(blocks.block(), life(), placed(Sample(4, 100), 5));
    mutate(blocks.block().first(sizeof(ExtentHeader)), &random);
    seal_again<ExtentHeader>(blocks.block());
    if (read_extent_header(blocks.block(), life(), 5, &extent)) {
      inside_its_segment(extent, life());
      ++believed;
    }
    Trailer trailer;
    std::memset(blocks.block().data(), 0, kBlockBytes);
    write_trailer(blocks.block(1), life(), blocks.block(), 300, 2);
    mutate(blocks.block(1).first(sizeof(Trailer)), &random);
    seal_again<Trailer>(blocks.block(1));
    if (read_trailer(blocks.block(1), life(), &trailer)) {
      CHECK_LE((trailer.table_block + blocks_of(trailer.table_bytes) + 1) * kBlockBytes, kTestSegmentBytes);
    }
  }
  CHECK_GT(believed, 1'000);  // mutants of keys and numbers are right as far as their header can say
}

TEST(a_table_of_nonsense_with_a_right_checksum_is_refused_or_stays_within_its_segment) {
  constexpr std::uint64_t seed = 32;
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  std::mt19937_64 random(seed);
  std::vector<std::byte> whole;
  for (std::uint32_t i = 0; i < 8; ++i) append_table(&whole, placed(Sample(i, 5'000), 1 + 4 * i));
  int believed = 0;
  for (int step = 0; step < 20'000; ++step) {
    // Its own allocation, as long as it is: one byte too far is seen.
    std::vector<std::byte> table(whole.begin(),
                                 whole.end() - static_cast<std::ptrdiff_t>(random() % 4 == 0 ? random() % 200 : 0));
    mutate(table, &random);
    Trailer trailer{};
    trailer.table_bytes = table.size();
    trailer.table_checksum = xxh3_64(table.data(), table.size());
    trailer.table_block = 240;
    trailer.extents = random() % 8 == 0 ? static_cast<std::uint32_t>(random()) : 8;
    std::vector<Extent> extents;
    if (!read_table(table, trailer, life(), &extents)) {
      CHECK(extents.empty());
      continue;
    }
    ++believed;
    for (const Extent& extent : extents) inside_its_segment(extent, life());
  }
  CHECK_GT(believed, 1'000);
}

TEST(any_bytes_are_read_within_their_bounds) {
  constexpr std::uint64_t seed = 33;
  std::fprintf(stderr, "seed %lu\n", static_cast<unsigned long>(seed));
  std::mt19937_64 random(seed);
  const Blocks blocks(1);
  for (int step = 0; step < 20'000; ++step) {
    switch (random() % 3) {
      case 0:
        write_segment_header(blocks.block(), life());
        break;
      case 1:
        write_extent_header(blocks.block(), life(), placed(Sample(4, 100), 5));
        break;
      default: {
        const std::vector<std::byte> table(kBlockBytes);
        write_trailer(blocks.block(), life(), table, 300, 2);
      }
    }
    mutate(blocks.block().subspan(8), &random);
    if (random() % 2 == 0) mutate(blocks.block().first(sizeof(ExtentHeader)), &random);
    read_as_disk(blocks.block().first(random() % 8 == 0 ? random() % kBlockBytes : kBlockBytes));
  }
}

TEST_MAIN()
