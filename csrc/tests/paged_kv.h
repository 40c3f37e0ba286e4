// Paged KV of a made-up engine, for tests of transfers: layers of any layout in memory of their own, filled with noise,
// and a copy so plain that it needs no test.
#pragma once

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "transfer.h"

namespace kvcommons::testing {

struct LayerShape {
  std::uint32_t planes = 1, runs = 1;
  std::uint64_t run_bytes = 64, run_gap = 0, plane_gap = 0, block_gap = 0;
  bool planes_apart = false;  // all blocks of K, then all blocks of V
};

class PagedKv {
 public:
  PagedKv(std::uint64_t blocks, const std::vector<LayerShape>& shapes, std::uint32_t seed) : blocks_(blocks) {
    std::mt19937 random(seed);
    for (const LayerShape& shape : shapes) {
      LayerLayout layer;
      layer.blocks = blocks;
      layer.planes = shape.planes;
      layer.runs = shape.runs;
      layer.run_bytes = shape.run_bytes;
      layer.run_stride_bytes = shape.run_bytes + shape.run_gap;
      const std::uint64_t plane = layer.run_stride_bytes * shape.runs + shape.plane_gap;
      layer.block_stride_bytes = (shape.planes_apart ? plane : plane * shape.planes) + shape.block_gap;
      layer.plane_stride_bytes = shape.planes_apart ? layer.block_stride_bytes * blocks : plane;
      const std::uint64_t bytes = (shape.planes_apart ? shape.planes : 1) * layer.block_stride_bytes * blocks + 64;
      memory_.emplace_back(bytes);
      for (auto& byte : memory_.back()) byte = static_cast<std::byte>(random());
      layer.base = reinterpret_cast<std::uintptr_t>(memory_.back().data()) + random() % 64;  // any alignment
      layers_.push_back(layer);
    }
  }

  [[nodiscard]] const std::vector<LayerLayout>& layers() const { return layers_; }
  [[nodiscard]] std::uint64_t blocks() const { return blocks_; }
  [[nodiscard]] const std::vector<std::vector<std::byte>>& memory() const { return memory_; }

  // Every byte of one block of one layer, in the order of a slot.
  [[nodiscard]] std::vector<std::byte*> block(std::size_t layer, std::uint64_t id) const {
    const LayerLayout& l = layers_[layer];
    std::vector<std::byte*> out;
    for (std::uint64_t plane = 0; plane < l.planes; ++plane) {
      for (std::uint64_t run = 0; run < l.runs; ++run) {
        for (std::uint64_t i = 0; i < l.run_bytes; ++i) {
          out.push_back(reinterpret_cast<std::byte*>(l.base + id * l.block_stride_bytes + plane * l.plane_stride_bytes +
                                                     run * l.run_stride_bytes + i));
        }
      }
    }
    return out;
  }

  // The slot of a chunk, byte by byte.
  [[nodiscard]] std::vector<std::byte> chunk(std::span<const std::uint32_t> ids) const {
    std::vector<std::byte> out;
    for (std::size_t layer = 0; layer < layers_.size(); ++layer) {
      for (const std::uint32_t id : ids) {
        for (const std::byte* byte : block(layer, id)) out.push_back(*byte);
      }
    }
    return out;
  }

 private:
  std::uint64_t blocks_;
  std::vector<std::vector<std::byte>> memory_;
  std::vector<LayerLayout> layers_;
};

inline std::uint64_t slot_bytes_of(const std::vector<LayerLayout>& layers, std::uint32_t blocks_per_chunk) {
  std::uint64_t bytes = 0;
  for (const LayerLayout& layer : layers) bytes += layer.block_bytes() * blocks_per_chunk;
  return bytes;
}

inline std::uint32_t random_below(std::mt19937* random, std::uint32_t end) {
  return static_cast<std::uint32_t>((*random)() % end);
}

inline std::vector<LayerShape> random_shapes(std::mt19937* random) {
  const auto below = [random](std::uint32_t end) { return random_below(random, end); };
  std::vector<LayerShape> shapes(1 + below(4));
  for (LayerShape& shape : shapes) {
    shape.planes = 1 + below(2);
    shape.runs = 1 + below(4);
    shape.run_bytes = below(3) == 0 ? 1 + below(300) : 64 * (1 + below(90));
    shape.run_gap = below(2) == 0 ? 0 : below(100);
    shape.plane_gap = below(2) == 0 ? 0 : below(100);
    shape.block_gap = below(2) == 0 ? 0 : below(200);
    shape.planes_apart = below(2) == 0;
  }
  return shapes;
}

}  // namespace kvcommons::testing
