// Inside of quant*.cpp: what the instruction-set units share. No inline code here: a function that the linker may pick
// from a unit built for newer processors would run on older ones.
#pragma once

#include "quant.h"

namespace kvcommons::kernels::detail {

extern const QuantKernels kQuantScalar;
#if defined(__x86_64__)
extern const QuantKernels kQuantAvx2, kQuantAvx2Streaming;
extern const QuantKernels kQuantAvx512, kQuantAvx512Streaming;
#elif defined(__aarch64__)
extern const QuantKernels kQuantNeon;
#endif

}  // namespace kvcommons::kernels::detail
