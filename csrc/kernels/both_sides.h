// For code that is compiled for GPUs and for the host: the tests run on the host what runs there.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define KVC_BOTH __host__ __device__ static inline
#define KVC_BOTH_MEMBER __host__ __device__
#else
// static: a copy that the linker may pick from a unit built for newer processors would run on older ones.
#define KVC_BOTH [[maybe_unused]] static inline
#define KVC_BOTH_MEMBER
#endif

#if defined(__CUDA_ARCH__) || defined(__HIP_DEVICE_COMPILE__)
#define KVC_ON_GPU 1
#else
#define KVC_ON_GPU 0
#endif
