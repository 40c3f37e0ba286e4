// Maps the arena's pages into this process before a transfer needs them. The node has populated the arena, but each
// process that maps it still takes a fault per page at its first touch: 0.2 to 0.6 s a GiB, which a first load would
// pay.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "device.h"
#include "lease_port.h"

namespace kvcommons {

//
// With a device, what is mapped is pinned too, in pieces of Device::kPinBytes; a former arena's pieces stay pinned, and
// mapped, until nobody copies from it any more.
class ArenaWarmer {
 public:
  explicit ArenaWarmer(Device* device) : device_(device) {}
  ~ArenaWarmer();                            // when no copy runs any more
  ArenaWarmer(const ArenaWarmer&) = delete;  // what it pinned is unpinned once

  static constexpr std::size_t kStepBytes = 8u << 20;  // few milliseconds: a job that arrives waits no longer

  // Maps the next piece of the arena of the port's present attach; false when there is none left. Pieces that the node
  // has not populated are left alone: their memory would be charged to this process.
  bool step(const LeasePort& port);

 private:
  struct Pinned {
    std::shared_ptr<std::byte> arena;
    std::vector<std::byte*> pieces;
  };
  void pin_upto(const LeasePort::Attachment& attached, bool populated);
  void unpin_former(bool all);

  Device* const device_;
  std::uint64_t attach_ = 0;
  std::uint64_t at_ = 0;
  std::uint64_t pinned_to_ = 0;  // pieces before this one were pinned, or are not to be
  bool whole_ = true;            // what was mapped since then was populated by the node
  Pinned present_;
  std::vector<Pinned> former_;
};

}  // namespace kvcommons
