#include "arena_move.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <set>
#include <span>
#include <system_error>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "key_hash.h"
#include "memory.h"
#include "records_file.h"
#include "slabs.h"

namespace kvcommons {
namespace {

using internal::Geometry;
using internal::kNoSlot;
using internal::Records;
using internal::Slabs;
using internal::SlotRecord;

constexpr unsigned kThreadsMax = 4;

// One sealed slot of the old arena, and its place in the new one.
struct Piece {
  std::uint32_t slot = 0;
  std::uint64_t offset_bytes = 0, stride_bytes = 0;
  internal::SlotGrant place;  // none: it does not fit, or it is there already
  bool read = false;          // an engine of the former life may copy from it
};

struct Chunk {
  std::uint64_t parent = 0;  // key_hash() of its key, as records have it
  bool first = false;        // of its chain
  std::vector<Piece> pieces;
  std::uint64_t sealed_ms = 0;
  bool pinned = false;
  enum class State : std::uint8_t { Waiting, Ordered, Unreachable, Placed } state = State::Waiting;
};

class Mapping {
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

// A hole reads as zero and takes no memory. Where the file system can't, the memory is given back with the file.
void punch(int fd, std::uint64_t begin, std::uint64_t end) {
  if (begin < end) {
    (void)fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(begin),
                    static_cast<off_t>(end - begin));
  }
}

class Mover {
 public:
  Mover(const ArenaMove& move, const Geometry& from, const StoreConfig& config)
      : move_(move),
        from_(from, move.records_fd),
        to_(Geometry::of(config), move.new_records_fd),
        from_slabs_(from_),
        to_slabs_(to_) {}

  MovedArena run() {
    take_what_is_there();
    list();
    copy_fingerprints();
    order();
    place();
    give_back_the_rest();
    copy_all();
    moved_.bytes_moved = bytes_.load();
    return moved_;
  }

 private:
  // A move that was cut off has sealed these already.
  void take_what_is_there() {
    to_slabs_.adopt([&](std::uint32_t slot, std::uint64_t) {
      SlotRecord& record = to_.slot(slot);
      const bool whole =
          record.state() == SlotState::Sealed && record.crc == to_.compute_crc(slot, record.generation());
      if (whole) {
        there_[record.get_key()].push_back(record.rect);
        there_by_hash_.insert(internal::key_hash(record.get_key()));
      } else {
        record.set(SlotState::Free, record.generation());
      }
      return whole;
    });
  }

  void list() {
    from_slabs_.adopt([&](std::uint32_t slot, std::uint64_t offset) {
      const SlotRecord& record = from_.slot(slot);
      const SlotState state = record.state();
      const std::uint64_t stride = Slabs::stride_of(record.payload_bytes);
      Piece piece{slot, offset, stride, {}, record.readers.load(std::memory_order_acquire) != 0};
      const bool sealed = state == SlotState::Sealed && record.crc == from_.compute_crc(slot, record.generation()) &&
                          stride != 0 && stride <= from_.geometry().arena_bytes - offset &&
                          record.fingerprint < to_.geometry().fingerprint_rows &&
                          record.fingerprint < from_.geometry().fingerprint_rows;
      if (sealed) {
        Chunk& chunk = chunks_[record.get_key()];
        chunk.parent = record.parent;
        chunk.first = record.first != 0;
        chunk.sealed_ms = std::max(chunk.sealed_ms, record.sealed_ms());
        chunk.pinned = chunk.pinned || record.pinned.load(std::memory_order_relaxed) != 0;
        chunk.pieces.push_back(piece);
      } else if (piece.read) {
        read_elsewhere_.push_back(piece);
      }
      // A place that is read stays taken, or its slab would be forgotten with who reads it.
      return state != SlotState::Free || piece.read;
    });
    for (auto& [key, chunk] : chunks_) by_hash_[internal::key_hash(key)] = &chunk;
  }

  [[nodiscard]] Chunk* parent_of(const Chunk& chunk) const {
    const auto found = chunk.first ? by_hash_.end() : by_hash_.find(chunk.parent);
    return found == by_hash_.end() ? nullptr : found->second;
  }

  void copy_fingerprints() {
    const std::uint32_t rows = std::min(from_.geometry().fingerprint_rows, to_.geometry().fingerprint_rows);
    for (std::uint32_t row = 0; row < rows; ++row) {
      const internal::FingerprintRecord& old = from_.fingerprint(row);
      internal::FingerprintRecord& fresh = to_.fingerprint(row);
      if (old.used.load(std::memory_order_acquire) != 1 || fresh.used.load(std::memory_order_acquire) == 1) continue;
      fresh.key = old.key;
      fresh.chunk_tokens = old.chunk_tokens;
      fresh.used.store(1, std::memory_order_release);
    }
  }

  // Pinned ones first, then by the time of sealing, the latest first; and before each the chunks that lead to it.
  void order() {
    std::vector<std::pair<const Key, Chunk>*> latest;
    latest.reserve(chunks_.size());
    for (auto& item : chunks_) latest.push_back(&item);
    std::sort(latest.begin(), latest.end(), [](const auto* a, const auto* b) {
      return std::pair(a->second.pinned, a->second.sealed_ms) > std::pair(b->second.pinned, b->second.sealed_ms);
    });
    std::vector<Chunk*> path;
    for (auto* item : latest) {
      path.clear();
      bool reached = true;
      for (Chunk* chunk = &item->second; chunk->state == Chunk::State::Waiting;) {
        chunk->state = Chunk::State::Ordered;  // also what ends a walk in a circle, which only a forger makes
        path.push_back(chunk);
        if (chunk->first) break;
        Chunk* parent = parent_of(*chunk);
        // What a move before this one brought over is in the new arena alone.
        if (parent == nullptr) {
          reached = there_by_hash_.contains(chunk->parent);
          break;
        }
        chunk = parent;
        reached = chunk->state != Chunk::State::Unreachable;
      }
      for (auto chunk = path.rbegin(); chunk != path.rend(); ++chunk) {
        if (reached) {
          ordered_.push_back(*chunk);
        } else {
          (*chunk)->state = Chunk::State::Unreachable;
        }
      }
    }
    std::unordered_set<Key, KeyHash> all;
    for (const auto& [key, rects] : there_) all.insert(key);
    moved_.chunks_moved = all.size();
    for (const auto& [key, chunk] : chunks_) {
      if (chunk.state == Chunk::State::Ordered) all.insert(key);
    }
    moved_.chunks = all.size();
  }

  void place() {
    for (Chunk* chunk : ordered_) {
      const Chunk* parent = parent_of(*chunk);
      if (parent != nullptr && parent->state != Chunk::State::Placed) continue;
      if (place_one(*chunk)) chunk->state = Chunk::State::Placed;
    }
  }

  // All of its slots, or none.
  bool place_one(Chunk& chunk) {
    const Key key = from_.slot(chunk.pieces.front().slot).get_key();
    const auto known = there_.find(key);
    std::vector<std::uint32_t> taken;
    for (Piece& piece : chunk.pieces) {
      const SlotRecord& record = from_.slot(piece.slot);
      const auto same = [&](const Rect& rect) { return rect == record.rect; };
      if (known != there_.end() && std::any_of(known->second.begin(), known->second.end(), same)) continue;
      const std::pair<std::uint32_t, std::uint64_t> kind{record.fingerprint, piece.stride_bytes};
      const auto grant = full_.contains(kind) ? std::nullopt : to_slabs_.try_alloc(kind.first, kind.second);
      if (!grant) {
        full_.insert(kind);
        to_slabs_.free(taken);  // their words are FREE still
        if (!taken.empty()) full_.clear();
        for (Piece& each : chunk.pieces) each.place = {};
        return false;
      }
      piece.place = *grant;
      taken.push_back(grant->slot);
    }
    moved_.chunks_moved += known == there_.end() ? 1 : 0;
    return true;
  }

  // Before anything is copied: what does not fit, and what holds nothing.
  void give_back_the_rest() {
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

  void copy_all() {
    std::sort(todo_.begin(), todo_.end(),
              [](const Piece& a, const Piece& b) { return a.offset_bytes < b.offset_bytes; });
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

  [[nodiscard]] std::uint64_t slab_of(const Piece& piece) const noexcept {
    return piece.offset_bytes / from_.geometry().slab_bytes;
  }

  void copy_run(std::span<const Piece> run, const Mapping& old, const Mapping& fresh) {
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

  void write_record(const Piece& piece) {
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
    for (std::uint32_t i = 0; i < std::min<std::uint32_t>(old.text_keys, internal::kTextKeysPerSlotMax); ++i) {
      to_.text(piece.place.slot, i) = from_.text(piece.slot, i);
    }
    record.completes = old.completes;
    record.readers.store(0, std::memory_order_relaxed);
    record.pinned.store(old.pinned.load(std::memory_order_relaxed), std::memory_order_relaxed);
    record.crc = to_.compute_crc(piece.place.slot, piece.place.generation);
    record.set(SlotState::Sealed, piece.place.generation);
  }

  // Its readers stay in the record: a move that is cut off leaves them to the next one.
  void set_free(std::uint32_t slot) {
    SlotRecord& record = from_.slot(slot);
    record.set(SlotState::Free, record.generation());
  }

  const ArenaMove move_;
  Records from_, to_;
  Slabs from_slabs_, to_slabs_;
  std::unordered_map<Key, std::vector<Rect>, KeyHash> there_;
  std::unordered_set<std::uint64_t> there_by_hash_;
  std::unordered_map<Key, Chunk, KeyHash> chunks_;
  std::unordered_map<std::uint64_t, Chunk*> by_hash_;
  std::vector<Chunk*> ordered_;
  std::vector<Piece> todo_, read_elsewhere_;
  std::set<std::pair<std::uint32_t, std::uint64_t>> full_;  // fingerprints and strides that no room is left for
  std::atomic<std::uint64_t> bytes_{0};
  MovedArena moved_;
};

}  // namespace

std::optional<RecordedArena> recorded_arena(int records_fd, const StoreConfig& config) {
  const auto geometry = internal::geometry_of_file(records_fd);
  if (!geometry) return std::nullopt;
  return RecordedArena{geometry->arena_bytes, internal::same_geometry(*geometry, Geometry::of(config))};
}

std::optional<MovedArena> move_arena(const ArenaMove& move, const StoreConfig& config) {
  const auto from = internal::geometry_of_file(move.records_fd);
  if (!from) return std::nullopt;
  return Mover(move, *from, config).run();
}

}  // namespace kvcommons
