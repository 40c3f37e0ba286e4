// The kernels, compiled to an image of their own that the driver loads at run time (docs/gpu.md): no runtime library,
// no host code. What they compute is in headers that the tests run on the host; here are the grids and the
// instructions.
#if defined(__HIPCC__)
#include <hip/hip_runtime.h>
#else
#include "kernels/gpu/abi_check.h"
#endif

#include "kernels/gpu/copy_units.h"
#include "kernels/gpu/transforms.h"
#include "kernels/gpu/warp.h"

namespace gpu = kvcommons::gpu;

extern "C" __global__ void __launch_bounds__(gpu::kCopyThreads)
    kvc_copy_units(const gpu::CopyUnit* units, unsigned count) {
  gpu::copy_units(units, count, blockIdx.x, gridDim.x, threadIdx.x, blockDim.x);
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
namespace {

// One thread moves a block's units through shared memory by the bulk copies of sm_90 and newer.
struct BulkCopies {
  unsigned shared, barriers;  // addresses in shared memory

  __device__ unsigned stage_at(unsigned stage) const { return shared + stage * gpu::kRingUnitBytes; }
  __device__ unsigned barrier_of(unsigned stage) const { return barriers + stage * 8; }

  __device__ void init() const {
    for (unsigned stage = 0; stage < gpu::kRingStages; ++stage) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier_of(stage)) : "memory");
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  }
  __device__ void load(unsigned stage, const gpu::CopyUnit& unit) const {
    const unsigned bytes = static_cast<unsigned>(unit.bytes);
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier_of(stage)), "r"(bytes)
                 : "memory");
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     stage_at(stage)),
                 "l"(unit.src), "r"(bytes), "r"(barrier_of(stage))
                 : "memory");
  }
  __device__ void wait_loaded(unsigned stage, unsigned parity) const {
    unsigned done = 0;
    while (done == 0) {
      asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
                   : "=r"(done)
                   : "r"(barrier_of(stage)), "r"(parity)
                   : "memory");
    }
  }
  __device__ void store(unsigned stage, const gpu::CopyUnit& unit) const {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(unit.dst), "r"(stage_at(stage)),
                 "r"(static_cast<unsigned>(unit.bytes))
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
  __device__ void wait_stores_but_one() const { asm volatile("cp.async.bulk.wait_group.read 1;" ::: "memory"); }
  __device__ void wait_stores() const { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
};

}  // namespace
#endif

// Launched on sm_90 and newer only, with kRingSharedBytes of dynamic shared memory and one warp a block.
extern "C" __global__ void __launch_bounds__(gpu::kWarp) kvc_copy_ring(const gpu::CopyUnit* units, unsigned count) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) unsigned char stages[];
  __shared__ __align__(8) std::uint64_t barriers[gpu::kRingStages];
  if (threadIdx.x != 0) return;
  const BulkCopies copies{static_cast<unsigned>(__cvta_generic_to_shared(stages)),
                          static_cast<unsigned>(__cvta_generic_to_shared(barriers))};
  copies.init();
  gpu::drive_ring(copies, units, count, blockIdx.x, gridDim.x);
#else
  (void)units;
  (void)count;
#endif
}

namespace {
__device__ gpu::GpuWarp this_warp() { return {threadIdx.x % gpu::kLanes}; }
__device__ std::uint32_t warp_number() { return blockIdx.x * (blockDim.x / gpu::kLanes) + threadIdx.x / gpu::kLanes; }
__device__ std::uint32_t warp_count() { return gridDim.x * (blockDim.x / gpu::kLanes); }
}  // namespace

extern "C" __global__ void __launch_bounds__(gpu::kTransformThreads) kvc_quantise(gpu::QuantJob job) {
  const gpu::GpuWarp warp = this_warp();
  for (std::uint32_t tile = warp_number(); tile < job.tiles; tile += warp_count()) gpu::quantise(warp, job, tile);
}

extern "C" __global__ void __launch_bounds__(gpu::kTransformThreads) kvc_dequantise(gpu::QuantJob job) {
  const gpu::GpuWarp warp = this_warp();
  for (std::uint32_t tile = warp_number(); tile < job.tiles; tile += warp_count()) gpu::dequantise(warp, job, tile);
}

extern "C" __global__ void __launch_bounds__(gpu::kTransformThreads) kvc_rope(gpu::RopeJob job) {
  const gpu::GpuWarp warp = this_warp();
  for (std::uint32_t row = warp_number(); row < job.rows; row += warp_count()) gpu::rope(warp, job, row);
}
