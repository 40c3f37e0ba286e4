// What the engines declared: which rectangles a fingerprint's chunks are cut into and how large each is.
// A row is named by its index in slot records; rows of fingerprints that nobody uses and that hold no slab are reused.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "records.h"
#include "types.h"

namespace kvcommons::internal {

inline constexpr std::size_t kRectsPerFingerprintMax = 4'096;

class Fingerprints {
 public:
  explicit Fingerprints(Records& records);

  // On Ok the row is counted as used by one more session. rects[i] is the index of shards[i].
  Status open(const SessionSpec& spec, const std::function<bool(std::uint32_t)>& holds_slabs, std::uint32_t* row,
              std::vector<std::uint16_t>* rects);
  void close(std::uint32_t row) noexcept { rows_[row].sessions.fetch_sub(1, std::memory_order_relaxed); }
  // Adoption: the index of a rectangle that a slot was written for; nullopt if the row is free or the sizes disagree.
  std::optional<std::uint16_t> adopt_rect(std::uint32_t row, const ShardSpec& shard);

  [[nodiscard]] std::uint32_t count() const noexcept { return count_; }
  [[nodiscard]] bool dead(std::uint32_t row) const noexcept {
    return rows_[row].sessions.load(std::memory_order_relaxed) == 0;
  }
  [[nodiscard]] std::optional<std::uint32_t> find(const Key& fingerprint) const;
  // nullopt where nobody declared such a rectangle.
  [[nodiscard]] std::optional<std::uint16_t> find_rect(std::uint32_t row, const Rect& rect) const;
  [[nodiscard]] std::uint32_t chunk_tokens(std::uint32_t row) const;
  [[nodiscard]] std::vector<ShardSpec> specs(std::uint32_t row, const std::vector<std::uint16_t>& rects) const;
  [[nodiscard]] Key key(std::uint32_t row) const;
  [[nodiscard]] std::uint64_t in_use() const;
  // Moves with each clear(): what was reserved under an older epoch is never placed.
  [[nodiscard]] std::uint64_t epoch(std::uint32_t row) const noexcept {
    return rows_[row].epoch.load(std::memory_order_acquire);
  }
  void fence(std::uint32_t row) noexcept { rows_[row].epoch.fetch_add(1, std::memory_order_acq_rel); }
  // Chunks that can be hit, kept by whoever announces and removes them.
  void chunk_came(std::uint32_t row) noexcept { rows_[row].chunks.fetch_add(1, std::memory_order_relaxed); }
  void chunk_went(std::uint32_t row) noexcept { rows_[row].chunks.fetch_sub(1, std::memory_order_relaxed); }
  struct Known {
    std::uint32_t row;
    Key key;
    std::uint64_t chunks;
  };
  [[nodiscard]] std::vector<Known> known() const;

 private:
  struct Row {
    Key key;
    bool used = false;
    std::uint32_t chunk_tokens = 0;
    std::vector<ShardSpec> rects;
    std::atomic<std::uint32_t> sessions{0};
    std::atomic<std::uint64_t> epoch{1};
    std::atomic<std::uint64_t> chunks{0};
  };
  std::optional<std::uint32_t> find_locked(const Key& fingerprint) const;
  std::optional<std::uint32_t> make_row(const std::function<bool(std::uint32_t)>& holds_slabs);

  Records& records_;
  const std::uint32_t count_;
  mutable std::mutex mutex_;
  std::unique_ptr<Row[]> rows_;
};

}  // namespace kvcommons::internal
