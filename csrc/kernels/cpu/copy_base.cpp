// Streaming copies by SSE2, which every x86-64 has. Nothing inline from elsewhere may be built here (see copy_impl.h).
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "copy_impl.h"

#define KVCOMMONS_TARGET

namespace kvcommons::kernels::detail {
namespace {

using Vector = __m128i;
KVCOMMONS_TARGET inline Vector load(const std::byte* src) {
  return _mm_loadu_si128(reinterpret_cast<const Vector*>(src));
}
KVCOMMONS_TARGET inline void stream(std::byte* dst, Vector v) { _mm_stream_si128(reinterpret_cast<Vector*>(dst), v); }

#include "copy_stream.inc"

}  // namespace

void stream_base(const CopyRun* runs, std::size_t count) { stream_runs(runs, count); }

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
