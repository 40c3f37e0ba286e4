// The reference: one element at a time, in the plainest words. Every other implementation gives these bytes.
#include <bit>
#include <cmath>
#include <cstring>

#include "quant_impl.h"

namespace kvcommons::kernels {
namespace {

constexpr std::uint32_t kSign = 0x80000000u;

std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
float float_of(std::uint32_t bits) { return std::bit_cast<float>(bits); }
std::uint32_t magnitude(float x) { return bits_of(x) & ~kSign; }

template <typename T>
T read(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
template <typename T>
void write(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}

struct F32 {
  static constexpr std::size_t kBytes = 4;
  static float load(const std::byte* at) { return read<float>(at); }
  static void store(std::byte* at, float x) { write(at, x); }
};

struct Bf16 {
  static constexpr std::size_t kBytes = 2;
  static float load(const std::byte* at) { return float_of_bf16(read<std::uint16_t>(at)); }
  static void store(std::byte* at, float x) {  // to nearest, ties to even; x is finite
    const std::uint32_t u = bits_of(x);
    write(at, static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16));
  }
};

struct F16 {
  static constexpr std::size_t kBytes = 2;
  static float load(const std::byte* at) {
    const std::uint32_t h = read<std::uint16_t>(at), m = h & 0x7FFFu, sign = (h & 0x8000u) << 16;
    if (m < 0x0400u) return float_of(bits_of(static_cast<float>(m) * 0x1p-24F) | sign);  // zero and denormals
    if (m >= 0x7C00u) return float_of(((m << 13) + (224u << 23)) | sign);                // Inf, NaN
    return float_of(((m << 13) + (112u << 23)) | sign);
  }
  static void store(std::byte* at, float x) {  // to nearest, ties to even; what is larger becomes the largest
    std::uint32_t a = magnitude(x);
    constexpr std::uint32_t kMax = 0x477FE000u;  // 65504
    if (a > kMax) a = kMax;
    const std::uint32_t sign = (bits_of(x) & kSign) >> 16;
    const std::uint32_t m = a < (113u << 23) ? bits_of(float_of(a) + 0.5F) - bits_of(0.5F)
                                             : (a - (112u << 23) + 0x0FFFu + ((a >> 13) & 1u)) >> 13;
    write(at, static_cast<std::uint16_t>(m | sign));
  }
};

std::uint32_t larger(std::uint32_t a, std::uint32_t b) { return a > b ? a : b; }

// To the nearest integer, ties to even: for |x| < 2^22, in the default rounding mode, which nothing here changes.
std::int32_t nearest(float x) { return static_cast<std::int32_t>(bits_of(x + 0x1.8p23F) - bits_of(0x1.8p23F)); }

std::uint8_t e4m3_of(float y) {  // |y| < 464
  const std::uint32_t a = magnitude(y), sign = (bits_of(y) >> 24) & 0x80u;
  const std::uint32_t m = a < (121u << 23) ? bits_of(float_of(a) + 0x1p14F) - bits_of(0x1p14F)
                                           : ((a + 0x7FFFFu + ((a >> 20) & 1u)) >> 20) - (120u << 3);
  return static_cast<std::uint8_t>(m | sign);
}

float of_e4m3(std::uint8_t code) {
  const std::uint32_t a = code & 0x7Fu, sign = (code & 0x80u) << 24;
  const std::uint32_t m = a < 8 ? bits_of(static_cast<float>(a) * 0x1p-9F) : (a << 20) + (120u << 23);
  return float_of(m | sign);
}

// A bfloat16 not above x, so that x - low is never negative; tiny lows are zero.
std::uint16_t low_of(float x) {
  const std::uint32_t u = bits_of(x);
  if (magnitude(x) < kTinyBits) return 0;
  return static_cast<std::uint16_t>(((u & kSign) != 0 ? u + 0xFFFFu : u) >> 16);
}

struct Range4 {
  std::uint16_t low, scale;
};
Range4 range4(float low, float high) {
  const std::uint16_t stored = low_of(low);
  const float span = high - float_of_bf16(stored);
  return {stored, span > 0.0F ? bf16_scale_up(bits_of(span), 15.0F) : std::uint16_t{0}};
}

std::uint8_t code4(float x, float low, float inverse) {
  const std::int32_t q = nearest((x - low) * inverse);
  return static_cast<std::uint8_t>(q < 0 ? 0 : q > 15 ? 15 : q);
}

template <typename E>
float at(Rows rows, std::size_t row, std::size_t channel) {
  return E::load(rows[row] + channel * E::kBytes);
}
template <typename E>
void put(RowsOut rows, std::size_t row, std::size_t channel, float x) {
  E::store(rows[row] + channel * E::kBytes, x);
}

template <typename E>
std::uint32_t max_bits(Rows rows, std::size_t count, std::size_t width) {
  std::uint32_t most = 0;
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < width; ++c) most = larger(most, magnitude(at<E>(rows, r, c)));
  }
  return most;
}

template <typename E>
void channel_max_bits(Rows rows, std::size_t count, std::size_t width, std::uint32_t* bits) {
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < width; ++c) bits[c] = larger(bits[c], magnitude(at<E>(rows, r, c)));
  }
}

template <typename E>
void e4m3_encode(Rows rows, std::size_t count, std::size_t width, float inverse, std::uint8_t* codes) {
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < width; ++c) *codes++ = e4m3_of(at<E>(rows, r, c) * inverse);
  }
}

template <typename E>
void e4m3_decode(RowsOut rows, std::size_t count, std::size_t width, float scale, const std::uint8_t* codes) {
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < width; ++c) put<E>(rows, r, c, of_e4m3(*codes++) * scale);
  }
}

template <typename E>
void int8_channels_encode(Rows rows, std::size_t count, std::size_t width, const float* inverses, std::uint8_t* codes) {
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < width; ++c) {
      *codes++ = static_cast<std::uint8_t>(nearest(at<E>(rows, r, c) * inverses[c]));
    }
  }
}

float of_int8(std::uint8_t code) { return static_cast<float>(static_cast<std::int8_t>(code)); }

template <typename E>
void int8_channels_decode(RowsOut rows, std::size_t count, std::size_t width, const float* scales,
                          const std::uint8_t* codes) {
  for (std::size_t r = 0; r < count; ++r) {
    for (std::size_t c = 0; c < width; ++c) put<E>(rows, r, c, of_int8(*codes++) * scales[c]);
  }
}

template <typename E>
std::uint32_t int8_rows_encode(Rows rows, std::size_t count, std::size_t width, std::byte* scales,
                               std::uint8_t* codes) {
  std::uint32_t most = 0;
  for (std::size_t r = 0; r < count; ++r) {
    const std::uint32_t bits = max_bits<E>(rows + r, 1, width);
    most = larger(most, bits);
    const std::uint16_t scale = bits < kHugeBits ? bf16_scale_up(bits, 127.0F) : std::uint16_t{0};
    write(scales + 2 * r, scale);
    const float inverse = inverse_of(float_of_bf16(scale));
    for (std::size_t c = 0; c < width; ++c) *codes++ = static_cast<std::uint8_t>(nearest(at<E>(rows, r, c) * inverse));
  }
  return most;
}

template <typename E>
void int8_rows_decode(RowsOut rows, std::size_t count, std::size_t width, const std::byte* scales,
                      const std::uint8_t* codes) {
  for (std::size_t r = 0; r < count; ++r) {
    const float scale = float_of_bf16(read<std::uint16_t>(scales + 2 * r));
    for (std::size_t c = 0; c < width; ++c) put<E>(rows, r, c, of_int8(*codes++) * scale);
  }
}

template <typename E>
std::uint32_t int4_channels_encode(Rows rows, std::size_t count, std::size_t width, std::byte* params,
                                   std::uint8_t* codes) {
  std::uint32_t most = 0;
  for (std::size_t c = 0; c < width; ++c) {
    float low = at<E>(rows, 0, c), high = low;
    for (std::size_t r = 0; r < count; ++r) {
      const float x = at<E>(rows, r, c);
      most = larger(most, magnitude(x));
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    const Range4 range = range4(low, high);
    write(params + 2 * c, range.low);
    write(params + 2 * (width + c), range.scale);
    const float base = float_of_bf16(range.low), inverse = inverse_of(float_of_bf16(range.scale));
    for (std::size_t r = 0; r < count; r += 2) {
      const unsigned first = code4(at<E>(rows, r, c), base, inverse);
      const unsigned second = r + 1 < count ? code4(at<E>(rows, r + 1, c), base, inverse) : 0u;
      codes[r / 2 * width + c] = static_cast<std::uint8_t>(first | second << 4);
    }
  }
  return most;
}

template <typename E>
void int4_channels_decode(RowsOut rows, std::size_t count, std::size_t width, const std::byte* params,
                          const std::uint8_t* codes) {
  for (std::size_t c = 0; c < width; ++c) {
    const float low = float_of_bf16(read<std::uint16_t>(params + 2 * c));
    const float scale = float_of_bf16(read<std::uint16_t>(params + 2 * (width + c)));
    for (std::size_t r = 0; r < count; ++r) {
      const unsigned code = (codes[r / 2 * width + c] >> (r % 2 * 4)) & 15u;
      put<E>(rows, r, c, static_cast<float>(code) * scale + low);
    }
  }
}

template <typename E>
std::uint32_t int4_rows_encode(Rows rows, std::size_t count, std::size_t width, std::size_t group, std::byte* params,
                               std::uint8_t* codes) {
  std::uint32_t most = 0;
  const std::size_t groups = (width + group - 1) / group;
  for (std::size_t r = 0; r < count; ++r, params += 4 * groups) {
    for (std::size_t g = 0; g < groups; ++g) {
      const std::size_t begin = g * group, size = group < width - begin ? group : width - begin, half = size / 2;
      float low = at<E>(rows, r, begin), high = low;
      for (std::size_t c = begin; c < begin + size; ++c) {
        const float x = at<E>(rows, r, c);
        most = larger(most, magnitude(x));
        low = x < low ? x : low;
        high = x > high ? x : high;
      }
      const Range4 range = range4(low, high);
      write(params + 2 * g, range.low);
      write(params + 2 * (groups + g), range.scale);
      const float base = float_of_bf16(range.low), inverse = inverse_of(float_of_bf16(range.scale));
      for (std::size_t k = 0; k < half; ++k) {
        const unsigned first = code4(at<E>(rows, r, begin + k), base, inverse);
        const unsigned second = code4(at<E>(rows, r, begin + half + k), base, inverse);
        *codes++ = static_cast<std::uint8_t>(first | second << 4);
      }
    }
  }
  return most;
}

template <typename E>
void int4_rows_decode(RowsOut rows, std::size_t count, std::size_t width, std::size_t group, const std::byte* params,
                      const std::uint8_t* codes) {
  const std::size_t groups = (width + group - 1) / group;
  for (std::size_t r = 0; r < count; ++r, params += 4 * groups) {
    for (std::size_t g = 0; g < groups; ++g) {
      const std::size_t begin = g * group, size = group < width - begin ? group : width - begin, half = size / 2;
      const float low = float_of_bf16(read<std::uint16_t>(params + 2 * g));
      const float scale = float_of_bf16(read<std::uint16_t>(params + 2 * (groups + g)));
      for (std::size_t k = 0; k < half; ++k, ++codes) {
        put<E>(rows, r, begin + k, static_cast<float>(*codes & 15u) * scale + low);
        put<E>(rows, r, begin + half + k, static_cast<float>(*codes >> 4) * scale + low);
      }
    }
  }
}

#include "quant_dispatch.inc"

}  // namespace

namespace detail {
const QuantKernels kQuantScalar = kTable;
}

float float_of_bf16(std::uint16_t bits) noexcept { return float_of(std::uint32_t{bits} << 16); }

float float_scale(std::uint32_t bits, float steps) noexcept { return bits < kTinyBits ? 0.0F : float_of(bits) / steps; }

std::uint16_t bf16_scale_up(std::uint32_t bits, float steps) noexcept {
  return static_cast<std::uint16_t>((bits_of(float_scale(bits, steps)) + 0xFFFFu) >> 16);
}

}  // namespace kvcommons::kernels
