#include "eviction/chooser.h"

#include <cmath>

namespace kvcommons::eviction {
namespace {

// Found with synthetic streams, seeds 1 to 3; docs/eviction.md has what they give on others.
constexpr double kLatelyTurnovers = 1, kLongTurnovers = 20;  // half-lives
constexpr double kLatelyChunksMin = 20'000, kLongChunksMin = 100'000;
constexpr double kDwellTurnovers = 0.3;
constexpr double kLeadMin = 1;            // standard deviations, of late
constexpr double kLongLagMax = 2;         // and over a long time it may be behind by so many
constexpr double kMarginOfAsked = 0.001;  // a change costs something, too
constexpr double kVarianceMin = 100;      // a handful of chunks is no evidence

}  // namespace

void Chooser::Memory::add(const PerKind<std::uint64_t>& request, std::uint64_t chunks) noexcept {
  const double keep = std::exp2(-static_cast<double>(chunks) / half_life);
  asked = asked * keep + static_cast<double>(chunks);
  for (std::size_t i = 0; i < kKinds; ++i) {
    hits[i] = hits[i] * keep + static_cast<double>(request[i]);
    for (std::size_t j = 0; j < kKinds; ++j) {
      const double apart = static_cast<double>(request[i]) - static_cast<double>(request[j]);
      squares[i][j] = squares[i][j] * keep + apart * apart;
    }
  }
}

double Chooser::Memory::lead(std::size_t other, std::size_t one) const noexcept {
  return (hits[other] - hits[one]) / std::sqrt(squares[other][one] + kVarianceMin);
}

Chooser::Chooser(double chunks, Kind first) noexcept : current_(first), dwell_(kDwellTurnovers * chunks) {
  lately_.half_life = kLatelyTurnovers * chunks + kLatelyChunksMin;
  long_.half_life = kLongTurnovers * chunks + kLongChunksMin;
}

Kind Chooser::observe(const PerKind<std::uint64_t>& hits, std::uint64_t asked, std::uint64_t evicted) noexcept {
  lately_.add(hits, asked);
  long_.add(hits, asked);
  if (static_cast<double>(evicted) - changed_at_ <= dwell_) return current_;
  const auto now = static_cast<std::size_t>(current_);
  std::size_t best = now;
  double best_gain = 0;
  for (std::size_t other = 0; other < kKinds; ++other) {
    const double noise = kLeadMin * std::sqrt(lately_.squares[other][now] + kVarianceMin);
    const double gain = lately_.hits[other] - lately_.hits[now] - noise - kMarginOfAsked * lately_.asked;
    if (other != now && gain > best_gain && long_.lead(other, now) >= -kLongLagMax) {
      best = other;
      best_gain = gain;
    }
  }
  if (best != now) {
    current_ = static_cast<Kind>(best);
    changed_at_ = static_cast<double>(evicted);
    ++switches_;
  }
  return current_;
}

}  // namespace kvcommons::eviction
