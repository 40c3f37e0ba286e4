// Where the bytes of a block lie, in the paged KV and in a slot. All arithmetic that could leave either is done, and
// checked for overflow, once at construction; afterwards a block id below blocks() is always inside its layer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu/copy.h"
#include "transfer.h"

namespace kvcommons {

inline constexpr std::uint32_t kLayersMax = 4'096;
inline constexpr std::uint32_t kBlocksPerChunkMax = 65'536;
inline constexpr std::uint64_t kSlotBytesMax = kSlabBytesMax;  // a slot lies in one slab

class SlotLayout {
 public:
  // Throws std::invalid_argument: names the layer, the field and the value.
  SlotLayout(std::uint32_t blocks_per_chunk, std::vector<LayerLayout> layers);

  [[nodiscard]] std::uint32_t layers() const noexcept { return static_cast<std::uint32_t>(layers_.size()); }
  [[nodiscard]] std::uint32_t blocks_per_chunk() const noexcept { return blocks_per_chunk_; }
  [[nodiscard]] std::uint64_t slot_bytes() const noexcept { return slot_bytes_; }
  [[nodiscard]] std::uint64_t block_bytes() const noexcept { return slot_bytes_ / blocks_per_chunk_; }
  [[nodiscard]] std::uint64_t layer_block_bytes(std::uint32_t layer) const noexcept {
    return layers_[layer].block_bytes();
  }
  [[nodiscard]] std::uint64_t blocks() const noexcept { return blocks_; }  // of the layer that has the fewest

  // Throws std::invalid_argument for an id that some layer does not have.
  void check_blocks(std::span<const std::uint32_t> block_ids) const;

  // Adds the runs of one layer of one block. `slot` is the slot's first byte, `index` the block's place in the chunk.
  void gather(std::uint32_t layer, std::uint32_t block_id, std::byte* slot, std::uint32_t index,
              kernels::RunList* runs) const;
  void scatter(std::uint32_t layer, std::uint32_t block_id, const std::byte* slot, std::uint32_t index,
               kernels::RunList* runs) const;

 private:
  [[nodiscard]] std::uint64_t slot_offset(std::uint32_t layer, std::uint32_t index) const noexcept {
    return offsets_[layer] + index * layers_[layer].block_bytes();
  }
  template <typename Add>
  void each_run(const LayerLayout& layer, std::uint32_t block_id, Add add) const;

  std::uint32_t blocks_per_chunk_;
  std::vector<LayerLayout> layers_;
  std::vector<std::uint64_t> offsets_;  // of each layer in a slot
  std::uint64_t slot_bytes_ = 0;
  std::uint64_t blocks_ = 0;
};

}  // namespace kvcommons
