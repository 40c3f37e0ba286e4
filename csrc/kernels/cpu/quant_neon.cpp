// Quantisation by NEON, which every aarch64 has.
#if defined(__aarch64__)
#include <type_traits>
#include <utility>

#include "quant_impl.h"

namespace kvcommons::kernels {
namespace {

constexpr std::size_t kLanes = 4;
typedef std::uint32_t U __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t H __attribute__((vector_size(2 * kLanes)));
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));

// Lanes are below 256.
inline Bytes narrow(U x) { return __builtin_convertvector(x, Bytes); }
inline U widen(const std::uint8_t* at) {
  Bytes b;
  __builtin_memcpy(&b, at, sizeof b);
  return __builtin_convertvector(b, U);
}
inline U widen16(H x) { return __builtin_convertvector(x, U); }
inline H narrow16(U x) { return __builtin_convertvector(x, H); }

constexpr bool kStreams = false;
template <typename V>
void stream(void*, V);  // never called
#include "quant_vector.inc"

}  // namespace

namespace detail {
const QuantKernels kQuantNeon = kTable;
}

}  // namespace kvcommons::kernels
#endif
