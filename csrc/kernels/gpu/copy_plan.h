// How the runs of one copy cross the link: which method, and the pieces it wants. Pure: nothing here calls a driver.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/device.h"
#include "kernels/cpu/copy.h"
#include "kernels/gpu/copy_units.h"

namespace kvcommons::gpu {

enum class Method : std::uint8_t {
  Loop,    // one asynchronous copy a run
  Batch,   // the driver's batched copy
  Warps,   // a kernel of few blocks reads and writes the host's memory itself
  Ring,    // the same by bulk copies through shared memory (sm_90 and newer)
  Staged,  // a kernel relays out in the device's memory; what is contiguous in the arena crosses as one copy
};
inline constexpr std::size_t kMethods = 5;
inline constexpr std::array<Method, kMethods> kAllMethods = {Method::Loop, Method::Batch, Method::Warps, Method::Ring,
                                                             Method::Staged};
[[nodiscard]] std::string_view method_name(Method method) noexcept;

// Time of a copy as seen from its submission: what it costs at all, a run, and 1,024 bytes.
struct Cost {
  double fixed_ns = 0, run_ns = 0, kib_ns = 0;
  [[nodiscard]] double of(std::size_t runs, std::size_t bytes) const noexcept {
    return fixed_ns + run_ns * static_cast<double>(runs) + kib_ns * static_cast<double>(bytes) / 1024.0;
  }
};
struct Costs {
  std::array<std::array<Cost, kMethods>, 2> of{};  // by way, then method
  [[nodiscard]] const Cost& at(Device::Way way, Method method) const noexcept {
    return of[static_cast<std::size_t>(way)][static_cast<std::size_t>(method)];
  }
  [[nodiscard]] Cost& at(Device::Way way, Method method) noexcept {
    return of[static_cast<std::size_t>(way)][static_cast<std::size_t>(method)];
  }
};
// Until a calibration has measured this machine's own: from published figures of PCIe 5 (docs/gpu.md).
[[nodiscard]] Costs usual_costs() noexcept;
// A line through two measurements of one method: `small` had more runs for the same bytes.
struct Measured {
  std::size_t runs = 0, bytes = 0;
  double ns = 0;
};
[[nodiscard]] Cost cost_of(const Measured& many_runs, const Measured& few_runs) noexcept;

struct Abilities {
  bool batch = false;
  bool staged = false;               // there are kernels
  bool warps = false, ring = false;  // and they may read and write pinned memory of the host
};
struct Traits {  // of one copy's runs
  std::size_t runs = 0, bytes = 0;
  std::size_t flat_runs = 0;  // pieces that are contiguous on the host's side
  bool pinned = false;        // a kernel may touch the host's side
  bool aligned = false;       // to kRingAlign, both sides and lengths
};
[[nodiscard]] Traits traits_of(Device::Way way, std::span<const kernels::CopyRun> runs, bool pinned) noexcept;
[[nodiscard]] bool can_use(Method method, const Traits& traits, const Abilities& abilities) noexcept;
// The cheapest of what the device can do with such runs.
[[nodiscard]] Method choose(Device::Way way, const Traits& traits, const Abilities& abilities,
                            const Costs& costs) noexcept;

// Pieces of at most unit_bytes, for a kernel.
void cut_units(std::span<const kernels::CopyRun> runs, std::size_t unit_bytes, std::vector<CopyUnit>* units);

// One fill of the staging buffer. Out of the device: `relayout` gathers into it, then `flat` leaves it; into the device
// `flat` fills it, then `relayout` scatters.
struct StagedRound {
  std::vector<kernels::CopyRun> relayout, flat;
};
[[nodiscard]] std::vector<StagedRound> stage(Device::Way way, std::span<const kernels::CopyRun> runs,
                                             std::byte* staging, std::size_t staging_bytes);

}  // namespace kvcommons::gpu
