// XXH3's long path for AVX-512. Nothing inline from elsewhere may be built here (see cpu.h).
#if defined(__x86_64__)
#include <immintrin.h>

#include "xxh3_impl.h"

namespace kvcommons::xxh3_detail {
namespace {
constexpr std::size_t kPrefetchBytes = 1024;
}

__attribute__((target("avx512f"))) void consume_avx512(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes,
                                                       std::size_t first, const std::uint8_t* secret) {
  __m512i a = _mm512_loadu_si512(acc);
  const __m512i prime = _mm512_set1_epi32(static_cast<int>(kPrime32A));
  // The shifts and the shuffle are masked with all lanes: gcc 12 warns of an uninitialised source in the plain forms.
  constexpr __mmask8 kAll = 0xFF;
  for (std::size_t at = first; stripes != 0; --stripes, in += kStripeBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(in + kPrefetchBytes), _MM_HINT_T0);
    const __m512i d = _mm512_loadu_si512(in);
    const __m512i k = _mm512_xor_si512(d, _mm512_loadu_si512(secret + at * 8));
    const __m512i product = _mm512_maskz_mul_epu32(kAll, k, _mm512_maskz_srli_epi64(kAll, k, 32));
    const __m512i swapped = _mm512_maskz_shuffle_epi32(0xFFFF, d, _MM_PERM_BADC);
    a = _mm512_add_epi64(product, _mm512_add_epi64(a, swapped));
    if (++at != kStripesPerBlock) continue;
    at = 0;
    __m512i v = _mm512_xor_si512(a, _mm512_maskz_srli_epi64(kAll, a, 47));
    v = _mm512_xor_si512(v, _mm512_loadu_si512(secret + kScrambleAt));
    const __m512i low = _mm512_maskz_mul_epu32(kAll, v, prime);
    const __m512i high = _mm512_maskz_mul_epu32(kAll, _mm512_maskz_srli_epi64(kAll, v, 32), prime);
    a = _mm512_add_epi64(low, _mm512_maskz_slli_epi64(kAll, high, 32));
  }
  _mm512_storeu_si512(acc, a);
}

}  // namespace kvcommons::xxh3_detail
#endif
