// Streaming copies by AVX2. Nothing inline from elsewhere may be built here (see copy_impl.h).
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "copy_impl.h"

#define KVCOMMONS_TARGET __attribute__((target("avx2")))

namespace kvcommons::kernels::detail {
namespace {

using Vector = __m256i;
KVCOMMONS_TARGET inline Vector load(const std::byte* src) {
  return _mm256_loadu_si256(reinterpret_cast<const Vector*>(src));
}
KVCOMMONS_TARGET inline void stream(std::byte* dst, Vector v) {
  _mm256_stream_si256(reinterpret_cast<Vector*>(dst), v);
}

#include "copy_stream.inc"

}  // namespace

void stream_avx2(const CopyRun* runs, std::size_t count) { stream_runs(runs, count); }

}  // namespace kvcommons::kernels::detail
#endif
