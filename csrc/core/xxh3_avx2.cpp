// XXH3's long path for AVX2. Nothing inline from elsewhere may be built here (see cpu.h).
#if defined(__x86_64__)
#include <immintrin.h>

#include "xxh3_impl.h"

namespace kvcommons::xxh3_detail {
namespace {
constexpr std::size_t kPrefetchBytes = 1024;
}

__attribute__((target("avx2"))) void consume_avx2(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes,
                                                  std::size_t first, const std::uint8_t* secret) {
  auto* out = reinterpret_cast<__m256i*>(acc);
  __m256i a[2] = {_mm256_loadu_si256(out), _mm256_loadu_si256(out + 1)};
  const __m256i prime = _mm256_set1_epi32(static_cast<int>(kPrime32A));
  for (std::size_t at = first; stripes != 0; --stripes, in += kStripeBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(in + kPrefetchBytes), _MM_HINT_T0);
    const auto* data = reinterpret_cast<const __m256i*>(in);
    const auto* keys = reinterpret_cast<const __m256i*>(secret + at * 8);
    for (int i = 0; i < 2; ++i) {
      const __m256i d = _mm256_loadu_si256(data + i);
      const __m256i k = _mm256_xor_si256(d, _mm256_loadu_si256(keys + i));
      const __m256i product = _mm256_mul_epu32(k, _mm256_srli_epi64(k, 32));
      const __m256i swapped = _mm256_shuffle_epi32(d, 0x4E);
      a[i] = _mm256_add_epi64(product, _mm256_add_epi64(a[i], swapped));
    }
    if (++at != kStripesPerBlock) continue;
    at = 0;
    const auto* scramble = reinterpret_cast<const __m256i*>(secret + kScrambleAt);
    for (int i = 0; i < 2; ++i) {
      __m256i v = _mm256_xor_si256(a[i], _mm256_srli_epi64(a[i], 47));
      v = _mm256_xor_si256(v, _mm256_loadu_si256(scramble + i));
      const __m256i low = _mm256_mul_epu32(v, prime);
      const __m256i high = _mm256_mul_epu32(_mm256_srli_epi64(v, 32), prime);
      a[i] = _mm256_add_epi64(low, _mm256_slli_epi64(high, 32));
    }
  }
  _mm256_storeu_si256(out, a[0]);
  _mm256_storeu_si256(out + 1, a[1]);
}

}  // namespace kvcommons::xxh3_detail
#endif
