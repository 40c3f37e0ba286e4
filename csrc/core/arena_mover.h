// The inside of move_arena(): what is moved and where to is decided first (arena_move.cpp), then done
// (arena_move_copy.cpp).
#pragma once

#include <atomic>
#include <cstdint>
#include <set>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "arena_move.h"
#include "records.h"
#include "slabs.h"

namespace kvcommons::internal {

class Mover {
 public:
  Mover(const ArenaMove& move, const Geometry& from, const StoreConfig& config)
      : move_(move),
        from_(from, move.records_fd),
        to_(Geometry::of(config), move.new_records_fd),
        from_slabs_(from_),
        to_slabs_(to_) {}

  MovedArena run();

 private:
  // One sealed slot of the old arena, and its place in the new one.
  struct Piece {
    std::uint32_t slot = 0;
    std::uint64_t offset_bytes = 0, stride_bytes = 0;
    SlotGrant place;    // none: it does not fit, or it is there already
    bool read = false;  // an engine of the former life may copy from it
  };
  struct Chunk {
    std::uint64_t parent = 0;  // key_hash() of its key, as records have it
    bool first = false;        // of its chain
    std::vector<Piece> pieces;
    std::uint64_t sealed_ms = 0;
    bool pinned = false;
    enum class State : std::uint8_t { Waiting, Ordered, Unreachable, Placed } state = State::Waiting;
  };
  class Mapping;

  // arena_move.cpp
  void take_what_is_there();
  void list();
  [[nodiscard]] Chunk* parent_of(const Chunk& chunk) const;
  void copy_fingerprints();
  void order();
  bool order_path(Chunk* chunk, std::vector<Chunk*>* path) const;
  void count();
  void place();
  bool place_one(Chunk& chunk);
  // arena_move_copy.cpp
  void give_back_the_rest();
  void copy_all();
  [[nodiscard]] std::uint64_t slab_of(const Piece& piece) const noexcept;
  void copy_run(std::span<const Piece> run, const Mapping& old, const Mapping& fresh);
  void write_record(const Piece& piece);
  void set_free(std::uint32_t slot);

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

}  // namespace kvcommons::internal
