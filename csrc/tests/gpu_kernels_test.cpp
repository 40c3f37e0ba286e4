// The GPU's kernels, run on the host over whole grids: their bytes are those of the CPU's kernels.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "kernels/cpu/quant.h"
#include "kernels/cpu/rope.h"
#include "kernels/gpu/copy_units.h"
#include "kernels/gpu/transforms.h"

namespace kvcommons::gpu {
namespace {

using kernels::Element;
using kernels::element_bytes;

constexpr Element kElements[] = {Element::F32, Element::F16, Element::Bf16};
constexpr Codec kCodecs[] = {Codec::E4m3, Codec::Int8Rows, Codec::Int8Channels, Codec::Int4Rows, Codec::Int4Channels};

struct Memories {
  std::vector<std::byte> from, to, wanted;
  std::vector<CopyUnit> units;

  // Units of up to unit_max bytes; alignments and lengths are multiples of `align`.
  Memories(std::mt19937* random, unsigned unit_max, unsigned align) {
    const unsigned count = static_cast<unsigned>((*random)() % 70), slot = unit_max + 64;
    from.resize(std::size_t{count} * slot + 64);
    for (auto& byte : from) byte = static_cast<std::byte>((*random)());
    to.resize(from.size());
    wanted = to;
    for (unsigned i = 0; i < count; ++i) {
      const std::size_t aligned = 64 - reinterpret_cast<std::uintptr_t>(from.data()) % 64;
      const std::size_t aligned_to = 64 - reinterpret_cast<std::uintptr_t>(to.data()) % 64;
      const std::size_t src = aligned % 64 + std::size_t{i} * slot + (*random)() % 4 * align % 48;
      const std::size_t dst = aligned_to % 64 + std::size_t{i} * slot + (*random)() % 4 * align % 48;
      const std::size_t bytes = (1 + (*random)() % (unit_max / align)) * align;
      units.push_back({from.data() + src, to.data() + dst, bytes});
      std::memcpy(wanted.data() + dst, from.data() + src, bytes);
    }
  }
};

TEST(a_grid_of_warps_copies_every_unit_whatever_its_alignment) {
  std::mt19937 random(11);
  for (const unsigned align : {1u, 2u, 4u, 8u, 16u}) {
    for (const unsigned blocks : {1u, 3u, 12u}) {
      Memories m(&random, kUnitBytes, align);
      for (unsigned block = 0; block < blocks; ++block) {
        for (unsigned thread = 0; thread < kCopyThreads; ++thread) {
          copy_units(m.units.data(), static_cast<unsigned>(m.units.size()), block, blocks, thread, kCopyThreads);
        }
      }
      CHECK(m.to == m.wanted);
    }
  }
}

// A ring whose stages know what is in them: loads land when they are waited for, stores read late.
struct Ring {
  enum class Stage : std::uint8_t { Free, Loading, Loaded, Storing };
  struct Slot {
    Stage state = Stage::Free;
    CopyUnit unit{};
    std::vector<std::byte> bytes;
    unsigned phase = 0;
  };
  std::vector<Slot> slots{kRingStages};
  std::vector<unsigned> storing;  // stages, the oldest first

  void load(unsigned stage, const CopyUnit& unit) {
    CHECK(slots[stage].state == Stage::Free);
    CHECK(unit.bytes <= kRingUnitBytes);
    slots[stage] = {Stage::Loading, unit, {}, slots[stage].phase};
  }
  void wait_loaded(unsigned stage, unsigned parity) {
    Slot& slot = slots[stage];
    CHECK(slot.state == Stage::Loading);
    CHECK_EQ(slot.phase & 1, parity);
    ++slot.phase;
    slot.bytes.assign(slot.unit.src, slot.unit.src + slot.unit.bytes);
    slot.state = Stage::Loaded;
  }
  void store(unsigned stage, const CopyUnit& unit) {
    CHECK(slots[stage].state == Stage::Loaded && slots[stage].unit.src == unit.src);
    slots[stage].state = Stage::Storing;
    slots[stage].unit = unit;
    storing.push_back(stage);
  }
  void end_stores(std::size_t left) {
    while (storing.size() > left) {
      Slot& slot = slots[storing.front()];
      std::memcpy(slot.unit.dst, slot.bytes.data(), slot.bytes.size());
      slot.state = Stage::Free;
      storing.erase(storing.begin());
    }
  }
  void wait_stores_but_one() { end_stores(1); }
  void wait_stores() { end_stores(0); }
};

TEST(a_ring_reuses_no_stage_before_it_has_been_read_and_copies_every_unit) {
  std::mt19937 random(12);
  for (int round = 0; round < 12; ++round) {
    Memories m(&random, kRingUnitBytes, kRingAlign);
    const unsigned blocks = 1 + static_cast<unsigned>(round) % 4;
    for (unsigned block = 0; block < blocks; ++block) {
      Ring ring;
      drive_ring(ring, m.units.data(), static_cast<unsigned>(m.units.size()), block, blocks);
      CHECK(ring.storing.empty());
    }
    CHECK(m.to == m.wanted);
  }
}

// Paged memory of random strides, and its rows in the order of a list of blocks.
struct Paged {
  std::vector<std::byte> memory;
  std::vector<std::uint32_t> blocks;
  RowGrid grid{};
  std::vector<const std::byte*> rows;
  std::vector<std::byte*> rows_out;
  std::uint32_t width;

  Paged(std::mt19937* random, Element element, std::uint32_t channels) : width(channels) {
    const auto below = [random](std::uint32_t end) { return static_cast<std::uint32_t>((*random)() % end); };
    const std::uint64_t item = element_bytes(element), row = (width + below(3) * 4) * item;
    grid.outer = 1 + below(3);
    grid.inner = 1 + below(8);
    const bool swapped = below(2) == 0;  // tokens before heads, or behind them
    grid.inner_stride = swapped ? row * grid.outer : row;
    grid.outer_stride = swapped ? row : row * grid.inner;
    grid.block_stride = row * grid.inner * grid.outer + below(3) * 16;
    memory.resize(grid.block_stride * 9 + 64);
    grid.base = (reinterpret_cast<std::uintptr_t>(memory.data()) + 15) / 16 * 16;
    for (std::uint32_t i = 0; i < 8; ++i) {
      if (below(3) != 0) blocks.push_back(i * 5 % 9);
    }
    if (blocks.empty()) blocks.push_back(2);
    grid.blocks = blocks.data();
    const std::uint64_t count = blocks.size() * grid.outer * grid.inner;
    for (std::uint32_t r = 0; r < count; ++r) {
      rows.push_back(row_at(grid, r));
      rows_out.push_back(row_at(grid, r));
    }
    for (auto& byte : memory) byte = static_cast<std::byte>((*random)() & 0x3F);  // small numbers of both kinds
    for (std::byte* at : rows_out) {
      for (std::uint32_t c = 0; c < width; ++c) {
        const float x = (static_cast<float>(below(2'000)) - 1'000.0F) / (below(9) == 0 ? 7.0F : 501.0F);
        if (element == Element::F32) kernels::F32::store(at + 4 * c, x);
        if (element == Element::F16) kernels::F16::store(at + 2 * c, x);
        if (element == Element::Bf16) kernels::Bf16::store(at + 2 * c, x);
      }
    }
  }
};

// What the CPU's kernels write for one tile.
std::uint32_t reference(const QuantJob& job, const std::byte* const* rows, std::byte* params, std::uint8_t* codes) {
  const auto& k = kernels::quant_kernels(kernels::QuantIsa::Scalar);
  switch (job.codec) {
    case Codec::E4m3: {
      const std::uint32_t most = k.max_bits(job.element, rows, job.count, job.width);
      const float scale = kernels::float_scale(most, kernels::kE4m3Max);
      std::memcpy(params, &scale, sizeof scale);
      k.e4m3_encode(job.element, rows, job.count, job.width, kernels::inverse_of(scale), codes);
      return most;
    }
    case Codec::Int8Rows:
      return k.int8_rows_encode(job.element, rows, job.count, job.width, params, codes);
    case Codec::Int8Channels: {
      std::vector<std::uint32_t> bits(job.width);
      std::vector<float> inverses(job.width);
      k.channel_max_bits(job.element, rows, job.count, job.width, bits.data());
      std::uint32_t most = 0;
      for (std::uint32_t c = 0; c < job.width; ++c) {
        const std::uint16_t scale = kernels::bf16_scale_up(bits[c], 127.0F);
        std::memcpy(params + 2 * c, &scale, 2);
        inverses[c] = kernels::inverse_of(kernels::float_of_bf16(scale));
        most = std::max(most, bits[c]);
      }
      k.int8_channels_encode(job.element, rows, job.count, job.width, inverses.data(), codes);
      return most;
    }
    case Codec::Int4Rows:
      return k.int4_rows_encode(job.element, rows, job.count, job.width, job.group, params, codes);
    case Codec::Int4Channels:
      return k.int4_channels_encode(job.element, rows, job.count, job.width, params, codes);
  }
  return 0;
}

void reference_back(const QuantJob& job, std::byte* const* rows, const std::byte* params, const std::uint8_t* codes) {
  const auto& k = kernels::quant_kernels(kernels::QuantIsa::Scalar);
  float scale = 0;
  switch (job.codec) {
    case Codec::E4m3:
      std::memcpy(&scale, params, sizeof scale);
      return k.e4m3_decode(job.element, rows, job.count, job.width, scale, codes);
    case Codec::Int8Rows:
      return k.int8_rows_decode(job.element, rows, job.count, job.width, params, codes);
    case Codec::Int8Channels: {
      std::vector<float> scales(job.width);
      for (std::uint32_t c = 0; c < job.width; ++c) {
        std::uint16_t bits = 0;
        std::memcpy(&bits, params + 2 * c, 2);
        scales[c] = kernels::float_of_bf16(bits);
      }
      return k.int8_channels_decode(job.element, rows, job.count, job.width, scales.data(), codes);
    }
    case Codec::Int4Rows:
      return k.int4_rows_decode(job.element, rows, job.count, job.width, job.group, params, codes);
    case Codec::Int4Channels:
      return k.int4_channels_decode(job.element, rows, job.count, job.width, params, codes);
  }
}

void check_codec(std::mt19937* random, Element element, Codec codec, std::uint32_t width) {
  Paged kv(random, element, width);
  const auto rows = static_cast<std::uint32_t>(kv.rows.size());
  QuantJob job{.grid = kv.grid,
               .tiles = 0,
               .count = 1 + static_cast<std::uint32_t>((*random)() % rows),
               .width = width,
               .group = width < 32 ? 2u : 32u,
               .codec = codec,
               .element = element,
               .params = nullptr,
               .codes = nullptr,
               .most = nullptr};
  job.tiles = rows / job.count;
  std::vector<std::byte> params(job.tiles * params_bytes(job)), wanted_params(params.size());
  std::vector<std::uint8_t> codes(job.tiles * codes_bytes(job)), wanted_codes(codes.size());
  std::vector<std::uint32_t> most(job.tiles);
  job.params = params.data();
  job.codes = codes.data();
  job.most = most.data();
  for (std::uint32_t tile = 0; tile < job.tiles; ++tile) {
    quantise(HostWarp{}, job, tile);
    CHECK_EQ(most[tile],
             reference(job, kv.rows.data() + tile * job.count, wanted_params.data() + tile * params_bytes(job),
                       wanted_codes.data() + tile * codes_bytes(job)));
  }
  CHECK(params == wanted_params);
  CHECK(codes == wanted_codes);
  auto& memory = kv.memory;
  const auto before = memory;
  for (std::uint32_t tile = 0; tile < job.tiles; ++tile) dequantise(HostWarp{}, job, tile);
  const auto ours = memory;
  memory = before;
  for (std::uint32_t tile = 0; tile < job.tiles; ++tile) {
    reference_back(job, kv.rows_out.data() + tile * job.count, params.data() + tile * params_bytes(job),
                   codes.data() + tile * codes_bytes(job));
  }
  CHECK(ours == memory);
}

TEST(quantised_tiles_of_paged_rows_are_the_cpus_bytes_both_ways) {
  std::mt19937 random(13);
  for (int round = 0; round < 4; ++round) {
    for (const Element element : kElements) {
      for (const Codec codec : kCodecs) {
        for (const std::uint32_t width : {2u, 16u, 34u, 80u, 128u}) check_codec(&random, element, codec, width);
      }
    }
  }
}

TEST(a_tile_that_nothing_quantises_says_so) {
  std::mt19937 random(14);
  Paged kv(&random, Element::F32, 8);
  kernels::F32::store(kv.rows_out[0] + 4, std::numeric_limits<float>::infinity());
  std::vector<std::byte> params(64);
  std::vector<std::uint8_t> codes(64);
  for (const Codec codec : kCodecs) {
    std::uint32_t most = 0;
    const QuantJob job{kv.grid, 1, 1, 8, 4, codec, Element::F32, params.data(), codes.data(), &most};
    quantise(HostWarp{}, job, 0);
    CHECK_GE(most, kernels::kHugeBits);
  }
}

TEST(k_turned_by_a_shift_is_k_of_the_other_position_and_the_cpus_bytes) {
  std::mt19937 random(15);
  for (const Element element : kElements) {
    for (const auto style : {kernels::RopeStyle::Neox, kernels::RopeStyle::Gptj}) {
      // whole rows, partial rotary, and what lies behind MLA's latent
      for (const kernels::RopeForm form : {kernels::RopeForm{style, 0, 64}, {style, 0, 32}, {style, 48, 16}}) {
        Paged kv(&random, element, 64);
        std::vector<double> frequencies(form.dims / 2);
        for (std::size_t i = 0; i < frequencies.size(); ++i) {
          frequencies[i] = std::pow(10'000.0, -2.0 * static_cast<double>(i) / form.dims);
        }
        std::vector<float> cosines(frequencies.size()), sines(frequencies.size());
        kernels::rope_angles(frequencies, 777, cosines.data(), sines.data());
        const auto before = kv.memory;
        const RopeJob job{kv.grid,     static_cast<std::uint32_t>(kv.rows.size()), form, element, cosines.data(),
                          sines.data()};
        for (std::uint32_t row = 0; row < job.rows; ++row) rope(HostWarp{}, job, row);
        const auto ours = kv.memory;
        kv.memory = before;
        kernels::rope_rows(element, kv.rows_out.data(), kv.rows_out.size(), form, cosines.data(), sines.data());
        CHECK(ours == kv.memory);
        CHECK(ours != before);
      }
    }
  }
}

TEST(two_shifts_are_one_of_their_sum) {
  std::mt19937 random(16);
  Paged once(&random, Element::F32, 64);
  const kernels::RopeForm form{kernels::RopeStyle::Neox, 0, 64};
  std::vector<double> frequencies(32);
  for (std::size_t i = 0; i < 32; ++i) frequencies[i] = std::pow(10'000.0, -2.0 * static_cast<double>(i) / 64.0);
  std::vector<float> cosines(32), sines(32);
  const auto turn = [&](std::int64_t shift) {
    kernels::rope_angles(frequencies, shift, cosines.data(), sines.data());
    kernels::rope_rows(Element::F32, once.rows_out.data(), once.rows_out.size(), form, cosines.data(), sines.data());
  };
  const auto before = once.memory;
  turn(300);
  const auto value = [&](std::uint32_t c) { return kernels::F32::load(once.rows[0] + 4 * c); };
  turn(-180);
  std::vector<float> twice;
  for (std::uint32_t c = 0; c < 64; ++c) twice.push_back(value(c));
  once.memory = before;
  turn(120);
  for (std::uint32_t c = 0; c < 64; ++c) CHECK(std::fabs(twice[c] - value(c)) < 1e-3F * (1.0F + std::fabs(twice[c])));
}

}  // namespace
}  // namespace kvcommons::gpu

TEST_MAIN()
