// Buffers that begin where a slot of the arena may begin, kept from use to use: fresh pages cost more than a copy.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "types.h"

namespace kvcommons::tiers {

class AlignedPool {
 public:
  class Block {
   public:
    Block() = default;
    Block(std::byte* data, std::uint64_t bytes) : data_(data, &std::free), bytes_(bytes) {}
    [[nodiscard]] std::byte* data() const noexcept { return data_.get(); }
    [[nodiscard]] std::uint64_t bytes() const noexcept { return bytes_; }

   private:
    std::unique_ptr<std::byte, void (*)(void*)> data_{nullptr, &std::free};
    std::uint64_t bytes_ = 0;
  };

  explicit AlignedPool(std::uint64_t kept_bytes_max) : kept_bytes_max_(kept_bytes_max) {}

  // At least so many bytes, a multiple of kSlotAlignBytes; what is in them is undefined. Throws std::bad_alloc.
  Block take(std::uint64_t bytes) {
    const std::uint64_t room = (bytes + kSlotAlignBytes - 1) / kSlotAlignBytes * kSlotAlignBytes;
    {
      const std::lock_guard lock(mutex_);
      for (auto block = kept_.begin(); block != kept_.end(); ++block) {
        if (block->bytes() < room || block->bytes() > 2 * room) continue;
        Block found = std::move(*block);
        kept_.erase(block);
        kept_bytes_ -= found.bytes();
        return found;
      }
    }
    auto* data = static_cast<std::byte*>(std::aligned_alloc(kSlotAlignBytes, room));
    if (data == nullptr) throw std::bad_alloc();
    return {data, room};
  }
  void give_back(Block block) {
    const std::lock_guard lock(mutex_);
    if (kept_bytes_ + block.bytes() > kept_bytes_max_) return;
    kept_bytes_ += block.bytes();
    kept_.push_back(std::move(block));
  }

 private:
  const std::uint64_t kept_bytes_max_;
  std::mutex mutex_;
  std::uint64_t kept_bytes_ = 0;
  std::vector<Block> kept_;
};

}  // namespace kvcommons::tiers
