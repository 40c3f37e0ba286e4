// Payloads back to slots. Nothing of a body is believed before it is checked.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kv_codec_tiles.h"

namespace kvcommons::kvcodec {
namespace {

using detail::divided_up;
using detail::failed;
using detail::PartStrides;
using detail::read_at;
using kernels::kHugeBits;
using kernels::QuantKernels;

struct TileOut {
  const std::vector<std::byte*>& rows;
  std::size_t width;
  const std::byte* params;
  const std::uint8_t* codes;
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

bool decode_tiles(const PayloadHeader& header, const std::byte* body, std::span<std::byte> raw,
                  const QuantKernels& kernels) {
  const KvShape& shape = header.shape;
  Decoder decoder(header.spec, shape, kernels);
  const PartStrides strides[2] = {detail::strides_of(shape, false), detail::strides_of(shape, true)};
  const std::uint64_t layer_bytes = shape.blocks * shape.block_bytes();
  std::vector<std::byte*> rows;
  rows.reserve(shape.tokens());
  return detail::each_tile(
      header.spec, shape,
      [&](std::uint32_t layer, std::uint32_t head, bool value, std::uint64_t params, std::uint64_t codes) {
        detail::find_rows(shape, strides[value ? 1 : 0], raw.data() + layer * layer_bytes, head, &rows);
        return decoder.tile({rows, value ? shape.v_size : shape.k_size, body + params,
                             reinterpret_cast<const std::uint8_t*>(body + codes)},
                            value);
      });
}

}  // namespace

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
  // Int4 writes the rows of two tokens by turns, half a line at a time: past the caches that takes half as long again.
  const bool streaming = detail::streams(raw.size()) && header.spec.id != CodecId::Int4;
  const bool good = decode_tiles(header, body.data(), raw, kernels::quant_kernels(isa, streaming));
  kernels::quant_fence();
  if (!good) {
    return failed(CodecStatus::Refused, "a scale is negative or not finite: the body was damaged; drop it");
  }
  return {.status = CodecStatus::Ok, .bytes = raw.size(), .why = {}};
}

}  // namespace kvcommons::kvcodec
