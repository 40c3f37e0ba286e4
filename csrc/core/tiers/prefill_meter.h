// How fast the engines of this node compute a model's tokens: from the lookup that found so much to the commit of the
// last chunk that was missing. Queues and copies are in that time, so the best of late is the truest. Not thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>

#include "types.h"

namespace kvcommons::tiers {

class PrefillMeter {
 public:
  // `missing` tokens, the last of which are in the chunk `last`, are about to be computed, unless they are asked for
  // again.
  void begun(const Key& fingerprint, const Key& last, std::uint64_t missing_tokens, std::uint64_t now_ms) {
    if (begun_.size() >= kBegunMax) {
      std::erase_if(begun_, [&](const auto& one) { return now_ms - one.second.at_ms > kBegunMsMax; });
    }
    if (begun_.size() < kBegunMax) begun_[last] = {fingerprint, missing_tokens, now_ms};
  }
  void sealed(const Key& key, std::uint64_t now_ms) {
    const auto known = begun_.find(key);
    if (known == begun_.end()) return;
    const Begun begun = known->second;
    begun_.erase(known);
    const auto ms = static_cast<double>(now_ms > begun.at_ms ? now_ms - begun.at_ms : 1);
    const double rate = static_cast<double>(begun.tokens) * 1'000 / ms;
    if (rates_.size() >= kFingerprintsMax && !rates_.contains(begun.fingerprint)) return;
    double& best = rates_[begun.fingerprint];
    best = rate > best ? rate : best + kDecay * (rate - best);
  }
  [[nodiscard]] double tokens_per_second(const Key& fingerprint) const {
    const auto known = rates_.find(fingerprint);
    return known == rates_.end() ? 0 : known->second;
  }
  [[nodiscard]] double best() const {
    double rate = 0;
    for (const auto& [fingerprint, one] : rates_) rate = one > rate ? one : rate;
    return rate;
  }

 private:
  struct Begun {
    Key fingerprint;
    std::uint64_t tokens = 0, at_ms = 0;
  };
  static constexpr std::size_t kBegunMax = 4'096, kFingerprintsMax = 256;
  static constexpr std::uint64_t kBegunMsMax = 60'000;
  static constexpr double kDecay = 0.05;  // towards what is slower than the best

  std::unordered_map<Key, Begun, KeyHash> begun_;
  std::unordered_map<Key, double, KeyHash> rates_;
};

}  // namespace kvcommons::tiers
