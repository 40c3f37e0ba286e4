// Quantisation of rows of KV. Raw pointers and sizes only: whoever calls has checked that they are its own.
//
// A tile is `count` rows of `width` elements, the rows anywhere (one row: one token of one head). All arithmetic is
// float32, rounded to nearest even, without fused operations: every implementation gives the scalar one's bytes.
// Scales are bfloat16 rounded up (float32 for e4m3), so that the largest value never leaves the code's range.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvcommons::kernels {

enum class Element : std::uint8_t { F32 = 1, F16 = 2, Bf16 = 3 };
[[nodiscard]] constexpr std::size_t element_bytes(Element element) noexcept { return element == Element::F32 ? 4 : 2; }

using Rows = const std::byte* const*;
using RowsOut = std::byte* const*;

// Values from this on (and Inf and NaN, whose bits are higher) are no KV that a model works with: nothing quantises
// them. Where all values are below kTinyBits their scale is 0 and they decode as zero. Bits of a float32 without sign.
inline constexpr std::uint32_t kHugeBits = (127u + 100u) << 23;  // 2^100
inline constexpr std::uint32_t kTinyBits = (127u - 100u) << 23;  // 2^-100
inline constexpr float kE4m3Max = 448.0F;

// Bits of the largest |x|: comparing them as integers orders NaN above Inf above every number. The encoders that find
// their own scales return it too; what they wrote is worth nothing where it reaches kHugeBits.
struct QuantKernels {
  std::uint32_t (*max_bits)(Element, Rows, std::size_t count, std::size_t width);
  // max_bits[width] is raised, never lowered: clear it first.
  void (*channel_max_bits)(Element, Rows, std::size_t count, std::size_t width, std::uint32_t* max_bits);

  // codes: count x width bytes. inverse = 1 / scale, or 0.
  void (*e4m3_encode)(Element, Rows, std::size_t count, std::size_t width, float inverse, std::uint8_t* codes);
  void (*e4m3_decode)(Element, RowsOut, std::size_t count, std::size_t width, float scale, const std::uint8_t* codes);

  // A scale for each channel, found by the caller.
  void (*int8_channels_encode)(Element, Rows, std::size_t count, std::size_t width, const float* inverses,
                               std::uint8_t* codes);
  void (*int8_channels_decode)(Element, RowsOut, std::size_t count, std::size_t width, const float* scales,
                               const std::uint8_t* codes);
  // A scale for each row: count bfloat16 in `scales`.
  std::uint32_t (*int8_rows_encode)(Element, Rows, std::size_t count, std::size_t width, std::byte* scales,
                                    std::uint8_t* codes);
  void (*int8_rows_decode)(Element, RowsOut, std::size_t count, std::size_t width, const std::byte* scales,
                           const std::uint8_t* codes);

  // x = low + code * scale, low and scale bfloat16. All rows are one group of each channel: width lows, then width
  // scales in `params`; byte (i / 2) * width + c holds row i's code (even i: low nibble).
  std::uint32_t (*int4_channels_encode)(Element, Rows, std::size_t count, std::size_t width, std::byte* params,
                                        std::uint8_t* codes);
  void (*int4_channels_decode)(Element, RowsOut, std::size_t count, std::size_t width, const std::byte* params,
                               const std::uint8_t* codes);
  // Groups of `group` (even) channels of one row, the last one shorter; width is even. For each row its lows, then its
  // scales; within a group of g, byte k holds the codes of k (low nibble) and k + g / 2.
  std::uint32_t (*int4_rows_encode)(Element, Rows, std::size_t count, std::size_t width, std::size_t group,
                                    std::byte* params, std::uint8_t* codes);
  void (*int4_rows_decode)(Element, RowsOut, std::size_t count, std::size_t width, std::size_t group,
                           const std::byte* params, const std::uint8_t* codes);
};

enum class QuantIsa : std::uint8_t { Scalar, Avx2, Avx512, Neon };
[[nodiscard]] bool quant_has(QuantIsa isa) noexcept;
[[nodiscard]] QuantIsa quant_best() noexcept;
// The scalar ones where the machine lacks isa. streaming: what is written goes past the caches where that is of use,
// and is seen by other threads after quant_fence() only.
[[nodiscard]] const QuantKernels& quant_kernels(QuantIsa isa, bool streaming = false) noexcept;
void quant_fence() noexcept;

// What the callers of the channel kernels compute: a scale that the stored form keeps exactly, and its inverse.
[[nodiscard]] std::uint16_t bf16_scale_up(std::uint32_t max_bits, float steps) noexcept;  // 0 below kTinyBits
[[nodiscard]] float float_scale(std::uint32_t max_bits, float steps) noexcept;
[[nodiscard]] float float_of_bf16(std::uint16_t bits) noexcept;
[[nodiscard]] inline float inverse_of(float scale) noexcept { return scale == 0.0F ? 0.0F : 1.0F / scale; }

}  // namespace kvcommons::kernels
