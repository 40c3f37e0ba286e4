#include "records.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <stdexcept>
#include <string>
#include <system_error>

#include "records_file.h"

namespace kvcommons::internal {
namespace {

constexpr std::uint64_t kPageBytes = 4096;

constexpr std::uint64_t round_up(std::uint64_t value, std::uint64_t unit) { return (value + unit - 1) / unit * unit; }

[[noreturn]] void refuse(const std::string& field, std::uint64_t value, const std::string& remedy) {
  throw std::invalid_argument(field + " = " + std::to_string(value) + ": " + remedy);
}

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) {
      c = (c & 1) != 0 ? (c >> 1) ^ 0x82f63b78u : c >> 1;
    }
    table[i] = c;
  }
  return table;
}
constexpr auto kCrcTable = make_crc_table();

template <typename T>
std::uint32_t crc_of(const T& value, std::uint32_t crc) {
  return crc32c(std::as_bytes(std::span<const T, 1>(&value, 1)), crc);
}

// Where each table begins, after what there is of each.
void lay_out(Geometry* g) {
  g->sessions_offset = kPageBytes;
  g->fingerprints_offset = g->sessions_offset + round_up(g->session_rows * sizeof(SessionRecord), kPageBytes);
  g->slabs_offset = g->fingerprints_offset + round_up(g->fingerprint_rows * sizeof(FingerprintRecord), kPageBytes);
  g->slots_offset = g->slabs_offset + round_up(g->slabs * sizeof(SlabRecord), kPageBytes);
  const std::uint64_t slots = std::uint64_t{g->slabs} * g->slots_per_slab;
  g->text_offset = g->slots_offset + round_up(slots * sizeof(SlotRecord), kPageBytes);
  g->more_text_offset = g->text_offset + round_up(slots * sizeof(std::uint64_t), kPageBytes);
  const std::uint64_t more_bytes = slots * (kTextKeysPerSlotMax - 1) * sizeof(std::uint64_t);
  g->total_bytes = g->more_text_offset + round_up(more_bytes, kPageBytes);
}

std::uint32_t header_crc(const RecordsHeader& header) {
  return crc32c(std::as_bytes(std::span(&header, 1)).subspan(offsetof(RecordsHeader, version)));
}

void check_limits(const StoreConfig& c) {
  if (c.arena_bytes < kSlabBytesMin) {
    refuse("arena_bytes", c.arena_bytes, "give at least " + std::to_string(kSlabBytesMin) + " bytes");
  }
  if (c.arena_bytes % kSlotAlignBytes != 0) {
    refuse("arena_bytes", c.arena_bytes, "give a multiple of " + std::to_string(kSlotAlignBytes));
  }
  if (c.arena_bytes / kSlotAlignBytes >= kNoSlot) {
    refuse("arena_bytes", c.arena_bytes, "split it into arenas below 16 TiB");
  }
  if (c.slab_bytes < kSlabBytesMin || c.slab_bytes > kSlabBytesMax) {
    refuse("slab_bytes", c.slab_bytes,
           "give between " + std::to_string(kSlabBytesMin) + " and " + std::to_string(kSlabBytesMax));
  }
  if (c.sessions_max == 0 || c.sessions_max > 1u << 20) {
    refuse("sessions_max", c.sessions_max, "give between 1 and 1048576");
  }
  if (c.fingerprints_max == 0 || c.fingerprints_max > 1u << 16) {
    refuse("fingerprints_max", c.fingerprints_max, "give between 1 and 65536");
  }
  if (c.leases_max == 0) {
    refuse("leases_max", 0, "give at least 1");
  }
  if (c.events_max == 0) {
    refuse("events_max", 0, "give at least 1");
  }
}

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc) noexcept {
  crc = ~crc;
  for (std::byte b : data) {
    crc = kCrcTable[(crc ^ static_cast<std::uint32_t>(b)) & 0xff] ^ (crc >> 8);
  }
  return ~crc;
}

Geometry Geometry::of(const StoreConfig& config) {
  check_limits(config);
  Geometry g;
  g.arena_bytes = config.arena_bytes;
  const std::uint64_t wanted = std::max(kSlabBytesMin, std::min(config.slab_bytes, config.arena_bytes / kSlabsMin));
  const std::uint64_t count = std::max<std::uint64_t>(1, config.arena_bytes / wanted);
  // Spread over the slabs what a last, shorter slab would waste.
  g.slab_bytes = config.arena_bytes / count / kSlotAlignBytes * kSlotAlignBytes;
  g.slabs = static_cast<std::uint32_t>(count);
  g.slots_per_slab = static_cast<std::uint32_t>(g.slab_bytes / kSlotAlignBytes);
  g.session_rows = config.sessions_max * 2;  // open ones, and closed ones that are not resolved yet
  g.fingerprint_rows = config.fingerprints_max;
  lay_out(&g);
  return g;
}

bool same_geometry(const Geometry& a, const Geometry& b) noexcept {
  // What follows from these follows alike.
  return a.arena_bytes == b.arena_bytes && a.slab_bytes == b.slab_bytes && a.slabs == b.slabs &&
         a.slots_per_slab == b.slots_per_slab && a.session_rows == b.session_rows &&
         a.fingerprint_rows == b.fingerprint_rows;
}

std::optional<Geometry> geometry_of_file(int records_fd) {
  RecordsHeader header{};
  struct stat st{};
  if (::pread(records_fd, &header, sizeof header, 0) != static_cast<ssize_t>(sizeof header) ||
      fstat(records_fd, &st) != 0 || header.magic != kRecordsMagic || header.version != kRecordsVersion ||
      header.crc != header_crc(header)) {
    return std::nullopt;
  }
  Geometry g;
  g.arena_bytes = header.arena_bytes;
  g.slab_bytes = header.slab_bytes;
  g.slabs = header.slabs;
  g.slots_per_slab = header.slots_per_slab;
  g.session_rows = header.session_rows;
  g.fingerprint_rows = header.fingerprint_rows;
  lay_out(&g);
  // The checksum says that we wrote it; this, that nothing below it leads out of the files.
  const bool sane = g.slabs != 0 && g.slab_bytes != 0 && g.slab_bytes <= g.arena_bytes / g.slabs &&
                    g.slots_per_slab == g.slab_bytes / kSlotAlignBytes &&
                    g.total_bytes <= static_cast<std::uint64_t>(st.st_size);
  return sane ? std::optional(g) : std::nullopt;
}

// Release and acquire: who reads a part of a new key also reads that the slot's word has moved on.
void SlotRecord::set_key(const Key& k) noexcept {
  for (std::size_t i = 0; i < 4; ++i) {
    std::uint64_t v = 0;
    std::memcpy(&v, k.bytes.data() + i * 8, sizeof v);
    key[i].store(v, std::memory_order_release);
  }
}

Key SlotRecord::get_key() const noexcept {
  Key k;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint64_t v = key[i].load(std::memory_order_acquire);
    std::memcpy(k.bytes.data() + i * 8, &v, sizeof v);
  }
  return k;
}

std::uint64_t& Records::text(std::uint32_t id, std::uint32_t i) const noexcept {
  if (i == 0) return at<std::uint64_t>(geometry_.text_offset, id);
  return at<std::uint64_t>(geometry_.more_text_offset, std::uint64_t{id} * (kTextKeysPerSlotMax - 1) + i - 1);
}

std::uint32_t Records::compute_crc(std::uint32_t id, std::uint32_t generation) const noexcept {
  const SlotRecord& record = slot(id);
  std::uint32_t sum = crc_of(generation, 0);
  sum = crc_of(record.get_key(), sum);
  sum = crc_of(record.completes, sum);
  sum = crc_of(record.text_keys, sum);
  sum = crc_of(record.first, sum);
  sum = crc_of(record.parent, sum);
  sum = crc_of(record.tenant, sum);
  sum = crc_of(record.checksum, sum);
  sum = crc_of(record.rect, sum);
  sum = crc_of(record.payload_bytes, sum);
  sum = crc_of(record.sealed_ms(), sum);
  sum = crc_of(record.fingerprint, sum);
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(record.text_keys, kTextKeysPerSlotMax); ++i) {
    sum = crc_of(text(id, i), sum);
  }
  return sum;
}

Records::Records(const Geometry& geometry, int fd) : geometry_(geometry) {
  struct stat st{};
  if (fstat(fd, &st) != 0) {
    throw std::system_error(errno, std::generic_category(), "records: fstat");
  }
  if (static_cast<std::uint64_t>(st.st_size) < geometry.total_bytes) {
    refuse("records_fd bytes", static_cast<std::uint64_t>(st.st_size),
           "make the file " + std::to_string(geometry.total_bytes) + " bytes long (Store::records_bytes)");
  }
  void* p = mmap(nullptr, geometry.total_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) {
    throw std::system_error(errno, std::generic_category(), "records: mmap");
  }
  base_ = static_cast<std::byte*>(p);
  RecordsHeader wanted{};
  wanted.magic = kRecordsMagic;
  wanted.version = kRecordsVersion;
  wanted.arena_bytes = geometry.arena_bytes;
  wanted.slab_bytes = geometry.slab_bytes;
  wanted.slabs = geometry.slabs;
  wanted.slots_per_slab = geometry.slots_per_slab;
  wanted.session_rows = geometry.session_rows;
  wanted.fingerprint_rows = geometry.fingerprint_rows;
  wanted.crc = header_crc(wanted);
  const RecordsHeader zero{};
  if (std::memcmp(base_, &wanted, sizeof wanted) == 0) {
    adopted_ = true;
    return;
  }
  cold_start_ = std::memcmp(base_, &zero, sizeof zero) != 0;
  try {
    format(fd, cold_start_);
  } catch (...) {
    munmap(base_, geometry.total_bytes);
    throw;
  }
  // The magic goes last: a header without it is formatted again.
  std::memcpy(base_ + sizeof wanted.magic, reinterpret_cast<const std::byte*>(&wanted) + sizeof wanted.magic,
              sizeof wanted - sizeof wanted.magic);
  reinterpret_cast<std::atomic<std::uint64_t>*>(base_)->store(kRecordsMagic, std::memory_order_release);
}

void Records::format(int fd, bool dirty) {
  if (!dirty) {
    return;  // fresh memory reads as zero, and zero is an empty store
  }
  // A foreign magic stays in the header meanwhile: killed half way, the next life formats again.
  reinterpret_cast<std::atomic<std::uint64_t>*>(base_)->store(~kRecordsMagic, std::memory_order_release);
  const std::uint64_t length = geometry_.total_bytes - kPageBytes;
  if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(kPageBytes),
                static_cast<off_t>(length)) != 0) {
    std::memset(base_ + kPageBytes, 0, length);
  }
}

Records::~Records() {
  if (base_ != nullptr) {
    munmap(base_, geometry_.total_bytes);
  }
}

SessionRecord& Records::session(std::uint32_t row) const noexcept {
  return at<SessionRecord>(geometry_.sessions_offset, row);
}
FingerprintRecord& Records::fingerprint(std::uint32_t row) const noexcept {
  return at<FingerprintRecord>(geometry_.fingerprints_offset, row);
}
SlabRecord& Records::slab(std::uint32_t index) const noexcept { return at<SlabRecord>(geometry_.slabs_offset, index); }
SlotRecord& Records::slot(std::uint32_t id) const noexcept { return at<SlotRecord>(geometry_.slots_offset, id); }

}  // namespace kvcommons::internal
