// Quantisation by AVX-512. Nothing inline from elsewhere may be built here (see quant_impl.h).
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "quant_impl.h"

namespace kvcommons::kernels {
namespace {

constexpr std::size_t kLanes = 16;
typedef std::uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t H __attribute__((vector_size(2 * kLanes)));
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));

// The masked forms: gcc 12 warns of the plain ones' undefined operand, which they don't have. Lanes are below 256.
constexpr __mmask16 kAll = 0xFFFF;
inline Bytes narrow(U x) {
  return reinterpret_cast<Bytes>(_mm512_maskz_cvtepi32_epi8(kAll, reinterpret_cast<__m512i>(x)));
}
inline U widen(const std::uint8_t* at) {
  return reinterpret_cast<U>(_mm512_maskz_cvtepu8_epi32(kAll, _mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
}
inline U widen16(H x) { return reinterpret_cast<U>(_mm512_maskz_cvtepu16_epi32(kAll, reinterpret_cast<__m256i>(x))); }
inline H narrow16(U x) { return reinterpret_cast<H>(_mm512_maskz_cvtepi32_epi16(kAll, reinterpret_cast<__m512i>(x))); }

typedef float Floats __attribute__((vector_size(4 * kLanes)));
inline void stream(void* at, Floats x) { _mm512_stream_ps(static_cast<float*>(at), reinterpret_cast<__m512>(x)); }
inline void stream(void* at, H x) { _mm256_stream_si256(static_cast<__m256i*>(at), reinterpret_cast<__m256i>(x)); }
inline void stream(void* at, Bytes x) { _mm_stream_si128(static_cast<__m128i*>(at), reinterpret_cast<__m128i>(x)); }

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
const QuantKernels kQuantAvx512 = kept::kTable;
const QuantKernels kQuantAvx512Streaming = streaming::kTable;
}  // namespace detail

}  // namespace kvcommons::kernels
#endif
