#include "tiers/disk_format.h"

#include <algorithm>
#include <cstring>

#include "records.h"
#include "xxh3.h"

namespace kvcommons::disk {
namespace {

template <typename T>
T load(const std::byte* from) noexcept {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Over everything that the structure's kind says is used, with the CRC's own field as zero.
template <typename T>
std::uint32_t crc_of(const T& head, std::span<const std::byte> behind = {}) noexcept {
  T copy = head;
  copy.crc = 0;
  const std::uint32_t crc = internal::crc32c(std::as_bytes(std::span<const T, 1>(&copy, 1)));
  return behind.empty() ? crc : internal::crc32c(behind, crc);
}

template <typename T>
void seal(std::span<std::byte, kBlockBytes> block, T head, std::span<const std::byte> behind = {}) noexcept {
  head.crc = crc_of(head, behind);
  std::memcpy(block.data(), &head, sizeof head);
  if (!behind.empty()) std::memcpy(block.data() + sizeof head, behind.data(), behind.size());
  const std::size_t used = sizeof head + behind.size();
  std::memset(block.data() + used, 0, block.size() - used);
}

bool zeros(std::span<const std::byte> bytes) noexcept {
  return bytes.empty() ||
         (bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0);
}

// Where an extent of so many payload bytes may begin so that it ends before the trailer.
bool inside(std::uint64_t block, std::uint64_t payload_bytes, const SegmentLife& life) noexcept {
  const std::uint64_t blocks = life.segment_bytes / kBlockBytes;
  return block >= 1 && payload_bytes < life.segment_bytes && block + extent_blocks(payload_bytes) < blocks;
}

bool sane(ExtentKind kind, std::uint64_t payload_bytes, std::uint64_t checksum, std::size_t text_keys) noexcept {
  if (text_keys > kTextKeysPerChunkMax) return false;
  if (kind == ExtentKind::Shard) return payload_bytes > 0 && checksum != 0;
  if (kind == ExtentKind::Removed) return payload_bytes > 0 && payload_bytes % sizeof(RemovedId) == 0;
  return kind == ExtentKind::Cleared && payload_bytes == 0;
}

// A codec's extent says what it becomes, any other says nothing of it.
template <typename Head>
bool sane_codec(const Head& head) noexcept {
  if (head.kind != ExtentKind::Shard || head.codec == 0) {
    return head.codec == 0 && head.codec_group == 0 && head.raw_bytes == 0;
  }
  return head.raw_bytes >= head.payload_bytes && head.raw_bytes <= kSlabBytesMax;
}

}  // namespace

Extent extent_of(const ShardMeta& m) noexcept {
  return {ExtentKind::Shard, 0,       m.id,        m.parent,      m.tenant,   m.payload_bytes, m.checksum,
          m.chunk_tokens,    m.codec, m.text_keys, m.codec_group, m.raw_bytes};
}

ShardMeta meta_of(const Extent& e) {
  return {e.id,          e.parent,       e.tenant, e.payload_bytes,
          e.checksum,    e.chunk_tokens, e.codec,  {e.text_keys.begin(), e.text_keys.end()},
          e.codec_group, e.raw_bytes};
}

void write_segment_header(std::span<std::byte, kBlockBytes> block, const SegmentLife& life) noexcept {
  SegmentHeader head{};
  head.magic = kSegmentMagic;
  head.version = kFormatVersion;
  head.generation = life.generation;
  head.segment_bytes = life.segment_bytes;
  head.segment = life.segment;
  head.device = life.device;
  seal(block, head);
}

HeaderState read_segment_header(std::span<const std::byte, kBlockBytes> block, SegmentLife* out) noexcept {
  const auto head = load<SegmentHeader>(block.data());
  if (zeros(block)) return HeaderState::Empty;
  if (head.magic != kSegmentMagic || head.crc != crc_of(head)) return HeaderState::Damaged;
  if (head.version != kFormatVersion) return HeaderState::OtherVersion;
  if (!zeros(block.subspan(sizeof head)) || head.generation == 0) return HeaderState::Damaged;
  *out = {head.segment_bytes, head.generation, head.segment, head.device};
  return HeaderState::Ours;
}

void write_extent_header(std::span<std::byte, kBlockBytes> block, const SegmentLife& life, const Extent& e) noexcept {
  ExtentHeader head{};
  head.magic = kExtentMagic;
  head.version = kFormatVersion;
  head.kind = e.kind;
  head.generation = life.generation;
  head.segment = life.segment;
  head.block = e.block;
  head.device = life.device;
  head.fingerprint = e.id.fingerprint;
  head.key = e.id.key;
  head.parent = e.parent;
  head.rect = e.id.rect;
  head.tenant = e.tenant;
  head.payload_bytes = e.payload_bytes;
  head.checksum = e.checksum;
  head.chunk_tokens = e.chunk_tokens;
  head.codec = e.codec;
  head.text_keys = static_cast<std::uint16_t>(e.text_keys.size());
  head.raw_bytes = e.raw_bytes;
  head.codec_group = e.codec_group;
  seal(block, head, std::as_bytes(e.text_keys));
}

bool read_extent_header(std::span<const std::byte, kBlockBytes> block, const SegmentLife& life, std::uint32_t at_block,
                        Extent* out) noexcept {
  const auto head = load<ExtentHeader>(block.data());
  if (head.magic != kExtentMagic || head.version != kFormatVersion || head.generation != life.generation ||
      head.segment != life.segment || head.block != at_block || head.device != life.device) {
    return false;
  }
  if (!sane(head.kind, head.payload_bytes, head.checksum, head.text_keys) || !sane_codec(head)) return false;
  if (!inside(head.block, head.payload_bytes, life)) return false;
  const auto text = block.subspan(sizeof head, head.text_keys * sizeof(std::uint64_t));
  if (head.crc != crc_of(head, text) || !zeros(block.subspan(sizeof head + text.size()))) return false;
  // Aligned: the header is a multiple of eight bytes, and blocks begin at addresses of their own size.
  *out = {head.kind,
          head.block,
          {head.fingerprint, head.key, head.rect},
          head.parent,
          head.tenant,
          head.payload_bytes,
          head.checksum,
          head.chunk_tokens,
          head.codec,
          {reinterpret_cast<const std::uint64_t*>(text.data()), head.text_keys},
          head.codec_group,
          head.raw_bytes};
  return true;
}

void append_table(std::vector<std::byte>* table, const Extent& e) {
  TableEntry entry{};
  entry.block = e.block;
  entry.payload_bytes = static_cast<std::uint32_t>(e.payload_bytes);
  entry.fingerprint = e.id.fingerprint;
  entry.key = e.id.key;
  entry.parent = e.parent;
  entry.rect = e.id.rect;
  entry.tenant = e.tenant;
  entry.checksum = e.checksum;
  entry.chunk_tokens = e.chunk_tokens;
  entry.codec = e.codec;
  entry.kind = e.kind;
  entry.text_keys = static_cast<std::uint8_t>(e.text_keys.size());
  entry.raw_bytes = static_cast<std::uint32_t>(e.raw_bytes);
  entry.codec_group = e.codec_group;
  const auto head = std::as_bytes(std::span<const TableEntry, 1>(&entry, 1));
  const auto text = std::as_bytes(e.text_keys);
  table->insert(table->end(), head.begin(), head.end());
  table->insert(table->end(), text.begin(), text.end());
}

void write_trailer(std::span<std::byte, kBlockBytes> block, const SegmentLife& life, std::span<const std::byte> table,
                   std::uint64_t table_bytes, std::uint32_t extents) noexcept {
  Trailer tail{};
  tail.magic = kTrailerMagic;
  tail.version = kFormatVersion;
  tail.generation = life.generation;
  tail.segment = life.segment;
  tail.table_block = static_cast<std::uint32_t>(life.segment_bytes / kBlockBytes - 1 - table.size() / kBlockBytes);
  tail.table_bytes = table_bytes;
  tail.table_checksum = xxh3_64(table.data(), table_bytes);
  tail.extents = extents;
  tail.device = life.device;
  seal(block, tail);
}

bool read_trailer(std::span<const std::byte, kBlockBytes> block, const SegmentLife& life, Trailer* out) noexcept {
  const auto tail = load<Trailer>(block.data());
  if (tail.magic != kTrailerMagic || tail.version != kFormatVersion || tail.generation != life.generation ||
      tail.segment != life.segment || tail.device != life.device || tail.crc != crc_of(tail)) {
    return false;
  }
  if (!zeros(block.subspan(sizeof tail)) || tail.table_bytes >= life.segment_bytes) return false;
  const std::uint64_t blocks = life.segment_bytes / kBlockBytes;
  if (tail.table_block < 1 || tail.table_block + blocks_of(tail.table_bytes) + 1 != blocks) return false;
  *out = tail;
  return true;
}

bool read_table(std::span<const std::byte> table, const Trailer& trailer, const SegmentLife& life,
                std::vector<Extent>* out) {
  out->clear();
  if (table.size() != trailer.table_bytes || xxh3_64(table.data(), table.size()) != trailer.table_checksum)
    return false;
  out->reserve(std::min<std::size_t>(trailer.extents, table.size() / sizeof(TableEntry)));
  while (table.size() >= sizeof(TableEntry)) {
    const auto e = load<TableEntry>(table.data());
    const std::size_t text_bytes = e.text_keys * sizeof(std::uint64_t);
    if (table.size() - sizeof e < text_bytes || !sane(e.kind, e.payload_bytes, e.checksum, e.text_keys)) break;
    if (!sane_codec(e)) break;
    if (!inside(e.block, e.payload_bytes, life) || e.block + extent_blocks(e.payload_bytes) > trailer.table_block)
      break;
    out->push_back({e.kind,
                    e.block,
                    {e.fingerprint, e.key, e.rect},
                    e.parent,
                    e.tenant,
                    e.payload_bytes,
                    e.checksum,
                    e.chunk_tokens,
                    e.codec,
                    {reinterpret_cast<const std::uint64_t*>(table.data() + sizeof e), e.text_keys},
                    e.codec_group,
                    e.raw_bytes});
    table = table.subspan(sizeof e + text_bytes);
  }
  if (table.empty() && out->size() == trailer.extents) return true;
  out->clear();
  return false;
}

}  // namespace kvcommons::disk
