// What must hold of any bytes on a device, however well sealed: shared by the libFuzzer target and the tests' seeded
// runs.
#pragma once

#include <cstring>
#include <random>
#include <span>
#include <type_traits>
#include <vector>

#include "check.h"
#include "core/records.h"
#include "core/tiers/disk_format.h"
#include "core/xxh3.h"

namespace kvcommons::testing {

using DiskBlock = std::span<std::byte, disk::kBlockBytes>;

// The CRC of a header right for what it now says, as a writer with other ideas would have left it.
template <typename Head>
void seal_again(DiskBlock block) {
  Head head;
  std::memcpy(&head, block.data(), sizeof head);
  head.crc = 0;
  std::size_t behind = 0;
  if constexpr (std::is_same_v<Head, disk::ExtentHeader>) {
    behind = std::min<std::size_t>(head.text_keys * sizeof(std::uint64_t), disk::kBlockBytes - sizeof head);
  }
  head.crc = internal::crc32c(std::as_bytes(std::span(&head, 1)));
  if (behind > 0) head.crc = internal::crc32c(block.subspan(sizeof head, behind), head.crc);
  std::memcpy(block.data(), &head, sizeof head);
}

// Whatever kind of header it is. False: none.
inline bool seal_again(DiskBlock block) {
  std::uint64_t magic = 0;
  std::memcpy(&magic, block.data(), sizeof magic);
  if (magic == disk::kSegmentMagic) {
    seal_again<disk::SegmentHeader>(block);
  } else if (magic == disk::kExtentMagic) {
    seal_again<disk::ExtentHeader>(block);
  } else if (magic == disk::kTrailerMagic) {
    seal_again<disk::Trailer>(block);
  } else {
    return false;
  }
  return true;
}

inline void mutate(std::span<std::byte> bytes, std::mt19937_64* random) {
  for (std::uint64_t left = 1 + (*random)() % 4; left > 0; --left) {
    std::byte& b = bytes[(*random)() % bytes.size()];
    b = (*random)() % 4 == 0 ? std::byte{0xff} : static_cast<std::byte>((*random)());
  }
}

inline void inside_its_segment(const disk::Extent& e, const disk::SegmentLife& life) {
  CHECK_GE(e.block, 1u);
  CHECK_LT(e.block + disk::extent_blocks(e.payload_bytes), life.segment_bytes / disk::kBlockBytes);
  CHECK_LE(e.text_keys.size(), kTextKeysPerChunkMax);
  const ShardMeta meta = disk::meta_of(e);  // reads every text key
  CHECK_EQ(meta.text_keys.size(), e.text_keys.size());
}

// A block that is whatever it says it is, sealed, in the segment that it names; and a table of these bytes.
inline void read_as_disk(std::span<const std::byte> bytes) {
  struct alignas(disk::kBlockBytes) Memory {
    std::byte data[disk::kBlockBytes];
  };
  static Memory memory;
  const DiskBlock block(memory.data, disk::kBlockBytes);
  std::memset(block.data(), 0, block.size());
  if (!bytes.empty()) std::memcpy(block.data(), bytes.data(), std::min(bytes.size(), block.size()));
  disk::SegmentLife life{1u << 20, 7, 3, {}};
  (void)seal_again(block);
  disk::SegmentLife found;
  if (disk::read_segment_header(block, &found) == disk::HeaderState::Ours) CHECK_NE(found.generation, 0u);
  disk::ExtentHeader head;
  std::memcpy(&head, block.data(), sizeof head);
  life.generation = head.generation;
  life.segment = head.segment;
  life.device = head.device;
  disk::Extent extent;
  if (disk::read_extent_header(block, life, head.block, &extent)) inside_its_segment(extent, life);
  disk::Trailer trailer;
  std::memcpy(&trailer, block.data(), sizeof trailer);
  life.generation = trailer.generation;
  life.segment = trailer.segment;
  life.device = trailer.device;
  if (disk::read_trailer(block, life, &trailer)) {
    CHECK_LE((trailer.table_block + disk::blocks_of(trailer.table_bytes) + 1) * disk::kBlockBytes, life.segment_bytes);
  }
  const std::vector<std::byte> table(bytes.begin(), bytes.end());  // as long as it is: one byte too far is seen
  trailer.table_bytes = table.size();
  trailer.table_checksum = xxh3_64(table.data(), table.size());
  trailer.table_block = 240;
  trailer.extents = static_cast<std::uint32_t>(table.size() / sizeof(disk::TableEntry));
  std::vector<disk::Extent> extents;
  if (disk::read_table(table, trailer, life, &extents)) {
    for (const disk::Extent& one : extents) inside_its_segment(one, life);
  }
}

}  // namespace kvcommons::testing
