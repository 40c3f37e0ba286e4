// Inside of kv_codec*.cpp: where the tiles of a slot and of a body lie. A tile is one layer's K or V of one head.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "kv_codec.h"

namespace kvcommons::kvcodec::detail {

// Where the parts of a quantised body begin; a layer is its K parameters, V parameters, K codes and V codes, each
// aligned to kSectionAlignBytes.
struct LayerPlan {
  std::uint64_t k_params = 0, v_params = 0, k_codes = 0, v_codes = 0, bytes = 0;  // offsets within a layer, its size
  std::uint64_t k_params_head = 0, v_params_head = 0, k_codes_head = 0, v_codes_head = 0;  // bytes of one head
};
[[nodiscard]] LayerPlan plan_layer(const CodecSpec& spec, const KvShape& shape);

// Where a head's and a token's part of a block lies.
struct PartStrides {
  std::uint64_t offset = 0, head = 0, token = 0;
};
[[nodiscard]] PartStrides strides_of(const KvShape& shape, bool value);

// Whether a slot is more than caches hold: then what is written goes past them, as a large memcpy's does.
inline bool streams(std::uint64_t raw_bytes) { return raw_bytes >= 4u << 20; }

inline std::uint64_t divided_up(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

inline CodecResult failed(CodecStatus status, std::string why) {
  return {.status = status, .bytes = 0, .why = std::move(why)};
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

// Calls each(layer, head, value, width, params offset, codes offset) for every tile; stops where it says false.
template <typename Each>
bool each_tile(const CodecSpec& spec, const KvShape& shape, Each each) {
  const LayerPlan plan = plan_layer(spec, shape);
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

}  // namespace kvcommons::kvcodec::detail
