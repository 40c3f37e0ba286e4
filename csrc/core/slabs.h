// Places in the arena: slabs, joined to spans where slots are large, cut into slots of one stride for one fingerprint.
// Hard capacity: a slot exists only inside a span, and spans never overlap. Knows nothing of keys.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "records.h"

namespace kvcommons::internal {

struct SlotGrant {
  std::uint32_t slot = kNoSlot;  // index of its record
  std::uint32_t generation = 0;
  std::uint64_t offset_bytes = 0;
};

// Adjacent slabs that could be taken back together for another fingerprint.
struct Window {
  std::uint32_t first_slab = 0;
  std::uint32_t slabs = 0;
  std::uint64_t last_access = 0;
};

class Slabs {
 public:
  explicit Slabs(Records& records);

  // A span of several slabs is cut into fewer slots than one slab has at the smallest stride: only then is a slot's
  // place known from its number and its stride (Geometry::offset_of).
  static std::uint64_t stride_of(std::uint64_t payload_bytes) noexcept {
    return (payload_bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes;
  }
  [[nodiscard]] bool fits(std::uint64_t stride) const noexcept;
  std::optional<SlotGrant> try_alloc(std::uint32_t fingerprint, std::uint64_t stride);
  void free(std::span<const std::uint32_t> slots);  // each slot's word is FREE already
  void touch(std::uint32_t slot, std::uint64_t tick) noexcept;
  [[nodiscard]] bool holds_fingerprint(std::uint32_t fingerprint) const;

  // Windows of other classes than (fingerprint, stride) that would fit one span of it, least recently used first.
  std::vector<Window> victims(std::uint32_t fingerprint, std::uint64_t stride, std::size_t max,
                              const std::function<bool(std::uint32_t)>& accept_fingerprint) const;
  // Stops granting in the window's spans. False if another thread empties one of them now. Slots to be freed in *slots.
  bool begin_evacuation(const Window& window, std::vector<std::uint32_t>* slots);
  bool end_evacuation(const Window& window);  // true if all of it is free now

  // The first slot at or after `from` that lies in a span; false at the end. For walks over the arena.
  bool next_given(std::uint64_t from, std::uint32_t* slot) const;

  // Adoption, single-threaded. Calls visit(slot, offset) -> true if the slot is in use.
  void adopt(const std::function<bool(std::uint32_t, std::uint64_t)>& visit);

  struct Usage {
    std::uint64_t slabs_free = 0, slots_free = 0, used_bytes = 0;
  };
  [[nodiscard]] Usage usage() const;
  [[nodiscard]] std::map<std::uint32_t, std::uint64_t> used_by_fingerprint() const;  // bytes

 private:
  struct Slab {
    std::uint32_t head = 0;  // first slab of its span
    std::uint32_t span = 0;  // slabs in the span, 0 = free; in the head only, as everything below
    std::uint64_t stride = 0;
    std::uint32_t fingerprint = 0;
    std::uint32_t slots = 0;
    bool given = false;
    bool evacuating = false;
    bool in_partial = false;
    std::uint32_t fresh = 0;          // slots from this one on were never granted
    std::vector<std::uint32_t> free;  // of those before it
    [[nodiscard]] std::uint32_t free_slots() const noexcept {
      return slots - fresh + static_cast<std::uint32_t>(free.size());
    }
  };
  struct Class {
    std::vector<std::uint32_t> partial;  // heads that may have free slots; checked when taken
  };
  using ClassId = std::pair<std::uint32_t, std::uint64_t>;

  [[nodiscard]] std::uint32_t span_slabs(std::uint64_t stride) const noexcept;
  std::optional<std::uint32_t> find_free(std::uint32_t count) const;
  void give(std::uint32_t head, std::uint32_t count, std::uint32_t fingerprint, std::uint64_t stride);
  void shape(std::uint32_t head, std::uint32_t count, std::uint32_t fingerprint, std::uint64_t stride);
  void take_back(std::uint32_t head);
  void offer(std::uint32_t head);
  std::vector<std::uint32_t> heads_in(const Window& window) const;

  Records& records_;
  const std::uint64_t slab_bytes_;
  mutable std::mutex mutex_;
  std::vector<Slab> slabs_;
  std::map<ClassId, Class> classes_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> last_access_;
};

}  // namespace kvcommons::internal
