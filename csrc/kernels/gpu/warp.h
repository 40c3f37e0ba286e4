// What a warp does together, written once: on a GPU each lane runs the code, on the host one thread plays all lanes.
#pragma once

#include "kernels/both_sides.h"

namespace kvcommons::gpu {

inline constexpr unsigned kLanes = 32;  // on AMD half a wavefront

struct HostWarp {
  template <typename T>
  struct Lanes {
    T values[kLanes];
    T& operator[](unsigned lane) { return values[lane]; }
  };
  template <typename Body>
  void each(Body body) const {
    for (unsigned lane = 0; lane < kLanes; ++lane) body(lane);
  }
  // Of all lanes, and then known to all.
  template <typename T, typename Pick>
  void reduce(Lanes<T>* lanes, Pick pick) const {
    T all = lanes->values[0];
    for (unsigned lane = 1; lane < kLanes; ++lane) all = pick(all, lanes->values[lane]);
    for (unsigned lane = 0; lane < kLanes; ++lane) lanes->values[lane] = all;
  }
  template <typename T>
  T any(Lanes<T>* lanes) const {
    return lanes->values[0];
  }
};

#if defined(__CUDACC__) || defined(__HIPCC__)
struct GpuWarp {
  unsigned lane;
  template <typename T>
  struct Lanes {
    T value;
    __host__ __device__ T& operator[](unsigned) { return value; }
  };
  template <typename Body>
  __host__ __device__ void each(Body body) const {
    body(lane);
  }
  template <typename T, typename Pick>
  __host__ __device__ void reduce(Lanes<T>* lanes, Pick pick) const {
#if KVC_ON_GPU
    for (unsigned apart = kLanes / 2; apart > 0; apart /= 2) {
#if defined(__HIPCC__)
      const T other = __shfl_xor(lanes->value, static_cast<int>(apart), kLanes);
#else
      const T other = __shfl_xor_sync(0xFFFFFFFFu, lanes->value, static_cast<int>(apart));
#endif
      lanes->value = pick(lanes->value, other);
    }
#else
    (void)lanes;
    (void)pick;
#endif
  }
  template <typename T>
  __host__ __device__ T any(Lanes<T>* lanes) const {
    return lanes->value;
  }
};
#endif

}  // namespace kvcommons::gpu
