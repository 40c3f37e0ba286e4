// The index arithmetic of the copy kernels. A unit is a piece of a run, copied by one warp, or by one stage of a ring.
#pragma once

#include "kernels/both_sides.h"

namespace kvcommons::gpu {

struct CopyUnit {
  const std::byte* src;
  std::byte* dst;
  std::uint64_t bytes;
};

inline constexpr unsigned kWarp = 32;
inline constexpr unsigned kCopyThreads = 512;  // of a block of the warps' kernel
// A warp has as much on its way at once: eight loads of 16 bytes in each lane hide the link's latency.
inline constexpr unsigned kUnitBytes = 4096;
inline constexpr unsigned kRingStages = 12, kRingUnitBytes = 16384;
inline constexpr unsigned kRingSharedBytes = kRingStages * kRingUnitBytes;
inline constexpr unsigned kRingAlign = 16;  // of both sides and the length

// What memory of any type is read and written as.
using Word1 [[gnu::may_alias]] = std::uint8_t;
using Word2 [[gnu::may_alias]] = std::uint16_t;
using Word4 [[gnu::may_alias]] = std::uint32_t;
using Word8 [[gnu::may_alias]] = std::uint64_t;
struct [[gnu::may_alias]] alignas(16) Word16 {
  std::uint64_t a, b;
};

// The widest access that both sides and the length allow.
KVC_BOTH unsigned access_bytes(const CopyUnit& unit) {
  const std::uint64_t any =
      reinterpret_cast<std::uintptr_t>(unit.src) | reinterpret_cast<std::uintptr_t>(unit.dst) | unit.bytes;
  return (any & 15) == 0 ? 16 : (any & 7) == 0 ? 8 : (any & 3) == 0 ? 4 : (any & 1) == 0 ? 2 : 1;
}

template <typename V>
KVC_BOTH void copy_vectors(const CopyUnit& unit, unsigned lane, unsigned lanes) {
  constexpr unsigned kDeep = 8;
  const V* const src = reinterpret_cast<const V*>(unit.src);
  V* const dst = reinterpret_cast<V*>(unit.dst);
  const std::uint64_t count = unit.bytes / sizeof(V);
  std::uint64_t i = lane;
  for (; i + (kDeep - 1) * lanes < count; i += kDeep * lanes) {
    V held[kDeep];
    for (unsigned k = 0; k < kDeep; ++k) held[k] = src[i + k * lanes];
    for (unsigned k = 0; k < kDeep; ++k) dst[i + k * lanes] = held[k];
  }
  for (; i < count; i += lanes) dst[i] = src[i];
}

KVC_BOTH void copy_unit(const CopyUnit& unit, unsigned lane, unsigned lanes) {
  switch (access_bytes(unit)) {
    case 16:
      return copy_vectors<Word16>(unit, lane, lanes);
    case 8:
      return copy_vectors<Word8>(unit, lane, lanes);
    case 4:
      return copy_vectors<Word4>(unit, lane, lanes);
    case 2:
      return copy_vectors<Word2>(unit, lane, lanes);
    default:
      return copy_vectors<Word1>(unit, lane, lanes);
  }
}

// One thread's part of a grid: units go round the warps of all blocks.
KVC_BOTH void copy_units(const CopyUnit* units, unsigned count, unsigned block, unsigned blocks, unsigned thread,
                         unsigned threads) {
  const unsigned warps = threads / kWarp;
  for (unsigned u = block * warps + thread / kWarp; u < count; u += blocks * warps) {
    copy_unit(units[u], thread % kWarp, kWarp);
  }
}

// A block's ring of stages: unit t of the block goes through stage t % kRingStages. Loads run ahead of stores by all
// stages but one; a stage is loaded again when the store out of it has been read, which is so of all stores but the
// last one when `Ops::wait_stores_but_one` returns.
//   load(stage, unit), wait_loaded(stage, parity), store(stage, unit), wait_stores_but_one(), wait_stores()
template <typename Ops>
KVC_BOTH_MEMBER void drive_ring(Ops& ops, const CopyUnit* units, unsigned count, unsigned block, unsigned blocks) {
  const unsigned mine = block < count ? (count - block - 1) / blocks + 1 : 0;
  const auto unit = [&](unsigned t) { return units[block + t * blocks]; };
  for (unsigned t = 0; t < kRingStages - 1 && t < mine; ++t) ops.load(t, unit(t));
  for (unsigned t = 0; t < mine; ++t) {
    const unsigned stage = t % kRingStages;
    ops.wait_loaded(stage, t / kRingStages & 1);
    ops.store(stage, unit(t));
    const unsigned next = t + kRingStages - 1;
    if (next >= mine) continue;
    ops.wait_stores_but_one();
    ops.load(next % kRingStages, unit(next));
  }
  ops.wait_stores();
}

}  // namespace kvcommons::gpu
