#include "transfer_layout.h"

#include <algorithm>
#include <array>
#include <limits>
#include <stdexcept>
#include <string>

namespace kvcommons {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

[[noreturn]] void refuse_field(std::size_t layer, const char* field, std::uint64_t value, const char* remedy) {
  refuse("layers[" + std::to_string(layer) + "]." + field + " is " + std::to_string(value) + ": " + remedy);
}

std::uint64_t product(std::size_t layer, const char* what, std::uint64_t a, std::uint64_t b) {
  std::uint64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out))
    refuse_field(layer, what, a, "its extent overflows 64 bits; check the strides");
  return out;
}

std::uint64_t sum(std::size_t layer, const char* what, std::uint64_t a, std::uint64_t b) {
  std::uint64_t out = 0;
  if (__builtin_add_overflow(a, b, &out))
    refuse_field(layer, what, a, "its extent overflows 64 bits; check the strides");
  return out;
}

struct Dimension {
  const char* field;
  std::uint64_t stride, count;
};

// Bytes from the layer's base to the end of its last run. Nested dimensions must not overlap: a run that two blocks
// share would be loaded twice, with different bytes.
std::uint64_t checked_extent(std::size_t index, const LayerLayout& layer) {
  std::array<Dimension, 3> dimensions = {{{"block_stride_bytes", layer.block_stride_bytes, layer.blocks},
                                          {"plane_stride_bytes", layer.plane_stride_bytes, layer.planes},
                                          {"run_stride_bytes", layer.run_stride_bytes, layer.runs}}};
  std::sort(dimensions.begin(), dimensions.end(),
            [](const Dimension& a, const Dimension& b) { return a.stride < b.stride; });
  std::uint64_t extent = layer.run_bytes;
  for (const Dimension& dimension : dimensions) {
    if (dimension.count == 1) continue;
    if (dimension.stride < extent) {
      refuse_field(index, dimension.field, dimension.stride,
                   "pieces would overlap; pass the tensor's strides in bytes");
    }
    const std::uint64_t last = product(index, dimension.field, dimension.stride, dimension.count - 1);
    extent = sum(index, dimension.field, last, extent);
  }
  return extent;
}

// Returns what one block of this layer occupies in a slot.
std::uint64_t checked_block_bytes(std::size_t index, const LayerLayout& layer) {
  if (layer.base == 0) refuse_field(index, "base", 0, "pass the address of the registered tensor");
  if (layer.blocks == 0) refuse_field(index, "blocks", 0, "the engine must have at least one block");
  if (layer.planes == 0) refuse_field(index, "planes", 0, "1 where K and V lie together, else 2");
  if (layer.runs == 0) refuse_field(index, "runs", 0, "a block has at least one run");
  if (layer.run_bytes == 0) refuse_field(index, "run_bytes", 0, "a run has at least one byte");
  if (layer.blocks > std::numeric_limits<std::uint32_t>::max()) {
    refuse_field(index, "blocks", layer.blocks, "block ids have 32 bits");
  }
  sum(index, "base", layer.base, checked_extent(index, layer));
  const std::uint64_t runs = product(index, "runs", layer.runs, layer.planes);
  return product(index, "run_bytes", layer.run_bytes, runs);
}

}  // namespace

SlotLayout::SlotLayout(std::uint32_t blocks_per_chunk, std::vector<LayerLayout> layers)
    : blocks_per_chunk_(blocks_per_chunk), layers_(std::move(layers)) {
  if (blocks_per_chunk_ == 0 || blocks_per_chunk_ > kBlocksPerChunkMax) {
    refuse("blocks_per_chunk is " + std::to_string(blocks_per_chunk_) + ", outside 1.." +
           std::to_string(kBlocksPerChunkMax) + ": pass chunk tokens / block tokens");
  }
  if (layers_.empty() || layers_.size() > kLayersMax) {
    refuse("layers has " + std::to_string(layers_.size()) + " entries, outside 1.." + std::to_string(kLayersMax) +
           ": pass each registered layer once");
  }
  blocks_ = layers_.front().blocks;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    offsets_.push_back(slot_bytes_);
    const std::uint64_t bytes = product(i, "run_bytes", checked_block_bytes(i, layers_[i]), blocks_per_chunk_);
    slot_bytes_ = sum(i, "run_bytes", slot_bytes_, bytes);
    blocks_ = std::min(blocks_, layers_[i].blocks);
  }
  if (slot_bytes_ > kSlotBytesMax) {
    refuse("a slot of these layers has " + std::to_string(slot_bytes_) + " bytes, over " +
           std::to_string(kSlotBytesMax) + ": choose a smaller chunk");
  }
}

void SlotLayout::check_blocks(std::span<const std::uint32_t> block_ids) const {
  for (std::size_t i = 0; i < block_ids.size(); ++i) {
    if (block_ids[i] >= blocks_) {
      refuse("block_ids[" + std::to_string(i) + "] is " + std::to_string(block_ids[i]) + ", but a layer has only " +
             std::to_string(blocks_) + " blocks: pass ids of the registered KV cache");
    }
  }
}

template <typename Add>
void SlotLayout::each_run(const LayerLayout& layer, std::uint32_t block_id, Add add) const {
  const std::uintptr_t block = layer.base + block_id * layer.block_stride_bytes;
  for (std::uint32_t plane = 0; plane < layer.planes; ++plane) {
    for (std::uint32_t run = 0; run < layer.runs; ++run) {
      const std::uintptr_t at = block + plane * layer.plane_stride_bytes + run * layer.run_stride_bytes;
      add(reinterpret_cast<std::byte*>(at));
    }
  }
}

void SlotLayout::gather(std::uint32_t layer, std::uint32_t block_id, std::byte* slot, std::uint32_t index,
                        kernels::RunList* runs) const {
  const LayerLayout& from = layers_[layer];
  std::byte* to = slot + slot_offset(layer, index);
  each_run(from, block_id, [&](const std::byte* at) {
    runs->add(at, to, from.run_bytes);
    to += from.run_bytes;
  });
}

void SlotLayout::scatter(std::uint32_t layer, std::uint32_t block_id, const std::byte* slot, std::uint32_t index,
                         kernels::RunList* runs) const {
  const LayerLayout& to = layers_[layer];
  const std::byte* from = slot + slot_offset(layer, index);
  each_run(to, block_id, [&](std::byte* at) {
    runs->add(from, at, to.run_bytes);
    from += to.run_bytes;
  });
}

}  // namespace kvcommons
