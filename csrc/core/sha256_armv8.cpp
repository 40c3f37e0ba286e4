// SHA-256's blocks by the ARMv8 cryptography extension. Nothing inline from elsewhere may be built here (see cpu.h).
#if defined(__aarch64__)
#if defined(__clang__)
#define KVCOMMONS_TARGET_SHA2 __attribute__((target("sha2")))
#else
#define KVCOMMONS_TARGET_SHA2 __attribute__((target("+crypto")))
#endif
#include <arm_neon.h>

#include "sha256_impl.h"

namespace kvcommons::sha256_detail {

KVCOMMONS_TARGET_SHA2 void compress_armv8(std::uint32_t* state, const std::uint8_t* data, std::size_t blocks) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; blocks != 0; --blocks, data += 64) {
    const uint32x4_t abcd_before = abcd, efgh_before = efgh;
    uint32x4_t w[4];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) {
      if (i < 4) {
        w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
      } else {
        w[i % 4] = vsha256su1q_u32(vsha256su0q_u32(w[i % 4], w[(i + 1) % 4]), w[(i + 2) % 4], w[(i + 3) % 4]);
      }
      const uint32x4_t wk = vaddq_u32(w[i % 4], vld1q_u32(kRound + 4 * i));
      const uint32x4_t abcd_old = abcd;
      abcd = vsha256hq_u32(abcd, efgh, wk);
      efgh = vsha256h2q_u32(efgh, abcd_old, wk);
    }
    abcd = vaddq_u32(abcd, abcd_before);
    efgh = vaddq_u32(efgh, efgh_before);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

}  // namespace kvcommons::sha256_detail
#endif
