#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <thread>

#include "arena_mover.h"
#include "memory.h"

namespace kvcommons::internal {
namespace {

constexpr unsigned kThreadsMax = 4;

// A hole reads as zero and takes no memory. Where the file system can't, the memory is given back with the file.
void punch(int fd, std::uint64_t begin, std::uint64_t end) {
  if (begin < end) {
    (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin),
                    static_cast<off_t>(end - begin));
  }
}

}  // namespace

class Mover::Mapping {
 public:
  Mapping(int fd, std::uint64_t bytes, int protection) : bytes_(bytes) {
    base_ = map_shared(fd, 0, bytes, protection);
    if (base_ == nullptr) throw std::system_error(errno, std::generic_category(), "moving the arena: mmap");
  }
  ~Mapping() { munmap(base_, bytes_); }
  Mapping(const Mapping&) = delete;  // owns the mapping
  [[nodiscard]] std::byte* at(std::uint64_t offset) const noexcept { return base_ + offset; }

 private:
  std::uint64_t bytes_;
  std::byte* base_ = nullptr;
};

// Before anything is copied: what does not fit, and what holds nothing.
void Mover::give_back_the_rest() {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> kept;
  for (auto& [key, chunk] : chunks_) {
    for (const Piece& piece : chunk.pieces) {
      if (piece.place.slot != kNoSlot || piece.read) {
        kept.emplace_back(piece.offset_bytes, piece.offset_bytes + piece.stride_bytes);
      }
      if (piece.place.slot != kNoSlot) {
        todo_.push_back(piece);
      } else {
        set_free(piece.slot);
      }
    }
  }
  for (const Piece& piece : read_elsewhere_) {
    kept.emplace_back(piece.offset_bytes, piece.offset_bytes + piece.stride_bytes);
  }
  std::sort(kept.begin(), kept.end());
  std::uint64_t from = 0;
  for (const auto& [begin, end] : kept) {
    punch(move_.arena_fd, from, begin);
    from = std::max(from, end);
  }
  punch(move_.arena_fd, from, from_.geometry().arena_bytes);
}

void Mover::copy_all() {
  std::sort(todo_.begin(), todo_.end(), [](const Piece& a, const Piece& b) { return a.offset_bytes < b.offset_bytes; });
  // A run is what begins in one slab: copied and given back by one thread.
  std::vector<std::size_t> runs;
  for (std::size_t i = 0; i < todo_.size(); ++i) {
    if (i == 0 || slab_of(todo_[i]) != slab_of(todo_[i - 1])) runs.push_back(i);
  }
  runs.push_back(todo_.size());
  const Mapping old(move_.arena_fd, from_.geometry().arena_bytes, PROT_READ);
  const Mapping fresh(move_.new_arena_fd, to_.geometry().arena_bytes, PROT_READ | PROT_WRITE);
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i + 1 < runs.size(); i = next++) {
      copy_run(std::span(todo_).subspan(runs[i], runs[i + 1] - runs[i]), old, fresh);
    }
  };
  const std::size_t wanted = std::clamp(std::thread::hardware_concurrency(), 1u, kThreadsMax);
  std::vector<std::thread> threads;
  for (std::size_t i = 1; i < std::min(wanted, runs.size() - 1); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
}

std::uint64_t Mover::slab_of(const Piece& piece) const noexcept {
  return piece.offset_bytes / from_.geometry().slab_bytes;
}

void Mover::copy_run(std::span<const Piece> run, const Mapping& old, const Mapping& fresh) {
  for (const Piece& piece : run) {
    std::memcpy(fresh.at(piece.place.offset_bytes), old.at(piece.offset_bytes), piece.stride_bytes);
    write_record(piece);
    bytes_.fetch_add(piece.stride_bytes, std::memory_order_relaxed);
  }
  // Neighbours in one call; what lies between is another's, or was given back before.
  std::uint64_t from = 0, to = 0;
  for (const Piece& piece : run) {
    set_free(piece.slot);
    if (piece.read) continue;
    if (piece.offset_bytes != to) {
      punch(move_.arena_fd, from, to);
      from = piece.offset_bytes;
    }
    to = piece.offset_bytes + piece.stride_bytes;
  }
  punch(move_.arena_fd, from, to);
}

void Mover::write_record(const Piece& piece) {
  const SlotRecord& old = from_.slot(piece.slot);
  SlotRecord& record = to_.slot(piece.place.slot);
  record.tenant = old.tenant;
  record.set_key(old.get_key());
  record.parent = old.parent;
  record.first = old.first;
  record.payload_bytes = old.payload_bytes;
  record.rect = old.rect;
  record.checksum = old.checksum;
  record.set_sealed_ms(old.sealed_ms());
  record.fingerprint = old.fingerprint;
  record.text_keys = old.text_keys;
  for (std::uint32_t i = 0; i < std::min<std::uint32_t>(old.text_keys, kTextKeysPerSlotMax); ++i) {
    to_.text(piece.place.slot, i) = from_.text(piece.slot, i);
  }
  record.completes = old.completes;
  record.readers.store(0, std::memory_order_relaxed);
  record.pinned.store(old.pinned.load(std::memory_order_relaxed), std::memory_order_relaxed);
  record.crc = to_.compute_crc(piece.place.slot, piece.place.generation);
  record.set(SlotState::Sealed, piece.place.generation);
}

// Its readers stay in the record: a move that is cut off leaves them to the next one.
void Mover::set_free(std::uint32_t slot) {
  SlotRecord& record = from_.slot(slot);
  record.set(SlotState::Free, record.generation());
}

}  // namespace kvcommons::internal
