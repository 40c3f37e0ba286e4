// Bytes that came in and are not yet used, or that wait to go out: one growing run, kept between frames so that the
// hot path allocates nothing.
#pragma once

#include <cstddef>
#include <cstring>
#include <memory>
#include <span>
#include <type_traits>

namespace kvcommons {

class ByteBuffer {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return end_ - begin_; }
  [[nodiscard]] bool empty() const noexcept { return begin_ == end_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data_.get() + begin_, size()}; }
  [[nodiscard]] std::byte* at(std::size_t offset) noexcept { return data_.get() + begin_ + offset; }

  // Room for at least `want` bytes behind what is there; all the room there is.
  [[nodiscard]] std::span<std::byte> room(std::size_t want) {
    if (capacity_ - end_ < want) make_room(want);
    return {data_.get() + end_, capacity_ - end_};
  }
  void filled(std::size_t count) noexcept { end_ += count; }
  void consume(std::size_t count) noexcept {
    begin_ += count;
    if (begin_ == end_) begin_ = end_ = 0;
  }
  void truncate(std::size_t new_size) noexcept { end_ = begin_ + new_size; }
  void clear() noexcept { begin_ = end_ = 0; }

  void append(std::span<const std::byte> more) {
    if (more.empty()) return;
    std::memcpy(room(more.size()).data(), more.data(), more.size());
    filled(more.size());
  }
  template <typename T>
  void append_pod(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    append(std::as_bytes(std::span(&value, 1)));
  }

  // After one large frame: gives the memory back once nothing is in it.
  void shrink(std::size_t capacity_kept) noexcept {
    if (!empty() || capacity_ <= capacity_kept) return;
    data_.reset();
    capacity_ = 0;
    clear();
  }

 private:
  void make_room(std::size_t want) {
    const std::size_t used = size();
    if (capacity_ - used >= want) {
      std::memmove(data_.get(), data_.get() + begin_, used);
    } else {
      std::size_t grown = capacity_ == 0 ? 4096 : capacity_;
      while (grown - used < want) grown *= 2;
      auto bigger = std::make_unique_for_overwrite<std::byte[]>(grown);
      if (used > 0) std::memcpy(bigger.get(), data_.get() + begin_, used);
      data_ = std::move(bigger);
      capacity_ = grown;
    }
    begin_ = 0;
    end_ = used;
  }

  std::unique_ptr<std::byte[]> data_;
  std::size_t begin_ = 0, end_ = 0, capacity_ = 0;
};

}  // namespace kvcommons
