// What this machine's processor can do, asked once. Header-only, so that the core and the kernels link in any order.
// Each function built for one instruction set carries its target itself and lives in a file of its own that defines no
// other inline code: a shared inline function built there could be picked by the linker and run on a processor without.
#pragma once

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace kvcommons {

struct CpuFeatures {
  bool avx2 = false;
  bool avx512 = false;      // F, BW, DQ and VL together (x86-64-v4)
  bool sha = false;         // SHA-NI
  bool armv8_sha2 = false;  // the SHA-2 part of the cryptography extension
};

inline CpuFeatures detect_cpu_features() noexcept {
  CpuFeatures f;
#if defined(__x86_64__)
  __builtin_cpu_init();
  f.avx2 = __builtin_cpu_supports("avx2") != 0;
  f.avx512 = __builtin_cpu_supports("avx512f") != 0 && __builtin_cpu_supports("avx512bw") != 0 &&
             __builtin_cpu_supports("avx512dq") != 0 && __builtin_cpu_supports("avx512vl") != 0;
  // gcc 12 does not know "sha" here: leaf 7, EBX bit 29. The sequence below also needs SSSE3 and SSE4.1.
  unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
  __asm__ volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  f.sha = (ebx & (1u << 29)) != 0 && __builtin_cpu_supports("ssse3") != 0 && __builtin_cpu_supports("sse4.1") != 0;
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kHwcapSha2 = 1ul << 6;
  f.armv8_sha2 = (getauxval(AT_HWCAP) & kHwcapSha2) != 0;
#endif
  return f;
}

inline const CpuFeatures& cpu_features() noexcept {
  static const CpuFeatures features = detect_cpu_features();
  return features;
}

}  // namespace kvcommons
