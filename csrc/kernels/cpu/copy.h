// Copies of many runs at once. Raw pointers and sizes only: whoever calls has checked that they are its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace kvcommons::kernels {

struct CopyRun {
  const std::byte* src = nullptr;
  std::byte* dst = nullptr;
  std::size_t bytes = 0;
};

// Streaming stores go past the caches: right for what does not fit them, wrong for what is read again at once.
enum class Stores : std::uint8_t { Cached, Streaming };

inline constexpr std::size_t kStreamRunBytesMin = 2048;  // shorter runs are copied through the caches in any case
inline constexpr std::size_t kTaskBytesMin = 1u << 20;   // less is not worth waking another thread

[[nodiscard]] std::size_t l2_bytes() noexcept;
// Streaming when one copy of `bytes` would push everything else out of the second-level cache.
[[nodiscard]] Stores stores_for(std::size_t bytes) noexcept;

// Copies every run by the best instructions at hand. What was streamed is visible to other processors on return.
void copy_runs(std::span<const CopyRun> runs, Stores stores) noexcept;

// The implementations, for tests and benchmarks.
enum class CopyIsa : std::uint8_t { Base, Avx2, Avx512 };
[[nodiscard]] bool copy_has(CopyIsa isa) noexcept;
void copy_runs_isa(CopyIsa isa, std::span<const CopyRun> runs, Stores stores) noexcept;

// Collects runs and joins neighbours: where both sides continue where the last run ended, it only grows.
class RunList {
 public:
  void add(const std::byte* src, std::byte* dst, std::size_t bytes) {
    bytes_ += bytes;
    if (!runs_.empty()) {
      CopyRun& last = runs_.back();
      if (last.src + last.bytes == src && last.dst + last.bytes == dst) {
        last.bytes += bytes;
        return;
      }
    }
    runs_.push_back({src, dst, bytes});
  }
  void clear() noexcept {
    runs_.clear();
    bytes_ = 0;
  }
  [[nodiscard]] std::span<const CopyRun> runs() const noexcept { return runs_; }
  [[nodiscard]] std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::vector<CopyRun> runs_;
  std::size_t bytes_ = 0;
};

}  // namespace kvcommons::kernels
