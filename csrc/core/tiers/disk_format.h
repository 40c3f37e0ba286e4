// What lies on a disk. Little-endian, every structure CRC32C'd, read with suspicion. docs/disk.md has the picture.
//
//   segment  = header block | extents ... | free | table | trailer block
//   extent   = header block | payload, rounded up to blocks
//
// Each life of a segment has a generation of its own, higher than all before on its device: what an earlier life left
// in it carries another number and is invisible.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "tier.h"

namespace kvcommons::disk {

inline constexpr std::uint64_t kBlockBytes = kSlotAlignBytes;
inline constexpr std::uint64_t kSegmentMagic = 0x3130'4745'5343'564bULL;  // "KVCSEG01"
inline constexpr std::uint64_t kExtentMagic = 0x3130'5458'4543'564bULL;   // "KVCEXT01"
inline constexpr std::uint64_t kTrailerMagic = 0x3130'4c52'5443'564bULL;  // "KVCTRL01"
inline constexpr std::uint16_t kFormatVersion = 2;
inline constexpr std::uint64_t kSegmentBytesMin = 1ull << 20;
inline constexpr std::uint64_t kSegmentBytesMax = 1ull << 30;
inline constexpr std::uint32_t kSegmentsMin = 4;         // one open, one free, two that are of use
inline constexpr std::uint32_t kSegmentsMax = 1u << 18;  // of a device: the index has a list for each
inline constexpr std::uint32_t kDevicesMax = 64;

using DeviceId = std::array<std::uint8_t, 16>;  // random, made with the file

enum class ExtentKind : std::uint8_t {
  Shard = 1,
  Removed = 2,  // payload: RemovedId each; all that lies before it in the log is gone
  Cleared = 3,  // no payload: what its fingerprint (zero: any) has before it in the log is gone
};

struct SegmentHeader {
  std::uint64_t magic;
  std::uint32_t crc;
  std::uint16_t version;
  std::uint16_t reserved0;
  std::uint64_t generation;
  std::uint64_t segment_bytes;
  std::uint32_t segment;
  std::uint32_t reserved1;
  DeviceId device;
};
static_assert(sizeof(SegmentHeader) == 56);

// The start of an extent's header block. Text keys follow, then zeros. crc: of all of it, the text keys included.
struct ExtentHeader {
  std::uint64_t magic;
  std::uint32_t crc;
  std::uint16_t version;
  ExtentKind kind;
  std::uint8_t reserved;
  std::uint64_t generation;
  std::uint32_t segment;
  std::uint32_t block;  // of this header within its segment: a header anywhere else is a stray
  DeviceId device;
  Key fingerprint, key, parent;
  Rect rect;
  std::uint64_t tenant, payload_bytes, checksum;
  std::uint32_t chunk_tokens;
  std::uint16_t codec;
  std::uint16_t text_keys;
  std::uint64_t raw_bytes;  // in memory, where a codec made the payload; else 0
  std::uint16_t codec_group;
  std::uint8_t reserved1[6];
};
static_assert(sizeof(ExtentHeader) == 200);
static_assert(sizeof(ExtentHeader) + kTextKeysPerChunkMax * sizeof(std::uint64_t) <= kBlockBytes);

// A sealed segment's table has one for each of its extents, text keys behind each.
struct TableEntry {
  std::uint32_t block;
  std::uint32_t payload_bytes;
  Key fingerprint, key, parent;
  Rect rect;
  std::uint64_t tenant, checksum;
  std::uint32_t chunk_tokens;
  std::uint16_t codec;
  ExtentKind kind;
  std::uint8_t text_keys;
  std::uint32_t raw_bytes;
  std::uint16_t codec_group;
  std::uint16_t reserved;
};
static_assert(sizeof(TableEntry) == 144 && kTextKeysPerChunkMax < 256 && kSegmentBytesMax <= UINT32_MAX);

// The last block of a sealed segment.
struct Trailer {
  std::uint64_t magic;
  std::uint32_t crc;
  std::uint16_t version;
  std::uint16_t reserved0;
  std::uint64_t generation;
  std::uint32_t segment;
  std::uint32_t table_block;
  std::uint64_t table_bytes;
  std::uint64_t table_checksum;  // XXH3-64
  std::uint32_t extents;
  std::uint32_t reserved1;
  DeviceId device;
};
static_assert(sizeof(Trailer) == 72);

struct RemovedId {
  Key fingerprint, key;
  Rect rect;
};
static_assert(sizeof(RemovedId) == 72);

// Which life of which segment is meant; what says otherwise is not believed.
struct SegmentLife {
  std::uint64_t segment_bytes = 0;
  std::uint64_t generation = 0;
  std::uint32_t segment = 0;
  DeviceId device{};
};

// An extent as the index and the tables know it. text_keys point into what it was read from.
struct Extent {
  ExtentKind kind = ExtentKind::Shard;
  std::uint32_t block = 0;
  ShardId id;
  Key parent;
  std::uint64_t tenant = 0, payload_bytes = 0, checksum = 0;
  std::uint32_t chunk_tokens = 0;
  std::uint16_t codec = 0;
  std::span<const std::uint64_t> text_keys;
  std::uint16_t codec_group = 0;
  std::uint64_t raw_bytes = 0;
};

constexpr std::uint64_t blocks_of(std::uint64_t bytes) noexcept { return (bytes + kBlockBytes - 1) / kBlockBytes; }
constexpr std::uint64_t extent_blocks(std::uint64_t payload_bytes) noexcept { return 1 + blocks_of(payload_bytes); }
constexpr std::uint64_t table_entry_bytes(std::size_t text_keys) noexcept {
  return sizeof(TableEntry) + text_keys * sizeof(std::uint64_t);
}

Extent extent_of(const ShardMeta& meta) noexcept;
ShardMeta meta_of(const Extent& extent);

enum class HeaderState : std::uint8_t { Ours, Empty, OtherVersion, Damaged };

// Each writer fills a whole block; each reader takes one and says whether every word of it is right. Of whatever format
// version, a segment begins with these 56 bytes and their CRC.
void write_segment_header(std::span<std::byte, kBlockBytes> block, const SegmentLife& life) noexcept;
HeaderState read_segment_header(std::span<const std::byte, kBlockBytes> block, SegmentLife* out) noexcept;
void write_extent_header(std::span<std::byte, kBlockBytes> block, const SegmentLife& life,
                         const Extent& extent) noexcept;
bool read_extent_header(std::span<const std::byte, kBlockBytes> block, const SegmentLife& life, std::uint32_t at_block,
                        Extent* out) noexcept;

void append_table(std::vector<std::byte>* table, const Extent& extent);
// table: rounded up to blocks, zeros behind the entries.
void write_trailer(std::span<std::byte, kBlockBytes> block, const SegmentLife& life, std::span<const std::byte> table,
                   std::uint64_t table_bytes, std::uint32_t extents) noexcept;
bool read_trailer(std::span<const std::byte, kBlockBytes> block, const SegmentLife& life, Trailer* out) noexcept;
// Every entry, or false where one is wrong: then none of them is believed.
bool read_table(std::span<const std::byte> table, const Trailer& trailer, const SegmentLife& life,
                std::vector<Extent>* out);

}  // namespace kvcommons::disk
