// Slots to payloads: each tile through the kernels.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kv_codec_tiles.h"

namespace kvcommons::kvcodec {
namespace {

using detail::failed;
using detail::PartStrides;
using detail::write_at;
using kernels::kHugeBits;
using kernels::QuantKernels;

struct Tile {
  const std::vector<const std::byte*>& rows;
  std::size_t width;
  std::byte* params;
  std::uint8_t* codes;
};
class Encoder {
 public:
  Encoder(const CodecSpec& spec, const KvShape& shape, const QuantKernels& kernels)
      : spec_(spec), element_(shape.element), kernels_(kernels), bits_(shape.k_size), inverses_(shape.k_size) {}

  // False: a value that nothing quantises.
  bool tile(const Tile& tile, bool value) {
    const std::size_t count = tile.rows.size();
    switch (spec_.id) {
      case CodecId::Fp8E4m3:
        return e4m3(tile);
      case CodecId::K16V8:
        if (!value) return copy(tile);
        [[fallthrough]];
      case CodecId::Int8:
        if (!value) return int8_channels(tile);
        return kernels_.int8_rows_encode(element_, tile.rows.data(), count, tile.width, tile.params, tile.codes) <
               kHugeBits;
      case CodecId::Int4:
        if (!value) return int4_channels(tile);
        return kernels_.int4_rows_encode(element_, tile.rows.data(), count, tile.width, spec_.group, tile.params,
                                         tile.codes) < kHugeBits;
      case CodecId::None:
      case CodecId::Lossless:
        break;
    }
    return false;
  }

 private:
  bool e4m3(const Tile& tile) {
    const std::uint32_t bits = kernels_.max_bits(element_, tile.rows.data(), tile.rows.size(), tile.width);
    const float scale = kernels::float_scale(bits, kernels::kE4m3Max);
    write_at(tile.params, scale);
    kernels_.e4m3_encode(element_, tile.rows.data(), tile.rows.size(), tile.width, kernels::inverse_of(scale),
                         tile.codes);
    return bits < kHugeBits;
  }
  bool int8_channels(const Tile& tile) {
    std::fill(bits_.begin(), bits_.end(), 0u);
    kernels_.channel_max_bits(element_, tile.rows.data(), tile.rows.size(), tile.width, bits_.data());
    std::uint32_t most = 0;
    for (std::size_t c = 0; c < tile.width; ++c) {
      const std::uint16_t scale = kernels::bf16_scale_up(bits_[c], 127.0F);
      write_at(tile.params + 2 * c, scale);
      inverses_[c] = kernels::inverse_of(kernels::float_of_bf16(scale));
      most = bits_[c] > most ? bits_[c] : most;
    }
    kernels_.int8_channels_encode(element_, tile.rows.data(), tile.rows.size(), tile.width, inverses_.data(),
                                  tile.codes);
    return most < kHugeBits;
  }
  bool int4_channels(const Tile& tile) {
    std::uint32_t most = 0;
    std::byte* params = tile.params;
    for (std::size_t at = 0; at < tile.rows.size(); at += spec_.group, params += 4 * tile.width) {
      const std::size_t count = std::min<std::size_t>(spec_.group, tile.rows.size() - at);
      const std::uint32_t bits = kernels_.int4_channels_encode(element_, tile.rows.data() + at, count, tile.width,
                                                               params, tile.codes + at / 2 * tile.width);
      most = bits > most ? bits : most;
    }
    return most < kHugeBits;
  }
  bool copy(const Tile& tile) const {
    const std::size_t bytes = tile.width * kernels::element_bytes(element_);
    for (std::size_t r = 0; r < tile.rows.size(); ++r) std::memcpy(tile.codes + r * bytes, tile.rows[r], bytes);
    return true;
  }

  const CodecSpec spec_;
  const Element element_;
  const QuantKernels& kernels_;
  std::vector<std::uint32_t> bits_;
  std::vector<float> inverses_;
};

// What lies between the sections is part of the payload.
void clear_gaps(const CodecSpec& spec, const KvShape& shape, std::byte* body) {
  const detail::LayerPlan plan = detail::plan_layer(spec, shape);
  const std::uint64_t heads = shape.heads;
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer, body += plan.bytes) {
    const auto clear = [&](std::uint64_t begin, std::uint64_t end) { std::memset(body + begin, 0, end - begin); };
    clear(plan.k_params + heads * plan.k_params_head, plan.v_params);
    clear(plan.v_params + heads * plan.v_params_head, plan.k_codes);
    clear(plan.k_codes + heads * plan.k_codes_head, plan.v_codes);
    clear(plan.v_codes + heads * plan.v_codes_head, plan.bytes);
  }
}

bool encode_tiles(const CodecSpec& spec, const KvShape& shape, std::span<const std::byte> raw, std::byte* body,
                  const QuantKernels& kernels) {
  Encoder encoder(spec, shape, kernels);
  const PartStrides strides[2] = {detail::strides_of(shape, false), detail::strides_of(shape, true)};
  const std::uint64_t layer_bytes = shape.blocks * shape.block_bytes();
  std::vector<const std::byte*> rows;
  rows.reserve(shape.tokens());
  return detail::each_tile(
      spec, shape, [&](std::uint32_t layer, std::uint32_t head, bool value, std::uint64_t params, std::uint64_t codes) {
        detail::find_rows(shape, strides[value ? 1 : 0], raw.data() + layer * layer_bytes, head, &rows);
        return encoder.tile(
            {rows, value ? shape.v_size : shape.k_size, body + params, reinterpret_cast<std::uint8_t*>(body + codes)},
            value);
      });
}

}  // namespace

CodecResult encode(const CodecSpec& spec, const KvShape& shape, std::span<const std::byte> raw,
                   std::span<std::byte> out, kernels::QuantIsa isa) {
  if (std::string why = why_not(spec, shape); !why.empty()) return failed(CodecStatus::Refused, std::move(why));
  if (raw.size() != shape.raw_bytes()) {
    return failed(CodecStatus::Mismatch, "raw has " + std::to_string(raw.size()) + " bytes: the shape has " +
                                             std::to_string(shape.raw_bytes()));
  }
  const std::uint64_t most = encoded_bytes_max(spec, shape);
  if (out.size() < most) {
    return failed(CodecStatus::NoRoom,
                  "out has " + std::to_string(out.size()) + " bytes: give " + std::to_string(most));
  }
  if (spec.id == CodecId::Lossless) return detail::encode_lossless(shape, raw, out);
  const std::span<std::byte> body = out.subspan(kHeaderBytes, most - kHeaderBytes);
  clear_gaps(spec, shape, body.data());
  const bool good =
      encode_tiles(spec, shape, raw, body.data(), kernels::quant_kernels(isa, detail::streams(raw.size())));
  kernels::quant_fence();
  if (!good) {
    return failed(CodecStatus::NotFinite, "Inf, NaN or a magnitude from 2^100 on: keep this chunk as it is");
  }
  write_header({.spec = spec, .shape = shape, .raw_bytes = raw.size(), .body_bytes = body.size(), .raw_checksum = 0},
               out.data());
  return {.status = CodecStatus::Ok, .bytes = most, .why = {}};
}

}  // namespace kvcommons::kvcodec
