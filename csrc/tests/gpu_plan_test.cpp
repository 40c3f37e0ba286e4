// The choices before a GPU's copy: pieces and rounds hold every byte once, and the cheapest possible method is taken.
#include <cstring>
#include <random>

#include "check.h"
#include "kernels/gpu/copy_plan.h"

namespace kvcommons::gpu {
namespace {

using kernels::CopyRun;
using Way = Device::Way;

constexpr Way kWays[] = {Way::Load, Way::Store};

// Runs of random lengths between two memories: the host's side in order with gaps here and there, the device's
// anywhere.
struct World {
  std::vector<std::byte> host, device;
  std::vector<CopyRun> runs;

  World(Way way, std::uint32_t seed) {
    std::mt19937 random(seed);
    const std::size_t count = 1 + random() % 40, slot = 700;
    host.resize(count * slot);
    device.resize(count * slot);
    for (auto& byte : host) byte = static_cast<std::byte>(random());
    for (auto& byte : device) byte = static_cast<std::byte>(random());
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
      if (random() % 4 == 0) at += random() % 20;
      const std::size_t bytes = 1 + random() % 600, place = (i * 7 % count) * slot + random() % 64;
      std::byte *const near = host.data() + at, *const far = device.data() + place;
      runs.push_back(way == Way::Load ? CopyRun{near, far, bytes} : CopyRun{far, near, bytes});
      at += bytes;
    }
  }
};

void copy_plainly(std::span<const CopyRun> runs) {
  for (const CopyRun& run : runs) std::memcpy(run.dst, run.src, run.bytes);
}

TEST(units_hold_every_byte_of_the_runs_once) {
  for (std::uint32_t seed = 1; seed < 40; ++seed) {
    World one(Way::Store, seed), two(Way::Store, seed);
    copy_plainly(one.runs);
    std::vector<CopyUnit> units;
    cut_units(two.runs, 1 + seed * 5, &units);
    std::size_t bytes = 0;
    for (const CopyUnit& unit : units) {
      CHECK(unit.bytes > 0 && unit.bytes <= 1 + seed * 5);
      std::memcpy(unit.dst, unit.src, unit.bytes);
      bytes += unit.bytes;
    }
    CHECK(one.host == two.host);
    CHECK_EQ(bytes, traits_of(Way::Store, two.runs, true).bytes);
  }
}

TEST(staged_rounds_move_the_same_bytes_and_never_leave_the_staging_buffer) {
  for (const Way way : kWays) {
    for (std::uint32_t seed = 1; seed < 60; ++seed) {
      World plain(way, seed), staged(way, seed);
      copy_plainly(plain.runs);
      std::vector<std::byte> buffer(1 + seed * 37 % 2'000);
      for (const StagedRound& round : stage(way, staged.runs, buffer.data(), buffer.size())) {
        std::size_t flat = 0, relaid = 0;
        for (const CopyRun& run : round.flat) flat += run.bytes;
        for (const CopyRun& run : round.relayout) {
          relaid += run.bytes;
          const std::byte* const inside = way == Way::Load ? run.src : run.dst;
          CHECK(inside >= buffer.data() && inside + run.bytes <= buffer.data() + buffer.size());
        }
        CHECK_EQ(flat, relaid);
        copy_plainly(way == Way::Load ? round.flat : round.relayout);
        copy_plainly(way == Way::Load ? round.relayout : round.flat);
      }
      CHECK(plain.host == staged.host);
      CHECK(plain.device == staged.device);
    }
  }
}

TEST(a_slot_that_is_whole_crosses_as_one_piece_however_many_runs_it_has) {
  std::vector<std::byte> device(1 << 16), slot(1 << 14), buffer(1 << 15);
  std::vector<CopyRun> runs;
  for (std::size_t i = 0; i < 16; ++i) runs.push_back({device.data() + i * 4096, slot.data() + i * 1024, 1024});
  const auto rounds = stage(Way::Store, runs, buffer.data(), buffer.size());
  CHECK_EQ(rounds.size(), 1u);
  CHECK_EQ(rounds[0].flat.size(), 1u);
  CHECK_EQ(traits_of(Way::Store, runs, true).flat_runs, 1u);
}

TEST(the_cheapest_method_is_taken_and_only_one_that_is_possible) {
  const Abilities all{.batch = true, .staged = true, .warps = true, .ring = true};
  const Costs costs = usual_costs();
  const Traits small{.runs = 4'096, .bytes = 16u << 20, .flat_runs = 1, .pinned = true, .aligned = true};
  const Traits large{.runs = 8, .bytes = 16u << 20, .flat_runs = 1, .pinned = true, .aligned = true};
  for (const Way way : kWays) {
    const Method for_small = choose(way, small, all, costs);
    CHECK(for_small != Method::Loop && for_small != Method::Batch);
    const Method for_large = choose(way, large, all, costs);
    CHECK(for_large == Method::Loop || for_large == Method::Batch);
    CHECK_EQ(choose(way, small, {}, costs), Method::Loop);
    Traits odd = small;
    odd.aligned = false;
    CHECK_NE(choose(way, odd, all, costs), Method::Ring);
    odd.pinned = false;  // a kernel that touched it would end the engine's context
    const Method slow = choose(way, odd, all, costs);
    CHECK(slow == Method::Loop || slow == Method::Staged);
  }
}

TEST(a_cost_is_the_line_through_two_measurements) {
  const Cost cost =
      cost_of({.runs = 1'000, .bytes = 1u << 20, .ns = 1'100'000}, {.runs = 10, .bytes = 1u << 20, .ns = 110'000});
  CHECK(cost.run_ns > 999 && cost.run_ns < 1'001);
  CHECK(cost.of(1'000, 1u << 20) > 1'090'000 && cost.of(1'000, 1u << 20) < 1'110'000);
  const Cost odd = cost_of({.runs = 1'000, .bytes = 1u << 20, .ns = 50}, {.runs = 10, .bytes = 1u << 20, .ns = 90});
  CHECK(odd.run_ns == 0 && odd.kib_ns > 0);  // noise makes nothing cost less than nothing
}

}  // namespace
}  // namespace kvcommons::gpu

TEST_MAIN()
