// Tiles of a slot, one for each layer, head and part, through the kernels.
#include "kv_codec.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace kvcommons::kvcodec {
namespace {

using kernels::kHugeBits;
using kernels::QuantKernels;

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kSectionAlignBytes - 1) / kSectionAlignBytes * kSectionAlignBytes;
}
std::uint64_t divided_up(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

// Where a (part, head, token) of a block lies.
struct PartStrides {
  std::uint64_t offset = 0, head = 0, token = 0;
};

PartStrides strides_of(const KvShape& shape, bool value) {
  const std::uint64_t item = kernels::element_bytes(shape.element), n = shape.block_tokens, h = shape.heads;
  const std::uint64_t k = shape.k_size * item, v = shape.v_size * item, own = value ? v : k, both = k + v;
  const std::uint64_t before = value ? k : 0;  // K lies before V, times what both are repeated over
  switch (shape.order) {
    case BlockOrder::PHN:
      return {before * h * n, own * n, own};
    case BlockOrder::PNH:
      return {before * h * n, own, own * h};
    case BlockOrder::HPN:
      return {before * n, both * n, own};
    case BlockOrder::HNP:
      return {before, both * n, both};
    case BlockOrder::NPH:
      return {before * h, own, both * h};
    case BlockOrder::NHP:
      return {before, both, both * h};
  }
  return {};
}

// The addresses of one tile's rows, token by token.
template <typename Byte>
void find_rows(const KvShape& shape, const PartStrides& strides, Byte* layer, std::uint32_t head,
               std::vector<Byte*>* rows) {
  rows->clear();
  Byte* block = layer + strides.offset + head * strides.head;
  for (std::uint32_t b = 0; b < shape.blocks; ++b, block += shape.block_bytes()) {
    for (std::uint32_t n = 0; n < shape.block_tokens; ++n) rows->push_back(block + n * strides.token);
  }
}

template <typename T>
void write_at(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof value);
}
template <typename T>
T read_at(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

struct Tile {
  const std::vector<const std::byte*>& rows;
  std::size_t width;
  std::byte* params;
  std::uint8_t* codes;
};
struct TileOut {
  const std::vector<std::byte*>& rows;
  std::size_t width;
  const std::byte* params;
  const std::uint8_t* codes;
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

// A scale or a low that no encoder writes: only a damaged body has it.
bool sound_bf16(const std::byte* params, std::size_t count, bool sign) {
  for (std::size_t i = 0; i < count; ++i) {
    const auto bits = read_at<std::uint16_t>(params + 2 * i);
    if ((!sign && (bits & 0x8000u) != 0) || (bits & 0x7FFFu) >= (kHugeBits >> 16) + 0x80u) return false;
  }
  return true;
}

class Decoder {
 public:
  Decoder(const CodecSpec& spec, const KvShape& shape, const QuantKernels& kernels)
      : spec_(spec), element_(shape.element), kernels_(kernels), scales_(shape.k_size) {}

  // False: parameters that no encoder writes.
  bool tile(const TileOut& tile, bool value) {
    const std::size_t count = tile.rows.size();
    switch (spec_.id) {
      case CodecId::Fp8E4m3:
        return e4m3(tile);
      case CodecId::K16V8:
        if (!value) return copy(tile);
        [[fallthrough]];
      case CodecId::Int8:
        if (!value) return int8_channels(tile);
        if (!sound_bf16(tile.params, count, false)) return false;
        kernels_.int8_rows_decode(element_, tile.rows.data(), count, tile.width, tile.params, tile.codes);
        return true;
      case CodecId::Int4:
        if (!value) return int4_channels(tile);
        return int4_rows(tile);
      case CodecId::None:
      case CodecId::Lossless:
        break;
    }
    return false;
  }

 private:
  bool e4m3(const TileOut& tile) {
    const auto scale = read_at<float>(tile.params);
    if (!(scale >= 0.0F && scale < 0x1p100F)) return false;
    kernels_.e4m3_decode(element_, tile.rows.data(), tile.rows.size(), tile.width, scale, tile.codes);
    return true;
  }
  bool int8_channels(const TileOut& tile) {
    if (!sound_bf16(tile.params, tile.width, false)) return false;
    for (std::size_t c = 0; c < tile.width; ++c) {
      scales_[c] = kernels::float_of_bf16(read_at<std::uint16_t>(tile.params + 2 * c));
    }
    kernels_.int8_channels_decode(element_, tile.rows.data(), tile.rows.size(), tile.width, scales_.data(), tile.codes);
    return true;
  }
  bool int4_channels(const TileOut& tile) const {
    const std::byte* params = tile.params;
    for (std::size_t at = 0; at < tile.rows.size(); at += spec_.group, params += 4 * tile.width) {
      if (!sound_bf16(params, tile.width, true) || !sound_bf16(params + 2 * tile.width, tile.width, false))
        return false;
      const std::size_t count = std::min<std::size_t>(spec_.group, tile.rows.size() - at);
      kernels_.int4_channels_decode(element_, tile.rows.data() + at, count, tile.width, params,
                                    tile.codes + at / 2 * tile.width);
    }
    return true;
  }
  bool int4_rows(const TileOut& tile) const {
    const std::size_t groups = divided_up(tile.width, spec_.group);
    for (std::size_t r = 0; r < tile.rows.size(); ++r) {
      const std::byte* params = tile.params + r * 4 * groups;
      if (!sound_bf16(params, groups, true) || !sound_bf16(params + 2 * groups, groups, false)) return false;
    }
    kernels_.int4_rows_decode(element_, tile.rows.data(), tile.rows.size(), tile.width, spec_.group, tile.params,
                              tile.codes);
    return true;
  }
  bool copy(const TileOut& tile) const {
    const std::size_t bytes = tile.width * kernels::element_bytes(element_);
    for (std::size_t r = 0; r < tile.rows.size(); ++r) std::memcpy(tile.rows[r], tile.codes + r * bytes, bytes);
    return true;
  }

  const CodecSpec spec_;
  const Element element_;
  const QuantKernels& kernels_;
  std::vector<float> scales_;
};

// Calls each(layer, head, value, width, params offset, codes offset) for every tile; stops where it says false.
template <typename Each>
bool each_tile(const CodecSpec& spec, const KvShape& shape, Each each) {
  const detail::LayerPlan plan = detail::plan_layer(spec, shape);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    const std::uint64_t at = layer * plan.bytes;
    for (std::uint32_t head = 0; head < shape.heads; ++head) {
      if (!each(layer, head, false, at + plan.k_params + head * plan.k_params_head,
                at + plan.k_codes + head * plan.k_codes_head)) {
        return false;
      }
      if (shape.v_size != 0 && !each(layer, head, true, at + plan.v_params + head * plan.v_params_head,
                                     at + plan.v_codes + head * plan.v_codes_head)) {
        return false;
      }
    }
  }
  return true;
}

bool encode_tiles(const CodecSpec& spec, const KvShape& shape, std::span<const std::byte> raw, std::byte* body,
                  const QuantKernels& kernels) {
  Encoder encoder(spec, shape, kernels);
  const PartStrides strides[2] = {strides_of(shape, false), strides_of(shape, true)};
  const std::uint64_t layer_bytes = shape.blocks * shape.block_bytes();
  std::vector<const std::byte*> rows;
  rows.reserve(shape.tokens());
  return each_tile(
      spec, shape, [&](std::uint32_t layer, std::uint32_t head, bool value, std::uint64_t params, std::uint64_t codes) {
        find_rows(shape, strides[value ? 1 : 0], raw.data() + layer * layer_bytes, head, &rows);
        return encoder.tile(
            {rows, value ? shape.v_size : shape.k_size, body + params, reinterpret_cast<std::uint8_t*>(body + codes)},
            value);
      });
}

bool decode_tiles(const PayloadHeader& header, const std::byte* body, std::span<std::byte> raw,
                  const QuantKernels& kernels) {
  const KvShape& shape = header.shape;
  Decoder decoder(header.spec, shape, kernels);
  const PartStrides strides[2] = {strides_of(shape, false), strides_of(shape, true)};
  const std::uint64_t layer_bytes = shape.blocks * shape.block_bytes();
  std::vector<std::byte*> rows;
  rows.reserve(shape.tokens());
  return each_tile(header.spec, shape,
                   [&](std::uint32_t layer, std::uint32_t head, bool value, std::uint64_t params, std::uint64_t codes) {
                     find_rows(shape, strides[value ? 1 : 0], raw.data() + layer * layer_bytes, head, &rows);
                     return decoder.tile({rows, value ? shape.v_size : shape.k_size, body + params,
                                          reinterpret_cast<const std::uint8_t*>(body + codes)},
                                         value);
                   });
}

CodecResult failed(CodecStatus status, std::string why) {
  return {.status = status, .bytes = 0, .why = std::move(why)};
}

}  // namespace

namespace detail {

LayerPlan plan_layer(const CodecSpec& spec, const KvShape& shape) {
  const std::uint64_t tokens = shape.tokens(), k = shape.k_size, v = shape.v_size;
  const std::uint64_t item = kernels::element_bytes(shape.element);
  LayerPlan plan;
  plan.k_codes_head = tokens * k, plan.v_codes_head = tokens * v;
  switch (spec.id) {
    case CodecId::Fp8E4m3:
      plan.k_params_head = 4, plan.v_params_head = v == 0 ? 0 : 4;
      break;
    case CodecId::Int8:
      plan.k_params_head = 2 * k, plan.v_params_head = v == 0 ? 0 : 2 * tokens;
      break;
    case CodecId::K16V8:
      plan.k_codes_head = tokens * k * item, plan.v_params_head = 2 * tokens;
      break;
    case CodecId::Int4:
      plan.k_params_head = divided_up(tokens, spec.group) * k * 4;
      plan.v_params_head = tokens * divided_up(v, spec.group) * 4;
      plan.k_codes_head = divided_up(tokens, 2) * k, plan.v_codes_head = tokens * v / 2;
      break;
    case CodecId::None:
    case CodecId::Lossless:
      break;
  }
  plan.v_params = aligned(shape.heads * plan.k_params_head);
  plan.k_codes = plan.v_params + aligned(shape.heads * plan.v_params_head);
  plan.v_codes = plan.k_codes + aligned(shape.heads * plan.k_codes_head);
  plan.bytes = plan.v_codes + aligned(shape.heads * plan.v_codes_head);
  return plan;
}

}  // namespace detail

std::uint64_t encoded_bytes_max(const CodecSpec& spec, const KvShape& shape) {
  if (spec.id == CodecId::Lossless) return kHeaderBytes + detail::lossless_bytes_max(shape);
  return kHeaderBytes + shape.layers * detail::plan_layer(spec, shape).bytes;
}

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
  std::memset(body.data(), 0, body.size());  // what lies between sections is part of the payload
  if (!encode_tiles(spec, shape, raw, body.data(), kernels::quant_kernels(isa))) {
    return failed(CodecStatus::NotFinite, "Inf, NaN or a magnitude from 2^100 on: keep this chunk as it is");
  }
  write_header({.spec = spec, .shape = shape, .raw_bytes = raw.size(), .body_bytes = body.size(), .raw_checksum = 0},
               out.data());
  return {.status = CodecStatus::Ok, .bytes = most, .why = {}};
}

CodecResult decode(std::span<const std::byte> payload, const KvShape& shape, std::span<std::byte> raw,
                   kernels::QuantIsa isa) {
  PayloadHeader header;
  if (CodecResult parsed = parse_header(payload, &header); parsed.status != CodecStatus::Ok) return parsed;
  if (header.shape != shape) return failed(CodecStatus::Mismatch, "the payload is of another shape: drop it");
  if (raw.size() != header.raw_bytes) {
    return failed(CodecStatus::NoRoom,
                  "raw has " + std::to_string(raw.size()) + " bytes: the slot has " + std::to_string(header.raw_bytes));
  }
  if (payload.size() != kHeaderBytes + header.body_bytes) {
    return failed(CodecStatus::Refused, "payload has " + std::to_string(payload.size()) + " bytes: its header says " +
                                            std::to_string(kHeaderBytes + header.body_bytes));
  }
  const std::span<const std::byte> body = payload.subspan(kHeaderBytes);
  if (header.spec.id == CodecId::Lossless) return detail::decode_lossless(header, body, raw);
  if (!decode_tiles(header, body.data(), raw, kernels::quant_kernels(isa))) {
    return failed(CodecStatus::Refused, "a scale is negative or not finite: the body was damaged; drop it");
  }
  return {.status = CodecStatus::Ok, .bytes = raw.size(), .why = {}};
}

}  // namespace kvcommons::kvcodec
