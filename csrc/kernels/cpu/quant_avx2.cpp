// Quantisation by AVX2. Nothing inline from elsewhere may be built here (see quant_impl.h).
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "quant_impl.h"

namespace kvcommons::kernels {
namespace {

constexpr std::size_t kLanes = 8;
typedef std::uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t H __attribute__((vector_size(2 * kLanes)));
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));

// Lanes are below 256.
inline Bytes narrow(U x) {
  const __m256i words = _mm256_packus_epi32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(x));
  const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
  const __m128i bytes = _mm_packus_epi16(_mm_unpacklo_epi64(low, high), low);
  return reinterpret_cast<Bytes>(_mm_cvtsi128_si64(bytes));
}
inline U widen(const std::uint8_t* at) {
  return reinterpret_cast<U>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
}
inline U widen16(H x) { return reinterpret_cast<U>(_mm256_cvtepu16_epi32(reinterpret_cast<__m128i>(x))); }
// Lanes are below 65536.
inline H narrow16(U x) {
  const __m256i words = _mm256_packus_epi32(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(x));
  return reinterpret_cast<H>(_mm256_castsi256_si128(_mm256_permute4x64_epi64(words, 0x08)));
}

typedef float Floats __attribute__((vector_size(4 * kLanes)));
inline void stream(void* at, Floats x) { _mm256_stream_ps(static_cast<float*>(at), reinterpret_cast<__m256>(x)); }
inline void stream(void* at, H x) { _mm_stream_si128(static_cast<__m128i*>(at), reinterpret_cast<__m128i>(x)); }
inline void stream(void* at, Bytes x) { _mm_stream_si64(static_cast<long long*>(at), reinterpret_cast<long long>(x)); }

// Twice: with stores that a cache keeps, and with those that go past it.
namespace kept {
constexpr bool kStreams = false;
#include "quant_vector.inc"
}  // namespace kept
namespace streaming {
constexpr bool kStreams = true;
#include "quant_vector.inc"
}  // namespace streaming

}  // namespace

namespace detail {
const QuantKernels kQuantAvx2 = kept::kTable;
const QuantKernels kQuantAvx2Streaming = streaming::kTable;
}  // namespace detail

}  // namespace kvcommons::kernels
#endif
