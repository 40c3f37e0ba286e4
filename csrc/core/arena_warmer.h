// Maps the arena's pages into this process before a transfer needs them. The node has populated the arena, but each
// process that maps it still takes a fault per page at its first touch: 0.2 to 0.6 s a GiB, which a first load would
// pay.
#pragma once

#include <cstddef>
#include <cstdint>

#include "lease_port.h"

namespace kvcommons {

class ArenaWarmer {
 public:
  static constexpr std::size_t kStepBytes = 8u << 20;  // few milliseconds: a job that arrives waits no longer

  // Maps the next piece of the arena of the port's present attach; false when there is none left. Pieces that the node
  // has not populated are left alone: their memory would be charged to this process.
  bool step(const LeasePort& port);

 private:
  std::uint64_t attach_ = 0;
  std::uint64_t at_ = 0;
};

}  // namespace kvcommons
