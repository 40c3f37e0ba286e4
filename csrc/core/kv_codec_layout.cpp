// The places of a slot's tiles and of their parameters and codes in a body.
#include "kv_codec_tiles.h"

namespace kvcommons::kvcodec {
namespace detail {
namespace {

std::uint64_t aligned(std::uint64_t bytes) {
  return (bytes + kSectionAlignBytes - 1) / kSectionAlignBytes * kSectionAlignBytes;
}

}  // namespace

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

}  // namespace kvcommons::kvcodec
