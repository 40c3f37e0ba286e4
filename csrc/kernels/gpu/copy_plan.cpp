#include "copy_plan.h"

#include <algorithm>

namespace kvcommons::gpu {
namespace {

using kernels::CopyRun;
using Way = Device::Way;

const std::byte* host_side(Way way, const CopyRun& run) { return way == Way::Load ? run.src : run.dst; }

bool is_aligned(const CopyRun& run) {
  const auto any = reinterpret_cast<std::uintptr_t>(run.src) | reinterpret_cast<std::uintptr_t>(run.dst) | run.bytes;
  return any % kRingAlign == 0;
}

}  // namespace

std::string_view method_name(Method method) noexcept {
  constexpr std::array<std::string_view, kMethods> kNames = {"loop", "batch", "warps", "ring", "staged"};
  return kNames[static_cast<std::size_t>(method)];
}

Costs usual_costs() noexcept {
  Costs costs;
  for (const Way way : {Way::Load, Way::Store}) {
    costs.at(way, Method::Loop) = {.fixed_ns = 2'000, .run_ns = 1'500, .kib_ns = 19};
    costs.at(way, Method::Batch) = {.fixed_ns = 10'000, .run_ns = 1'000, .kib_ns = 19};
    costs.at(way, Method::Warps) = {.fixed_ns = 15'000, .run_ns = 5, .kib_ns = 22};
    costs.at(way, Method::Ring) = {.fixed_ns = 15'000, .run_ns = 5, .kib_ns = 20};
    costs.at(way, Method::Staged) = {.fixed_ns = 25'000, .run_ns = 5, .kib_ns = 20};
  }
  costs.at(Way::Store, Method::Warps).kib_ns = 24;  // writes over the link wait for no answer, but have less in flight
  return costs;
}

Cost cost_of(const Measured& many_runs, const Measured& few_runs) noexcept {
  Cost cost;
  const double more = static_cast<double>(many_runs.runs) - static_cast<double>(few_runs.runs);
  if (more > 0) cost.run_ns = std::max(0.0, (many_runs.ns - few_runs.ns) / more);
  const double rest = few_runs.ns - cost.run_ns * static_cast<double>(few_runs.runs);
  if (few_runs.bytes > 0) cost.kib_ns = std::max(0.0, rest) * 1024.0 / static_cast<double>(few_runs.bytes);
  return cost;
}

Traits traits_of(Way way, std::span<const CopyRun> runs, bool pinned) noexcept {
  Traits traits{.runs = runs.size(), .pinned = pinned, .aligned = true};
  const std::byte* next = nullptr;
  for (const CopyRun& run : runs) {
    traits.bytes += run.bytes;
    traits.aligned &= is_aligned(run);
    if (host_side(way, run) != next) ++traits.flat_runs;
    next = host_side(way, run) + run.bytes;
  }
  return traits;
}

bool can_use(Method method, const Traits& traits, const Abilities& abilities) noexcept {
  switch (method) {
    case Method::Loop:
      return true;
    case Method::Batch:
      return abilities.batch && traits.pinned;
    case Method::Warps:
      return abilities.warps && traits.pinned;
    case Method::Ring:
      return abilities.ring && traits.pinned && traits.aligned;
    case Method::Staged:
      return abilities.staged;
  }
  return false;
}

Method choose(Way way, const Traits& traits, const Abilities& abilities, const Costs& costs) noexcept {
  Method best = Method::Loop;
  double least = costs.at(way, best).of(traits.runs, traits.bytes);
  for (const Method method : kAllMethods) {
    if (!can_use(method, traits, abilities)) continue;
    double ns = costs.at(way, method).of(traits.runs, traits.bytes);
    if (method == Method::Staged) ns += costs.at(way, Method::Loop).run_ns * static_cast<double>(traits.flat_runs);
    if (ns < least) {
      least = ns;
      best = method;
    }
  }
  return best;
}

void cut_units(std::span<const CopyRun> runs, std::size_t unit_bytes, std::vector<CopyUnit>* units) {
  units->clear();
  for (const CopyRun& run : runs) {
    for (std::size_t at = 0; at < run.bytes; at += unit_bytes) {
      units->push_back({run.src + at, run.dst + at, std::min(unit_bytes, run.bytes - at)});
    }
  }
}

std::vector<StagedRound> stage(Way way, std::span<const CopyRun> runs, std::byte* staging, std::size_t staging_bytes) {
  std::vector<StagedRound> rounds;
  std::size_t used = staging_bytes;  // full: the first run begins a round
  kernels::RunList flat;
  const auto end_round = [&] {
    if (!rounds.empty()) rounds.back().flat.assign(flat.runs().begin(), flat.runs().end());
    flat.clear();
  };
  for (const CopyRun& run : runs) {
    for (std::size_t done = 0; done < run.bytes;) {
      if (used == staging_bytes) {
        end_round();
        rounds.emplace_back();
        used = 0;
      }
      const std::size_t bytes = std::min(run.bytes - done, staging_bytes - used);
      std::byte* const place = staging + used;
      if (way == Way::Load) {
        flat.add(run.src + done, place, bytes);
        rounds.back().relayout.push_back({place, run.dst + done, bytes});
      } else {
        rounds.back().relayout.push_back({run.src + done, place, bytes});
        flat.add(place, run.dst + done, bytes);
      }
      done += bytes;
      used += bytes;
    }
  }
  end_round();
  return rounds;
}

}  // namespace kvcommons::gpu
