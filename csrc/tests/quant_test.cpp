// The quantisers: every instruction set writes the scalar reference's bytes, and those are what the formats say.
#include "kernels/cpu/quant.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"

namespace kvcommons::kernels {
namespace {

constexpr Element kElements[] = {Element::F32, Element::F16, Element::Bf16};
constexpr std::size_t kWidths[] = {1, 2, 7, 8, 15, 16, 17, 31, 32, 34, 64, 80, 128, 576};
constexpr std::size_t kCounts[] = {1, 2, 3, 16, 33};

// With stores that the caches keep, and with those that go past them.
std::vector<const QuantKernels*> others() {
  std::vector<const QuantKernels*> found;
  for (const QuantIsa isa : {QuantIsa::Avx2, QuantIsa::Avx512, QuantIsa::Neon}) {
    if (!quant_has(isa)) continue;
    found.push_back(&quant_kernels(isa));
    found.push_back(&quant_kernels(isa, true));
  }
  return found;
}

// Rows of one tile at odd places, in an order that memory does not have.
struct Tile {
  std::vector<std::byte> memory;
  std::vector<const std::byte*> rows;
  std::vector<std::byte*> rows_out;
};

Tile tile_of(Element element, std::size_t count, std::size_t width) {
  Tile tile;
  const std::size_t stride = width * element_bytes(element) + 6;
  tile.memory.assign(count * stride + 6, std::byte{0x5A});
  for (std::size_t r = 0; r < count; ++r) {
    std::byte* row = tile.memory.data() + (count - 1 - r) * stride + 2;
    tile.rows.push_back(row);
    tile.rows_out.push_back(row);
  }
  return tile;
}

std::uint32_t random_bits(std::mt19937& source, Element element, int kind) {
  const auto random = [&] { return static_cast<std::uint32_t>(source()); };
  const bool bf16 = element == Element::Bf16, f16 = element == Element::F16;
  switch (kind) {
    case 0:  // numbers of a common size
    default: {
      const auto x = static_cast<float>(static_cast<int>(random() % 20'001) - 10'000) / 977.0F;
      if (f16) return (random() & 0x8000u) | (0x2C00u + random() % 0x2000u);
      return bf16 ? std::bit_cast<std::uint32_t>(x) >> 16 : std::bit_cast<std::uint32_t>(x);
    }
    case 1:  // anything at all: denormals, Inf and NaN among them
      return random();
    case 2:  // zeros of both signs and denormals
      return f16 || bf16 ? random() & 0x8003u : random() & 0x80000003u;
    case 3:  // one constant, negative
      return f16 ? 0xC123u : bf16 ? 0xC0A3u : 0xC0A31234u;
    case 4:  // from tiny to large
      return f16 ? random() & 0xFBFFu : (bf16 ? random() & 0xF17Fu : random() & 0xF17FFFFFu);
  }
}

void fill(Tile* tile, Element element, std::size_t width, std::uint32_t seed, int kind) {
  std::mt19937 random(seed);
  for (std::byte* row : tile->rows_out) {
    for (std::size_t c = 0; c < width; ++c) {
      const std::uint32_t bits = random_bits(random, element, kind);
      std::memcpy(row + c * element_bytes(element), &bits, element_bytes(element));
    }
  }
}

struct Encoded {
  std::vector<std::uint32_t> bits;
  std::vector<std::byte> params;
  std::vector<std::uint8_t> codes;
  friend bool operator==(const Encoded&, const Encoded&) = default;
};

enum class Way { E4m3, Int8Channels, Int8Rows, Int4Channels, Int4Rows };
constexpr Way kWays[] = {Way::E4m3, Way::Int8Channels, Way::Int8Rows, Way::Int4Channels, Way::Int4Rows};
constexpr std::size_t kGroup = 16;

Encoded encoded(const QuantKernels& k, Way way, Element element, const Tile& tile, std::size_t width) {
  const std::size_t count = tile.rows.size();
  const Rows rows = tile.rows.data();
  // What is not written keeps its mark: a kernel that writes beyond its share shows.
  Encoded out{.bits = std::vector<std::uint32_t>(width),
              .params = std::vector<std::byte>(count * width * 4 + 64, std::byte{0xA5}),
              .codes = std::vector<std::uint8_t>(count * width + width + 64, 0xA5)};
  switch (way) {
    case Way::E4m3:
      out.bits[0] = k.max_bits(element, rows, count, width);
      k.e4m3_encode(element, rows, count, width, inverse_of(float_scale(out.bits[0], kE4m3Max)), out.codes.data());
      break;
    case Way::Int8Channels: {
      k.channel_max_bits(element, rows, count, width, out.bits.data());
      std::vector<float> inverses;
      for (const std::uint32_t bits : out.bits) inverses.push_back(inverse_of(float_of_bf16(bf16_scale_up(bits, 127))));
      k.int8_channels_encode(element, rows, count, width, inverses.data(), out.codes.data());
      break;
    }
    case Way::Int8Rows:
      out.bits[0] = k.int8_rows_encode(element, rows, count, width, out.params.data(), out.codes.data());
      break;
    case Way::Int4Channels:
      out.bits[0] = k.int4_channels_encode(element, rows, count, width, out.params.data(), out.codes.data());
      break;
    case Way::Int4Rows:
      out.bits[0] = k.int4_rows_encode(element, rows, count, width, kGroup, out.params.data(), out.codes.data());
      break;
  }
  return out;
}

void decode(const QuantKernels& k, Way way, Element element, const Encoded& in, Tile* tile, std::size_t width) {
  const std::size_t count = tile->rows.size();
  const RowsOut rows = tile->rows_out.data();
  std::vector<float> scales(width, 0.03F);
  switch (way) {
    case Way::E4m3:
      return k.e4m3_decode(element, rows, count, width, 0.37F, in.codes.data());
    case Way::Int8Channels:
      return k.int8_channels_decode(element, rows, count, width, scales.data(), in.codes.data());
    case Way::Int8Rows:
      return k.int8_rows_decode(element, rows, count, width, in.params.data(), in.codes.data());
    case Way::Int4Channels:
      return k.int4_channels_decode(element, rows, count, width, in.params.data(), in.codes.data());
    case Way::Int4Rows:
      return k.int4_rows_decode(element, rows, count, width, kGroup, in.params.data(), in.codes.data());
  }
}

template <typename Each>
void each_case(Each each) {
  std::uint32_t seed = 0;
  for (const Way way : kWays) {
    for (const Element element : kElements) {
      for (const std::size_t width : kWidths) {
        if (way == Way::Int4Rows && width % 2 != 0) continue;
        for (const std::size_t count : kCounts) {
          for (int kind = 0; kind < 5; ++kind) each(way, element, width, count, kind, ++seed);
        }
      }
    }
  }
}

TEST(every_instruction_set_encodes_the_bytes_of_the_reference) {
  for (const QuantKernels* kernels : others()) {
    each_case([&](Way way, Element element, std::size_t width, std::size_t count, int kind, std::uint32_t seed) {
      Tile tile = tile_of(element, count, width);
      fill(&tile, element, width, seed, kind);
      const Encoded want = encoded(quant_kernels(QuantIsa::Scalar), way, element, tile, width);
      const Encoded got = encoded(*kernels, way, element, tile, width);
      CHECK(got.bits == want.bits);
      // What is quantised of values that nothing quantises is thrown away, so it need not agree.
      for (const std::uint32_t bits : want.bits) {
        if (bits >= kHugeBits) return;
      }
      CHECK(got.params == want.params);
      CHECK(got.codes == want.codes);
    });
  }
}

TEST(every_instruction_set_decodes_to_the_bytes_of_the_reference_and_writes_nothing_else) {
  for (const QuantKernels* kernels : others()) {
    each_case([&](Way way, Element element, std::size_t width, std::size_t count, int kind, std::uint32_t seed) {
      Tile source = tile_of(element, count, width);
      fill(&source, element, width, seed, kind == 1 ? 0 : kind);
      const Encoded from = encoded(quant_kernels(QuantIsa::Scalar), way, element, source, width);
      Tile want = tile_of(element, count, width), got = tile_of(element, count, width);
      decode(quant_kernels(QuantIsa::Scalar), way, element, from, &want, width);
      decode(*kernels, way, element, from, &got, width);
      quant_fence();
      CHECK(got.memory == want.memory);
    });
  }
}

TEST(nan_and_inf_are_seen_wherever_they_stand) {
  for (const float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), 0x1p100F}) {
    for (const Way way : kWays) {
      for (std::size_t place = 0; place < 2 * 34; ++place) {
        Tile tile = tile_of(Element::F32, 2, 34);
        fill(&tile, Element::F32, 34, 7, 0);
        std::memcpy(tile.rows_out[place / 34] + place % 34 * 4, &bad, sizeof bad);
        for (const QuantIsa isa : {QuantIsa::Scalar, quant_best()}) {
          const Encoded out = encoded(quant_kernels(isa), way, Element::F32, tile, 34);
          bool seen = false;
          for (const std::uint32_t bits : out.bits) seen |= bits >= kHugeBits;
          CHECK(seen);
        }
      }
    }
  }
}

double e4m3_value(unsigned code) {
  const int exponent = static_cast<int>(code >> 3 & 15u), mantissa = static_cast<int>(code & 7u);
  const double size = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return (code & 0x80u) != 0 ? -size : size;
}

TEST(each_e4m3_code_stands_for_its_value_and_values_between_go_to_the_nearest_ties_to_even) {
  const QuantKernels& k = quant_kernels(QuantIsa::Scalar);
  for (unsigned code = 0; code < 256; ++code) {
    if ((code & 0x7Fu) == 0x7Fu) continue;  // NaN in the format: never written
    const auto value = static_cast<float>(e4m3_value(code));
    const auto* row = reinterpret_cast<const std::byte*>(&value);
    std::uint8_t out = 0;
    k.e4m3_encode(Element::F32, &row, 1, 1, 1.0F, &out);
    CHECK_EQ(unsigned{out}, code);
    float back = 0;
    auto* row_out = reinterpret_cast<std::byte*>(&back);
    k.e4m3_decode(Element::F32, &row_out, 1, 1, 1.0F, &out);
    CHECK_EQ(back, value);
    if ((code & 0x7Fu) < 0x7Eu) {
      const auto next = static_cast<float>(e4m3_value(code + 1)), middle = (value + next) / 2;
      const float inside = std::nextafter(middle, value);
      row = reinterpret_cast<const std::byte*>(&middle);
      k.e4m3_encode(Element::F32, &row, 1, 1, 1.0F, &out);
      CHECK_EQ(unsigned{out}, code % 2 == 0 ? code : code + 1);
      row = reinterpret_cast<const std::byte*>(&inside);
      k.e4m3_encode(Element::F32, &row, 1, 1, 1.0F, &out);
      CHECK_EQ(unsigned{out}, code);
    }
  }
}

TEST(a_scale_never_lets_the_largest_value_leave_the_codes) {
  std::mt19937 random(3);
  for (int i = 0; i < 20'000; ++i) {
    const std::uint32_t bits = kTinyBits + static_cast<std::uint32_t>(random()) % (kHugeBits - kTinyBits);
    const float scale = float_of_bf16(bf16_scale_up(bits, 127.0F)), most = std::bit_cast<float>(bits);
    CHECK_LE(most, scale * 127.0F);
    CHECK_LE(scale, most / 127.0F * (1.0F + 0x1p-7F));
  }
  CHECK_EQ(bf16_scale_up(kTinyBits - 1, 127.0F), 0);
  CHECK_EQ(inverse_of(0.0F), 0.0F);
}

}  // namespace
}  // namespace kvcommons::kernels

TEST_MAIN()
