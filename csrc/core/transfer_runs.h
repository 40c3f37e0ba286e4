// Runs between the arena and a device: none spans two pieces that were registered apart.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "device.h"

namespace kvcommons {

// The runs themselves where none has to be cut; else in *cut.
inline std::span<const kernels::CopyRun> cut_at_pins(Device::Way way, std::span<const kernels::CopyRun> runs,
                                                     const std::byte* arena, std::vector<kernels::CopyRun>* cut) {
  const auto room = [&](const kernels::CopyRun& run) {
    const std::byte* const side = way == Device::Way::Load ? run.src : run.dst;
    return Device::kPinBytes - static_cast<std::uint64_t>(side - arena) % Device::kPinBytes;
  };
  if (std::all_of(runs.begin(), runs.end(), [&](const auto& run) { return run.bytes <= room(run); })) return runs;
  cut->clear();
  for (kernels::CopyRun run : runs) {
    while (run.bytes > 0) {
      const std::size_t bytes = std::min<std::size_t>(run.bytes, room(run));
      cut->push_back({run.src, run.dst, bytes});
      run = {run.src + bytes, run.dst + bytes, run.bytes - bytes};
    }
  }
  return *cut;
}

}  // namespace kvcommons
