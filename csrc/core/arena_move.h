// Moves what an arena holds into another one, of another size or cut in another way, before anybody is served: what
// fits stays. The chunks that were sealed last go first, each after those that its chain needs before it, so that what
// does not fit is the ends of chains that nobody stored anything for lately. Pinned chunks go before all others.
//
// Memory: ranges of the old arena are given back as soon as nobody needs them, so that both arenas together never take
// more than the larger of the two and a slab for each copying thread. A slot that an engine of the former life may
// still copy from is copied and left in place: its process has the old arena mapped and reads there to the end.
//
// Killed half way, the next life goes on with the same two arenas: a slot is free in the old one only after it is
// sealed in the new one.
#pragma once

#include <cstdint>
#include <optional>

#include "store.h"

namespace kvcommons {

struct ArenaMove {
  int arena_fd = -1, records_fd = -1;          // where the chunks are
  int new_arena_fd = -1, new_records_fd = -1;  // a fresh pair, or the one of a move that was cut off
};

struct MovedArena {
  std::uint64_t chunks = 0;        // that the old arena held, as far as a chain leads to them
  std::uint64_t chunks_moved = 0;  // with those that a move before this one had brought over
  std::uint64_t bytes_moved = 0;   // by this one
};

struct RecordedArena {
  std::uint64_t arena_bytes = 0;
  bool as_configured = false;  // cut as this configuration would cut it: nothing has to move
};
// nullopt where the records can't be used.
std::optional<RecordedArena> recorded_arena(int records_fd, const StoreConfig& config);

// `config` is that of the new arena. nullopt: the old records can't be used, and nothing was changed. Throws
// std::system_error where memory can't be mapped. Nobody else may use any of the four meanwhile.
std::optional<MovedArena> move_arena(const ArenaMove& move, const StoreConfig& config);

}  // namespace kvcommons
