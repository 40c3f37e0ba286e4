// Streaming copies by SSE2, which every x86-64 has. Nothing inline from elsewhere may be built here (see copy_impl.h).
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "copy_impl.h"

namespace kvcommons::kernels::detail {
namespace {

constexpr std::size_t kLine = 64;
constexpr std::size_t kVector = sizeof(__m128i);
constexpr std::size_t kVectors = 8;
constexpr std::size_t kStep = kVector * kVectors;
static_assert(kStep % kLine == 0, "a step prefetches whole lines");

// While a run nears its end, the start of the next one is fetched.
void prefetch_step(const std::byte* src, std::size_t left, const std::byte* next) {
  const std::byte* at = left > kPrefetchBytes ? src + kPrefetchBytes : next + (kPrefetchBytes - left);
  for (std::size_t i = 0; i < kStep; i += kLine) {
    _mm_prefetch(reinterpret_cast<const char*>(at + i), _MM_HINT_T0);
  }
}

void stream_run(const CopyRun& run, const std::byte* next) {
  const std::byte* src = run.src;
  std::byte* dst = run.dst;
  std::size_t left = run.bytes;
  const std::size_t head = (kLine - reinterpret_cast<std::size_t>(dst) % kLine) % kLine;
  memcpy(dst, src, head);  // streamed stores must be aligned
  src += head, dst += head, left -= head;
  for (; left >= kStep; src += kStep, dst += kStep, left -= kStep) {
    prefetch_step(src, left, next);
    __m128i v[kVectors];
    for (std::size_t i = 0; i < kVectors; ++i) v[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src) + i);
    for (std::size_t i = 0; i < kVectors; ++i) _mm_stream_si128(reinterpret_cast<__m128i*>(dst) + i, v[i]);
  }
  memcpy(dst, src, left);
}

}  // namespace

void stream_base(const CopyRun* runs, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::byte* next = i + 1 < count ? runs[i + 1].src : runs[i].src;
    if (runs[i].bytes < kStreamRunBytesMin) {
      _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T0);
      memcpy(runs[i].dst, runs[i].src, runs[i].bytes);
    } else {
      stream_run(runs[i], next);
    }
  }
  _mm_sfence();
}

}  // namespace kvcommons::kernels::detail
#else
#include <string.h>

#include "copy_impl.h"

namespace kvcommons::kernels::detail {

void stream_base(const CopyRun* runs, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) memcpy(runs[i].dst, runs[i].src, runs[i].bytes);
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

}  // namespace kvcommons::kernels::detail
#endif
