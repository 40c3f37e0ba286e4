#include "arena_move.h"

#include <algorithm>
#include <utility>

#include "arena_mover.h"
#include "key_hash.h"
#include "records_file.h"

namespace kvcommons {
namespace internal {

MovedArena Mover::run() {
  take_what_is_there();
  list();
  copy_fingerprints();
  order();
  count();
  place();
  give_back_the_rest();
  copy_all();
  moved_.bytes_moved = bytes_.load();
  return moved_;
}

// A move that was cut off has sealed these already.
void Mover::take_what_is_there() {
  to_slabs_.adopt([&](std::uint32_t slot, std::uint64_t) {
    SlotRecord& record = to_.slot(slot);
    const bool whole = record.state() == SlotState::Sealed && record.crc == to_.compute_crc(slot, record.generation());
    if (whole) {
      there_[record.get_key()].push_back(record.rect);
      there_by_hash_.insert(key_hash(record.get_key()));
    } else {
      record.set(SlotState::Free, record.generation());
    }
    return whole;
  });
}

void Mover::list() {
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
  for (auto& [key, chunk] : chunks_) by_hash_[key_hash(key)] = &chunk;
}

Mover::Chunk* Mover::parent_of(const Chunk& chunk) const {
  const auto found = chunk.first ? by_hash_.end() : by_hash_.find(chunk.parent);
  return found == by_hash_.end() ? nullptr : found->second;
}

void Mover::copy_fingerprints() {
  const std::uint32_t rows = std::min(from_.geometry().fingerprint_rows, to_.geometry().fingerprint_rows);
  for (std::uint32_t row = 0; row < rows; ++row) {
    const FingerprintRecord& old = from_.fingerprint(row);
    FingerprintRecord& fresh = to_.fingerprint(row);
    if (old.used.load(std::memory_order_acquire) != 1 || fresh.used.load(std::memory_order_acquire) == 1) continue;
    fresh.key = old.key;
    fresh.chunk_tokens = old.chunk_tokens;
    fresh.used.store(1, std::memory_order_release);
  }
}

// Pinned ones first, then by the time of sealing, the latest first; and before each the chunks that lead to it.
void Mover::order() {
  std::vector<Chunk*> latest;
  latest.reserve(chunks_.size());
  for (auto& [key, chunk] : chunks_) latest.push_back(&chunk);
  std::sort(latest.begin(), latest.end(), [](const Chunk* a, const Chunk* b) {
    return std::pair(a->pinned, a->sealed_ms) > std::pair(b->pinned, b->sealed_ms);
  });
  std::vector<Chunk*> path;
  for (Chunk* one : latest) {
    path.clear();
    const bool reached = order_path(one, &path);
    for (auto chunk = path.rbegin(); chunk != path.rend(); ++chunk) {
      if (reached) {
        ordered_.push_back(*chunk);
      } else {
        (*chunk)->state = Chunk::State::Unreachable;
      }
    }
  }
}

// Up to the first chunk that was seen before. False: no chain leads there.
bool Mover::order_path(Chunk* chunk, std::vector<Chunk*>* path) const {
  while (chunk->state == Chunk::State::Waiting) {
    chunk->state = Chunk::State::Ordered;  // also what ends a walk in a circle, which only a forger makes
    path->push_back(chunk);
    if (chunk->first) return true;
    Chunk* parent = parent_of(*chunk);
    // What a move before this one brought over is in the new arena alone.
    if (parent == nullptr) return there_by_hash_.contains(chunk->parent);
    chunk = parent;
  }
  return chunk->state != Chunk::State::Unreachable;
}

void Mover::count() {
  std::unordered_set<Key, KeyHash> all;
  for (const auto& [key, rects] : there_) all.insert(key);
  moved_.chunks_moved = all.size();
  for (const auto& [key, chunk] : chunks_) {
    if (chunk.state == Chunk::State::Ordered) all.insert(key);
  }
  moved_.chunks = all.size();
}

void Mover::place() {
  for (Chunk* chunk : ordered_) {
    const Chunk* parent = parent_of(*chunk);
    if (parent != nullptr && parent->state != Chunk::State::Placed) continue;
    if (place_one(*chunk)) chunk->state = Chunk::State::Placed;
  }
}

// All of its slots, or none.
bool Mover::place_one(Chunk& chunk) {
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

}  // namespace internal

std::optional<RecordedArena> recorded_arena(int records_fd, const StoreConfig& config) {
  const auto geometry = internal::geometry_of_file(records_fd);
  if (!geometry) return std::nullopt;
  return RecordedArena{geometry->arena_bytes, internal::same_geometry(*geometry, internal::Geometry::of(config))};
}

std::optional<MovedArena> move_arena(const ArenaMove& move, const StoreConfig& config) {
  const auto from = internal::geometry_of_file(move.records_fd);
  if (!from) return std::nullopt;
  return internal::Mover(move, *from, config).run();
}

}  // namespace kvcommons
