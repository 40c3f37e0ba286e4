// Which policy is the best of late, by what shadows of all of them hit.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "eviction/policy.h"

namespace kvcommons::eviction {

template <typename T>
using PerKind = std::array<T, kKinds>;

// Another policy is followed when it hit more of late than the one in force, by more than chance explains, and did not
// hit clearly less over a long time. Requests weigh by how long ago they were, measured in turnovers of the cache.
//
// Two requests' difference in hits counts as noise of its own size: the sum of their squares is the variance of the sum
// of differences if there were nothing behind it.
class Chooser {
 public:
  // `chunks`: what a shadow holds, about. Starts with `cost`: in no stream of ours is it far from the best.
  explicit Chooser(double chunks, Kind first = Kind::Cost) noexcept;

  // One request: what each policy would have hit of `asked` chunks. Returns the policy to follow.
  // `evicted`: by a shadow, in all. Before the first evictions all are equal, and what those cost shows later.
  Kind observe(const PerKind<std::uint64_t>& hits, std::uint64_t asked, std::uint64_t evicted) noexcept;
  [[nodiscard]] Kind current() const noexcept { return current_; }
  [[nodiscard]] std::uint64_t switches() const noexcept { return switches_; }

 private:
  // Sums of hits, and of squares of differences, that are halved every so many chunks asked for.
  struct Memory {
    double half_life = 1;
    double asked = 0;
    PerKind<double> hits{};
    PerKind<PerKind<double>> squares{};
    void add(const PerKind<std::uint64_t>& request, std::uint64_t chunks) noexcept;
    // How much more `other` hit than `one`, in standard deviations.
    [[nodiscard]] double lead(std::size_t other, std::size_t one) const noexcept;
  };

  Kind current_;
  double dwell_;  // evictions before the next change
  double changed_at_ = 0;
  std::uint64_t switches_ = 0;
  Memory lately_, long_;
};

}  // namespace kvcommons::eviction
