#include "copy.h"

#include <unistd.h>

#include <cstring>

#include "copy_impl.h"
#include "core/cpu.h"

namespace kvcommons::kernels {
namespace {

detail::StreamFn stream_of(CopyIsa isa) noexcept {
#if defined(__x86_64__)
  if (isa == CopyIsa::Avx512) return detail::stream_avx512;
  if (isa == CopyIsa::Avx2) return detail::stream_avx2;
#else
  (void)isa;
#endif
  return detail::stream_base;
}

CopyIsa best_isa() noexcept {
  static const CopyIsa best = copy_has(CopyIsa::Avx512) ? CopyIsa::Avx512
                              : copy_has(CopyIsa::Avx2) ? CopyIsa::Avx2
                                                        : CopyIsa::Base;
  return best;
}

void copy_cached(std::span<const CopyRun> runs) noexcept {
  for (std::size_t i = 0; i < runs.size(); ++i) {
    if (i + 1 < runs.size()) __builtin_prefetch(runs[i + 1].src);
    if (runs[i].bytes != 0) std::memcpy(runs[i].dst, runs[i].src, runs[i].bytes);
  }
}

}  // namespace

std::size_t l2_bytes() noexcept {
  static const std::size_t bytes = [] {
    constexpr std::size_t kUsual = 1u << 20;
#if defined(_SC_LEVEL2_CACHE_SIZE)
    const long told = sysconf(_SC_LEVEL2_CACHE_SIZE);
    if (told > 0) return static_cast<std::size_t>(told);
#endif
    return kUsual;
  }();
  return bytes;
}

Stores stores_for(std::size_t bytes) noexcept { return bytes > l2_bytes() ? Stores::Streaming : Stores::Cached; }

bool copy_has(CopyIsa isa) noexcept {
  if (isa == CopyIsa::Avx512) return cpu_features().avx512;
  return isa == CopyIsa::Base || cpu_features().avx2;
}

void copy_runs_isa(CopyIsa isa, std::span<const CopyRun> runs, Stores stores) noexcept {
  if (stores == Stores::Cached) {
    copy_cached(runs);
  } else {
    stream_of(isa)(runs.data(), runs.size());
  }
}

void copy_runs(std::span<const CopyRun> runs, Stores stores) noexcept { copy_runs_isa(best_isa(), runs, stores); }

}  // namespace kvcommons::kernels
