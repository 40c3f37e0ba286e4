#include "eviction/shadows.h"

#include <algorithm>
#include <bit>

namespace kvcommons::eviction {
namespace {

constexpr std::uint32_t kCreditMax = 64;

// Other bits than any table's own hash of a key.
std::uint64_t scattered(std::uint64_t key) noexcept {
  key ^= key >> 31;
  key *= 0xd6e8feb86659fd93ull;
  return key ^ (key >> 32);
}

}  // namespace

std::size_t Hubs::row_of(std::uint64_t key) noexcept { return (scattered(key) >> 16) & (kRows - 1); }

void Hubs::note_child(std::uint64_t parent, std::uint64_t child) noexcept {
  Row& row = rows_[row_of(parent)];
  if (row.key != parent) {
    if (row.credit != 0) {
      --row.credit;
      return;
    }
    row = {parent, 0, 0};
  }
  const std::uint64_t bit = 1ull << (scattered(child) & 63);
  if ((row.children & bit) == 0) {
    row.children |= bit;
    row.credit = std::min(row.credit + 2, kCreditMax);
  }
}

bool Hubs::contains(std::uint64_t key) const noexcept {
  const Row& row = rows_[row_of(key)];
  return row.key == key && std::popcount(row.children) >= kBitsOfHub;
}

Shadows::Shadows(const ShadowConfig& config) : config_(config) {}

// A smaller chunk than any before means more of them: then the shadows begin anew. False: nothing fits.
bool Shadows::size_for(std::uint32_t pages) {
  if (pages == 0 || pages > config_.capacity_pages) return false;
  if (chooser_ && pages >= pages_min_) return true;
  pages_min_ = pages;
  const std::uint64_t chunks = config_.capacity_pages / pages;
  std::uint32_t shift = 0;
  while (chunks >> shift > config_.chunks_max && shift < kShiftMax) ++shift;
  if (chooser_ && shift == shift_) return true;
  shift_ = shift;
  const std::uint64_t held = std::max<std::uint64_t>(chunks >> shift, 1);
  for (std::size_t i = 0; i < kKinds; ++i) {
    caches_[i] = std::make_unique<PrefixCache>(static_cast<Kind>(i), config_.capacity_pages, held);
  }
  switches_before_ += chooser_ ? chooser_->switches() : 0;
  chooser_.emplace(static_cast<double>(held), best());
  return true;
}

std::size_t Shadows::take(std::span<const std::uint64_t> chain, std::uint32_t pages) {
  items_.clear();
  if (shift_ == 0) {
    for (const std::uint64_t key : chain) items_.push_back({key, pages});
    return chain.size();
  }
  std::size_t anchor = 0;
  const std::size_t depth = std::min(chain.size(), kHubDepthMax);
  for (std::size_t i = 0; i < depth; ++i) {
    if (i + 1 < chain.size()) hubs_.note_child(chain[i], chain[i + 1]);
    if (hubs_.contains(chain[i])) anchor = i + 1;
  }
  for (std::size_t i = 0; i < chain.size(); ++i) {
    items_.push_back({chain[i], i < anchor ? pages : std::uint64_t{pages} << shift_});
  }
  const bool in = anchor < chain.size() && (scattered(chain[anchor]) >> 32 & ((1ull << shift_) - 1)) == 0;
  return in ? chain.size() : anchor;
}

void Shadows::asked(std::span<const std::uint64_t> chain, std::size_t found, std::uint32_t pages) {
  if (chain.empty() || !size_for(pages)) return;
  const std::size_t taken = take(chain, pages);
  if (taken == 0) return;
  const std::span<const Item> items(items_.data(), taken);
  PerKind<std::uint64_t> hits{};
  for (std::size_t i = 0; i < kKinds; ++i) {
    hits[i] = caches_[i]->use(items);
    if (hits[i] < std::min(found, taken)) caches_[i]->put(items.first(std::min(found, taken)), hits[i]);
  }
  if (taken != chain.size()) return;
  asked_ += taken;
  for (std::size_t i = 0; i < kKinds; ++i) hits_[i] += hits[i];
  chooser_->observe(hits, taken, caches_.front()->evicted());
}

void Shadows::stored(std::span<const std::uint64_t> chain, std::size_t from, std::uint32_t pages, const Hints& hints) {
  if (chain.empty() || !size_for(pages)) return;
  const std::size_t taken = take(chain, pages);
  const std::span<const Item> items(items_.data(), taken);
  for (const auto& cache : caches_) {
    std::size_t first = std::min(from, taken);
    while (first < taken && cache->contains(items[first].key)) ++first;
    if (first < taken) cache->put(items, first, hints);
    if (hints.session_end) cache->ended(items);
  }
}

void Shadows::stored_below(std::uint64_t parent, std::span<const std::uint64_t> keys, std::uint32_t pages,
                           const Hints& hints) {
  if (parent == 0) {
    stored(keys, 0, pages, hints);
    return;
  }
  if (keys.empty() || !size_for(pages)) return;
  // Below a hub the first key decides. Elsewhere the chain is in the sample if its parent came in before.
  const bool below_hub = shift_ != 0 && hubs_.contains(parent);
  if (below_hub && take(keys, pages) != keys.size()) return;
  items_.assign(1, {parent, 0});
  for (const std::uint64_t key : keys) items_.push_back({key, std::uint64_t{pages} << shift_});
  for (const auto& cache : caches_) {
    if (!cache->contains(parent)) continue;
    std::size_t first = 1;
    while (first < items_.size() && cache->contains(items_[first].key)) ++first;
    if (first < items_.size()) cache->put(items_, first, hints);
    if (hints.session_end) cache->ended(items_);
  }
}

void Shadows::request(std::span<const std::uint64_t> chain, std::uint32_t pages, const Hints& hints) {
  if (chain.empty() || !size_for(pages)) return;
  asked(chain, 0, pages);
  stored(chain, 0, pages, hints);
}

double Shadows::ageing() const noexcept {
  const auto& cache = caches_[static_cast<std::size_t>(Kind::Cost)];
  return cache ? cache->policy().ageing() : 0;
}

ShadowStats Shadows::stats() const noexcept {
  return {hits_, asked_, 1ull << shift_, switches_before_ + (chooser_ ? chooser_->switches() : 0), best()};
}

}  // namespace kvcommons::eviction
