// The reference: one element at a time (quant_element.h). Every other implementation gives these bytes.
#include "kernels/quant_element.h"
#include "quant_impl.h"

namespace kvcommons::kernels {
namespace {

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
      *codes++ = int8_of(at<E>(rows, r, c) * inverses[c]);
    }
  }
}

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
    const std::uint16_t scale = int8_scale(bits);
    write(scales + 2 * r, scale);
    const float inverse = inverse_of(float_of_bf16(scale));
    for (std::size_t c = 0; c < width; ++c) *codes++ = int8_of(at<E>(rows, r, c) * inverse);
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
      put<E>(rows, r, c, of_code4(code, low, scale));
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
        put<E>(rows, r, begin + k, of_code4(*codes & 15u, low, scale));
        put<E>(rows, r, begin + half + k, of_code4(*codes >> 4, low, scale));
      }
    }
  }
}

#include "quant_dispatch.inc"

}  // namespace

namespace detail {
const QuantKernels kQuantScalar = kTable;
}

float float_of_bf16(std::uint16_t bits) noexcept { return of_bf16(bits); }

float float_scale(std::uint32_t bits, float steps) noexcept { return scale_of(bits, steps); }

std::uint16_t bf16_scale_up(std::uint32_t bits, float steps) noexcept { return scale_up_to_bf16(bits, steps); }

}  // namespace kvcommons::kernels
