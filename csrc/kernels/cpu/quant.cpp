#include "quant.h"

#include <initializer_list>

#include "core/cpu.h"
#include "quant_impl.h"

namespace kvcommons::kernels {

bool quant_has(QuantIsa isa) noexcept {
  switch (isa) {
    case QuantIsa::Scalar:
      return true;
    case QuantIsa::Avx2:
      return cpu_features().avx2;
    case QuantIsa::Avx512:
      return cpu_features().avx512;
    case QuantIsa::Neon:
#if defined(__aarch64__)
      return true;
#else
      return false;
#endif
  }
  return false;
}

QuantIsa quant_best() noexcept {
  static const QuantIsa best = [] {
    for (const QuantIsa isa : {QuantIsa::Avx512, QuantIsa::Avx2, QuantIsa::Neon}) {
      if (quant_has(isa)) return isa;
    }
    return QuantIsa::Scalar;
  }();
  return best;
}

const QuantKernels& quant_kernels(QuantIsa isa, [[maybe_unused]] bool streaming) noexcept {
  if (quant_has(isa)) {
#if defined(__x86_64__)
    if (isa == QuantIsa::Avx512) return streaming ? detail::kQuantAvx512Streaming : detail::kQuantAvx512;
    if (isa == QuantIsa::Avx2) return streaming ? detail::kQuantAvx2Streaming : detail::kQuantAvx2;
#elif defined(__aarch64__)
    if (isa == QuantIsa::Neon) return detail::kQuantNeon;
#endif
  }
  return detail::kQuantScalar;
}

void quant_fence() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_sfence();
#endif
}

}  // namespace kvcommons::kernels
