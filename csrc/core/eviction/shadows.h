// What each policy would have hit: a cache of metadata for each, fed with a sample of the chains that pass, and the
// choice that follows from it.
//
// The sample is of whole chains, so that a suffix has its prefix there. A chain is in it by the bits of its anchor: the
// chunk after its deepest hub. A hub is what very many chains go on from (a system prompt): by it all would be in, or
// none. Hubs and what is before them are in every shadow, for all chains, and take part of their size only, as the rest
// of a chain stands for others. So sizes, uses and hits stand in the proportion that they have outside. A cache that is
// small enough has shadows without sampling.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "eviction/chooser.h"
#include "eviction/prefix_cache.h"

namespace kvcommons::eviction {

struct ShadowConfig {
  std::uint64_t capacity_pages = 0;
  std::uint64_t chunks_max = 65'536;  // that one shadow holds, about; each takes some 200 bytes
  Kind first = Kind::Cost;
};

struct ShadowStats {
  PerKind<std::uint64_t> hits{};  // of `asked`, in sampled chunks
  std::uint64_t asked = 0;
  std::uint64_t one_in = 1;
  std::uint64_t switches = 0;
  Kind best = Kind::Lru;
};

// Finds hubs: a chunk with many different children. A table of fixed size; a row is lost to another chunk when that
// was seen as often since.
class Hubs {
 public:
  Hubs() : rows_(kRows) {}
  void note_child(std::uint64_t parent, std::uint64_t child) noexcept;
  [[nodiscard]] bool contains(std::uint64_t key) const noexcept;

 private:
  static constexpr std::size_t kRows = 4096;
  static constexpr int kBitsOfHub = 40;  // of 64 hit by about 63 different children
  struct Row {
    std::uint64_t key = 0;
    std::uint64_t children = 0;  // a bit for each hash of six bits
    std::uint32_t credit = 0;
  };
  [[nodiscard]] static std::size_t row_of(std::uint64_t key) noexcept;
  std::vector<Row> rows_;
};

// Single-threaded; the store feeds it from one thread of its own.
class Shadows {
 public:
  explicit Shadows(const ShadowConfig& config);
  Shadows(const Shadows&) = delete;  // large

  // An engine asked for this chain, and found `found` chunks: so many are there, whatever a shadow thinks.
  void asked(std::span<const std::uint64_t> chain, std::size_t found, std::uint32_t pages);
  // An engine stores these, all of whose chunks before them are named too.
  void stored(std::span<const std::uint64_t> chain, std::size_t from, std::uint32_t pages, const Hints& hints);
  // The same where only the chunk before them is named; 0: they begin a chain.
  void stored_below(std::uint64_t parent, std::span<const std::uint64_t> keys, std::uint32_t pages, const Hints& hints);
  // Both at once: all that was not found is stored.
  void request(std::span<const std::uint64_t> chain, std::uint32_t pages, const Hints& hints = {});

  [[nodiscard]] Kind best() const noexcept { return chooser_ ? chooser_->current() : config_.first; }
  [[nodiscard]] double ageing() const noexcept;  // of the shadow that runs `cost`
  [[nodiscard]] ShadowStats stats() const noexcept;

 private:
  static constexpr std::size_t kHubDepthMax = 128;
  static constexpr std::uint32_t kShiftMax = 16;

  bool size_for(std::uint32_t pages);
  // Fills items_; how many of them are to be used. All: the chain is in the sample.
  std::size_t take(std::span<const std::uint64_t> chain, std::uint32_t pages);

  ShadowConfig config_;
  std::optional<Chooser> chooser_;
  std::uint32_t shift_ = 0, pages_min_ = 0;
  std::array<std::unique_ptr<PrefixCache>, kKinds> caches_;
  Hubs hubs_;
  std::vector<Item> items_;
  PerKind<std::uint64_t> hits_{};
  std::uint64_t asked_ = 0, switches_before_ = 0;
};

}  // namespace kvcommons::eviction
