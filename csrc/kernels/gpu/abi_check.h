// Included where the vendor's headers are: what driver.h declares of the driver is what they declare.
#pragma once

#include <cuda.h>

#include <cstddef>

#include "kernels/gpu/driver.h"

namespace kvcommons::gpu::abi {

template <typename Ours, typename Theirs>
struct Same;
template <typename... A, typename... B>
struct Same<Result (*)(A...), CUresult (*)(B...)> {
  static constexpr bool value() {
    if constexpr (sizeof...(A) == sizeof...(B)) {
      return ((sizeof(A) == sizeof(B)) && ...);
    } else {
      return false;
    }
  }
};

#define KVC_SAME(ours, theirs) \
  static_assert(Same<decltype(Api::ours), decltype(&theirs)>::value(), #theirs " has other arguments")
KVC_SAME(init, cuInit);
KVC_SAME(driver_version, cuDriverGetVersion);
KVC_SAME(error_name, cuGetErrorName);
KVC_SAME(device_count, cuDeviceGetCount);
KVC_SAME(device_get, cuDeviceGet);
KVC_SAME(device_name, cuDeviceGetName);
KVC_SAME(device_attribute, cuDeviceGetAttribute);
KVC_SAME(context_retain, cuDevicePrimaryCtxRetain);
KVC_SAME(context_release, cuDevicePrimaryCtxRelease);
KVC_SAME(context_push, cuCtxPushCurrent);
KVC_SAME(context_pop, cuCtxPopCurrent);
KVC_SAME(priority_range, cuCtxGetStreamPriorityRange);
KVC_SAME(stream_create, cuStreamCreateWithPriority);
KVC_SAME(stream_destroy, cuStreamDestroy);
KVC_SAME(stream_synchronize, cuStreamSynchronize);
KVC_SAME(stream_wait_event, cuStreamWaitEvent);
KVC_SAME(stream_capturing, cuStreamIsCapturing);
KVC_SAME(event_create, cuEventCreate);
KVC_SAME(event_destroy, cuEventDestroy);
KVC_SAME(event_record, cuEventRecord);
KVC_SAME(event_synchronize, cuEventSynchronize);
KVC_SAME(pointer_attribute, cuPointerGetAttribute);
KVC_SAME(host_register, cuMemHostRegister);
KVC_SAME(host_unregister, cuMemHostUnregister);
KVC_SAME(host_alloc, cuMemHostAlloc);
KVC_SAME(host_free, cuMemFreeHost);
KVC_SAME(device_alloc, cuMemAlloc);
KVC_SAME(device_free, cuMemFree);
KVC_SAME(module_load, cuModuleLoadData);
KVC_SAME(module_unload, cuModuleUnload);
KVC_SAME(module_function, cuModuleGetFunction);
KVC_SAME(function_attribute, cuFuncSetAttribute);
KVC_SAME(launch, cuLaunchKernel);
KVC_SAME(copy, cuMemcpyAsync);
KVC_SAME(batch13, cuMemcpyBatchAsync);
#undef KVC_SAME

static_assert(sizeof(CopyAttributes) == sizeof(CUmemcpyAttributes));
static_assert(offsetof(CopyAttributes, source_order) == offsetof(CUmemcpyAttributes, srcAccessOrder));
static_assert(offsetof(CopyAttributes, source_hint) == offsetof(CUmemcpyAttributes, srcLocHint));
static_assert(offsetof(CopyAttributes, target_hint) == offsetof(CUmemcpyAttributes, dstLocHint));
static_assert(offsetof(CopyAttributes, flags) == offsetof(CUmemcpyAttributes, flags));
static_assert(sizeof(DevicePtr) == sizeof(CUdeviceptr) && kOk == CUDA_SUCCESS);
static_assert(kInvalidValue == CUDA_ERROR_INVALID_VALUE &&
              CopyAttributes{}.source_order == CU_MEMCPY_SRC_ACCESS_ORDER_STREAM);
static_assert(kStreamNonBlocking == CU_STREAM_NON_BLOCKING && kEventBlockingSync == CU_EVENT_BLOCKING_SYNC);
static_assert(kEventDisableTiming == CU_EVENT_DISABLE_TIMING && kMemoryTypeDevice == CU_MEMORYTYPE_DEVICE);
static_assert(kHostPortable == CU_MEMHOSTREGISTER_PORTABLE && kHostDeviceMap == CU_MEMHOSTREGISTER_DEVICEMAP);
static_assert(kHostPortable == CU_MEMHOSTALLOC_PORTABLE && kHostDeviceMap == CU_MEMHOSTALLOC_DEVICEMAP);

}  // namespace kvcommons::gpu::abi
