// What a launch of a transform is given: plain data, the same for the kernels and for the host.
#pragma once

#include "kernels/quant_element.h"
#include "kernels/rope_element.h"

namespace kvcommons::gpu {

inline constexpr unsigned kTransformThreads = 256;

// Rows of a paged tensor: a block has outer x inner of them (heads x tokens, or the other way round). All in bytes.
struct RowGrid {
  std::uint64_t base, block_stride, outer_stride, inner_stride;
  std::uint32_t outer, inner;
  const std::uint32_t* blocks;  // ids; their order is the rows'
};

KVC_BOTH std::byte* row_at(const RowGrid& grid, std::uint32_t row) {
  const std::uint32_t per_block = grid.outer * grid.inner, inside = row % per_block;
  const std::uint64_t at = grid.base + grid.blocks[row / per_block] * grid.block_stride +
                           inside / grid.inner * grid.outer_stride + inside % grid.inner * grid.inner_stride;
  return reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(at));
}

enum class Codec : std::uint32_t {
  E4m3,          // one float32 scale a tile
  Int8Rows,      // one bfloat16 scale a row
  Int8Channels,  // one bfloat16 scale a channel of a tile
  Int4Rows,      // low and scale of each group of a row
  Int4Channels,  // low and scale of each channel of a tile
};

// Tiles of `count` consecutive rows of `width` elements; below 2^32 rows in all. A tile's parameters and codes lie
// where quant.h says, the tiles' one behind the other.
struct QuantJob {
  RowGrid grid;
  std::uint32_t tiles;
  std::uint32_t count, width, group;  // group: Int4Rows alone; width is even for Int4Rows
  Codec codec;
  kernels::Element element;
  std::byte* params;
  std::uint8_t* codes;
  std::uint32_t* most;  // of each tile: bits of the largest |x|. From kHugeBits on the codes are worth nothing
};

KVC_BOTH std::uint32_t groups_of(const QuantJob& job) { return (job.width + job.group - 1) / job.group; }
KVC_BOTH std::uint64_t params_bytes(const QuantJob& job) {
  switch (job.codec) {
    case Codec::E4m3:
      return 4;
    case Codec::Int8Rows:
      return std::uint64_t{2} * job.count;
    case Codec::Int8Channels:
      return std::uint64_t{2} * job.width;
    case Codec::Int4Rows:
      return std::uint64_t{4} * groups_of(job) * job.count;
    default:
      return std::uint64_t{4} * job.width;
  }
}
KVC_BOTH std::uint64_t codes_bytes(const QuantJob& job) {
  const std::uint64_t values = std::uint64_t{job.count} * job.width;
  if (job.codec == Codec::Int4Rows) return values / 2;
  return job.codec == Codec::Int4Channels ? std::uint64_t{(job.count + 1) / 2} * job.width : values;
}

struct RopeJob {
  RowGrid grid;
  std::uint32_t rows;
  kernels::RopeForm form;
  kernels::Element element;
  const float* cosines;  // form.dims / 2 of each
  const float* sines;
};

}  // namespace kvcommons::gpu
