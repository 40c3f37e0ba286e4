// What the kernels do to the rows of paged KV: quantise into a contiguous buffer, the way back, and turn K by a
// constant shift of positions. A warp takes one tile, or one row. The bytes are those of the CPU's kernels
// (kernels/cpu/quant.h, rope.h) for the same rows.
#pragma once

#include "kernels/gpu/quant_tile.h"

namespace kvcommons::gpu {

template <typename Warp>
KVC_BOTH_MEMBER void quantise(const Warp& warp, const QuantJob& job, std::uint32_t tile) {
  if (job.element == kernels::Element::F32) return detail::quantise_tile<kernels::F32>(warp, job, tile);
  if (job.element == kernels::Element::F16) return detail::quantise_tile<kernels::F16>(warp, job, tile);
  return detail::quantise_tile<kernels::Bf16>(warp, job, tile);
}

template <typename Warp>
KVC_BOTH_MEMBER void dequantise(const Warp& warp, const QuantJob& job, std::uint32_t tile) {
  if (job.element == kernels::Element::F32) return detail::dequantise_tile<kernels::F32>(warp, job, tile);
  if (job.element == kernels::Element::F16) return detail::dequantise_tile<kernels::F16>(warp, job, tile);
  return detail::dequantise_tile<kernels::Bf16>(warp, job, tile);
}

template <typename Warp>
KVC_BOTH_MEMBER void rope(const Warp& warp, const RopeJob& job, std::uint32_t row) {
  std::byte* const at = row_at(job.grid, row);
  warp.each([&](unsigned lane) {
    for (std::uint32_t pair = lane; pair < job.form.dims / 2; pair += kLanes) {
      kernels::rope_pair_any(job.element, at, job.form, pair, job.cosines[pair], job.sines[pair]);
    }
  });
}

}  // namespace kvcommons::gpu
