// The arithmetic of quantisation, one element at a time, in the plainest words: the scalar reference and the GPU's
// kernels are made of it, and every other implementation gives these bytes. It wants no fused multiply-add, and
// division and denormals as IEEE 754 has them.
#pragma once

#include <cstring>

#include "kernels/both_sides.h"
#include "kernels/cpu/quant.h"

namespace kvcommons::kernels {
namespace {

inline constexpr std::uint32_t kSign = 0x80000000u;

KVC_BOTH std::uint32_t bits_of(float x) {
#if KVC_ON_GPU
  return __float_as_uint(x);
#else
  return __builtin_bit_cast(std::uint32_t, x);
#endif
}
KVC_BOTH float float_of(std::uint32_t bits) {
#if KVC_ON_GPU
  return __uint_as_float(bits);
#else
  return __builtin_bit_cast(float, bits);
#endif
}
KVC_BOTH std::uint32_t magnitude(float x) { return bits_of(x) & ~kSign; }

template <typename T>
KVC_BOTH T read(const std::byte* at) {
#if KVC_ON_GPU
  return *reinterpret_cast<const T*>(at);  // rows begin at elements
#else
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
#endif
}
template <typename T>
KVC_BOTH void write(std::byte* at, T value) {
#if KVC_ON_GPU
  *reinterpret_cast<T*>(at) = value;
#else
  std::memcpy(at, &value, sizeof value);
#endif
}

KVC_BOTH float of_bf16(std::uint16_t bits) { return float_of(std::uint32_t{bits} << 16); }

struct F32 {
  static constexpr std::size_t kBytes = 4;
  KVC_BOTH_MEMBER static float load(const std::byte* at) { return read<float>(at); }
  KVC_BOTH_MEMBER static void store(std::byte* at, float x) { write(at, x); }
};

struct Bf16 {
  static constexpr std::size_t kBytes = 2;
  KVC_BOTH_MEMBER static float load(const std::byte* at) { return of_bf16(read<std::uint16_t>(at)); }
  KVC_BOTH_MEMBER static void store(std::byte* at, float x) {  // to nearest, ties to even; x is finite
    const std::uint32_t u = bits_of(x);
    write(at, static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16));
  }
};

struct F16 {
  static constexpr std::size_t kBytes = 2;
  KVC_BOTH_MEMBER static float load(const std::byte* at) {
    const std::uint32_t h = read<std::uint16_t>(at), m = h & 0x7FFFu, sign = (h & 0x8000u) << 16;
    if (m < 0x0400u) return float_of(bits_of(static_cast<float>(m) * 0x1p-24F) | sign);  // zero and denormals
    if (m >= 0x7C00u) return float_of(((m << 13) + (224u << 23)) | sign);                // Inf, NaN
    return float_of(((m << 13) + (112u << 23)) | sign);
  }
  KVC_BOTH_MEMBER static void store(std::byte* at, float x) {  // nearest, ties to even; what is larger: the largest
    std::uint32_t a = magnitude(x);
    constexpr std::uint32_t kMax = 0x477FE000u;  // 65504
    if (a > kMax) a = kMax;
    const std::uint32_t sign = (bits_of(x) & kSign) >> 16;
    const std::uint32_t m = a < (113u << 23) ? bits_of(float_of(a) + 0.5F) - bits_of(0.5F)
                                             : (a - (112u << 23) + 0x0FFFu + ((a >> 13) & 1u)) >> 13;
    write(at, static_cast<std::uint16_t>(m | sign));
  }
};

KVC_BOTH std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

// To the nearest integer, ties to even: for |x| < 2^22, in the default rounding mode, which nothing here changes.
KVC_BOTH std::int32_t nearest(float x) {
  return static_cast<std::int32_t>(bits_of(x + 0x1.8p23F) - bits_of(0x1.8p23F));
}

KVC_BOTH std::uint8_t e4m3_of(float y) {  // |y| < 464
  const std::uint32_t a = magnitude(y), sign = (bits_of(y) >> 24) & 0x80u;
  const std::uint32_t m = a < (121u << 23) ? bits_of(float_of(a) + 0x1p14F) - bits_of(0x1p14F)
                                           : ((a + 0x7FFFFu + ((a >> 20) & 1u)) >> 20) - (120u << 3);
  return static_cast<std::uint8_t>(m | sign);
}

KVC_BOTH float of_e4m3(std::uint8_t code) {
  const std::uint32_t a = code & 0x7Fu, sign = (code & 0x80u) << 24;
  const std::uint32_t m = a < 8 ? bits_of(static_cast<float>(a) * 0x1p-9F) : (a << 20) + (120u << 23);
  return float_of(m | sign);
}

KVC_BOTH std::uint8_t int8_of(float y) { return static_cast<std::uint8_t>(nearest(y)); }
KVC_BOTH float of_int8(std::uint8_t code) { return static_cast<float>(static_cast<std::int8_t>(code)); }

KVC_BOTH float inverse_scale(float scale) { return scale == 0.0F ? 0.0F : 1.0F / scale; }
KVC_BOTH float scale_of(std::uint32_t max_bits, float steps) {
  return max_bits < kTinyBits ? 0.0F : float_of(max_bits) / steps;
}
KVC_BOTH std::uint16_t scale_up_to_bf16(std::uint32_t max_bits, float steps) {
  return static_cast<std::uint16_t>((bits_of(scale_of(max_bits, steps)) + 0xFFFFu) >> 16);
}
KVC_BOTH std::uint16_t int8_scale(std::uint32_t max_bits) {  // of values that nothing quantises: none
  return max_bits < kHugeBits ? scale_up_to_bf16(max_bits, 127.0F) : std::uint16_t{0};
}

// A bfloat16 not above x, so that x - low is never negative; tiny lows are zero.
KVC_BOTH std::uint16_t low_of(float x) {
  const std::uint32_t u = bits_of(x);
  if (magnitude(x) < kTinyBits) return 0;
  return static_cast<std::uint16_t>(((u & kSign) != 0 ? u + 0xFFFFu : u) >> 16);
}

struct Range4 {
  std::uint16_t low, scale;
};
KVC_BOTH Range4 range4(float low, float high) {
  const std::uint16_t stored = low_of(low);
  const float span = high - of_bf16(stored);
  return {stored, span > 0.0F ? scale_up_to_bf16(bits_of(span), 15.0F) : std::uint16_t{0}};
}

KVC_BOTH std::uint8_t code4(float x, float low, float inverse) {
  const std::int32_t q = nearest((x - low) * inverse);
  return static_cast<std::uint8_t>(q < 0 ? 0 : q > 15 ? 15 : q);
}
KVC_BOTH float of_code4(unsigned code, float low, float scale) { return static_cast<float>(code) * scale + low; }

}  // namespace
}  // namespace kvcommons::kernels
