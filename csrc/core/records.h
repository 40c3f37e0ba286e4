// The second memfd: what a restarted daemon needs to serve the arena's content again. Written in place, in an order
// that leaves every prefix of the writes readable: kill -9 keeps what was stored, in program order.
//
//   grant   owner, key, parent ... then word = FILLING      (the session's filling count goes up before)
//   seal    text keys, checksum, CRC ... then word = SEALED
//   free    word = FREE, then anything
//   read    session's reading count up, then the slot's readers; down in the opposite order
//
// The file is sparse: pages of slots that never existed cost nothing, so it must not be populated ahead.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "store.h"
#include "types.h"

namespace kvcommons::internal {

inline constexpr std::uint64_t kRecordsMagic = 0x3130'4443'4552'564bULL;  // "KVRECD01"
inline constexpr std::uint32_t kRecordsVersion = 2;
inline constexpr std::uint32_t kTextKeysPerSlotMax = 14;  // what a slot's record holds; more are dropped and counted
inline constexpr std::uint32_t kNoSlot = 0xffff'ffff;
inline constexpr std::uint32_t kSlabsMin = 8;  // a small arena is cut into at least so many

// How an arena of this configuration is cut. The same configuration gives the same geometry in every life.
struct Geometry {
  std::uint64_t arena_bytes = 0;
  std::uint64_t slab_bytes = 0;
  std::uint32_t slabs = 0;
  std::uint32_t slots_per_slab = 0;  // at the smallest slot
  std::uint32_t session_rows = 0;
  std::uint32_t fingerprint_rows = 0;
  std::uint64_t sessions_offset = 0, fingerprints_offset = 0, slabs_offset = 0, slots_offset = 0, text_offset = 0,
                more_text_offset = 0, total_bytes = 0;
  [[nodiscard]] std::uint64_t offset_of(std::uint32_t slot, std::uint64_t stride_bytes) const noexcept {
    return slot / slots_per_slab * slab_bytes + slot % slots_per_slab * stride_bytes;
  }

  // Throws std::invalid_argument with the field, the value and the remedy.
  static Geometry of(const StoreConfig& config);
};

// Everything but magic and crc is covered by crc.
struct RecordsHeader {
  std::uint64_t magic;
  std::uint32_t crc;
  std::uint32_t version;
  std::uint64_t arena_bytes, slab_bytes;
  std::uint32_t slabs, slots_per_slab, session_rows, fingerprint_rows;
  std::uint64_t reserved[2];
};
static_assert(sizeof(RecordsHeader) == 64);

// A row lives as long as its session may hold anything; id 0 = free row.
struct SessionRecord {
  std::atomic<std::uint64_t> id;
  std::uint64_t unused;
  std::atomic<std::uint32_t> pid;      // for whoever asks which engines are there; proofs of death are the ledger's
  std::atomic<std::uint32_t> reading;  // slots it copies from: never less than the truth
  std::atomic<std::uint32_t> filling;  // slots granted to it: never less than the truth
  std::uint32_t internal;              // 1: the daemon's own, so it ended with the daemon
};
static_assert(sizeof(SessionRecord) == 32);

struct FingerprintRecord {
  Key key;
  std::uint32_t chunk_tokens;
  std::atomic<std::uint32_t> used;  // stored last
  std::uint64_t reserved;
};
static_assert(sizeof(FingerprintRecord) == 48);

// The first slab of a span describes it; a span is one or more adjacent slabs cut into slots of one stride.
struct SlabRecord {
  std::uint64_t stride_bytes;
  std::uint32_t span_slabs;
  std::uint32_t fingerprint;
  std::atomic<std::uint32_t> assigned;    // stored last when given, first when taken
  std::atomic<std::uint32_t> generation;  // last one granted within this slab: (offset, generation) never recurs
  std::uint64_t reserved;
};
static_assert(sizeof(SlabRecord) == 32);

struct SlotRecord {
  std::atomic<std::uint64_t> key[4];  // read without a lock when a slab is examined; valid if word did not change
  std::atomic<std::uint64_t> word;    // generation << 8 | SlotState
  std::atomic<std::uint32_t> readers;
  std::atomic<std::uint8_t> pinned;
  std::uint8_t completes;  // the chunk was complete for a layout when this slot was sealed
  std::uint8_t text_keys;  // how many of them there are: Records::text
  std::uint8_t first;      // of its chain: no parent
  std::uint64_t parent;    // key_hash() of the parent's key: a key names all before it, so this only finds it again
  std::uint64_t tenant;
  std::uint64_t checksum;  // before it is sealed: the session that the slot was granted to
  Rect rect;
  std::uint32_t payload_bytes;
  std::uint32_t sealed_ms_low;
  std::uint16_t sealed_ms_high;
  std::uint16_t fingerprint;
  std::uint32_t crc;  // over generation and all that a reader relies on

  [[nodiscard]] SlotState state() const noexcept { return state_of(word.load(std::memory_order_acquire)); }
  [[nodiscard]] std::uint32_t generation() const noexcept {
    return generation_of(word.load(std::memory_order_acquire));
  }
  void set(SlotState state, std::uint32_t gen) noexcept { word.store(pack(state, gen), std::memory_order_release); }
  void set_key(const Key& k) noexcept;
  [[nodiscard]] Key get_key() const noexcept;
  [[nodiscard]] bool is_key(const Key& k) const noexcept { return get_key() == k; }
  // The session that it was granted to, as long as it is not sealed: whoever seals it has written all, and is not
  // asked.
  [[nodiscard]] SessionId owner() const noexcept { return checksum; }
  [[nodiscard]] std::uint64_t sealed_ms() const noexcept { return std::uint64_t{sealed_ms_high} << 32 | sealed_ms_low; }
  void set_sealed_ms(std::uint64_t ms) noexcept {
    sealed_ms_low = static_cast<std::uint32_t>(ms);
    sealed_ms_high = static_cast<std::uint16_t>(ms >> 32);
  }

  static constexpr std::uint64_t pack(SlotState state, std::uint32_t gen) noexcept {
    return (std::uint64_t{gen} << 8) | static_cast<std::uint64_t>(state);
  }
  static constexpr SlotState state_of(std::uint64_t word) noexcept { return static_cast<SlotState>(word & 0xff); }
  static constexpr std::uint32_t generation_of(std::uint64_t word) noexcept {
    return static_cast<std::uint32_t>(word >> 8);
  }
};
static_assert(sizeof(SlotRecord) == 96, "what each slot pays beside its entry in the index");
static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free &&
                  std::atomic<std::uint8_t>::is_always_lock_free,
              "a lock inside shared memory would die with the daemon");

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t crc = 0) noexcept;

// The mapping. Owned by the store; the fd stays the caller's.
class Records {
 public:
  Records(const Geometry& geometry, int fd);
  ~Records();
  Records(const Records&) = delete;  // owns the mapping
  Records& operator=(const Records&) = delete;

  [[nodiscard]] bool adopted() const noexcept { return adopted_; }
  [[nodiscard]] bool cold_start() const noexcept { return cold_start_; }  // something was there, but not ours
  [[nodiscard]] const Geometry& geometry() const noexcept { return geometry_; }
  [[nodiscard]] SessionRecord& session(std::uint32_t row) const noexcept;
  [[nodiscard]] FingerprintRecord& fingerprint(std::uint32_t row) const noexcept;
  [[nodiscard]] SlabRecord& slab(std::uint32_t index) const noexcept;
  [[nodiscard]] SlotRecord& slot(std::uint32_t id) const noexcept;
  // Most chunks have one text key at most: the others lie apart, in pages that cost nothing until then.
  [[nodiscard]] std::uint64_t& text(std::uint32_t id, std::uint32_t i) const noexcept;
  [[nodiscard]] std::uint32_t compute_crc(std::uint32_t id, std::uint32_t generation) const noexcept;

 private:
  void format(int fd, bool dirty);
  template <typename T>
  [[nodiscard]] T& at(std::uint64_t offset, std::uint64_t index) const noexcept {
    return *reinterpret_cast<T*>(base_ + offset + index * sizeof(T));
  }

  Geometry geometry_;
  std::byte* base_ = nullptr;
  bool adopted_ = false;
  bool cold_start_ = false;
};

}  // namespace kvcommons::internal
