#include "driver.h"

#include <dlfcn.h>

#include <map>
#include <mutex>

namespace kvcommons::gpu {
namespace {

constexpr const char* kLibrary = "libcuda.so.1";

int attribute_number(DeviceAttribute which) {
  switch (which) {
    case DeviceAttribute::Processors:
      return 16;
    case DeviceAttribute::Major:
      return 75;
    case DeviceAttribute::Minor:
      return 76;
    case DeviceAttribute::SharedBytesMax:
      return 97;
    case DeviceAttribute::HostPointers:
      return 91;
  }
  return -1;
}

}  // namespace

void* Driver::find(const char* name, int version) const {
  void* function = nullptr;
  int status = 0;
  if (get_address_(name, &function, version, 0, &status) != kOk || status != 0) return nullptr;
  return function;
}

template <typename Fn>
bool Driver::find(Fn* out, const char* name, std::string* why) const {
  *out = reinterpret_cast<Fn>(find(name, kVersionMin));
  if (*out == nullptr) *why = std::string("the GPU's driver has no ") + name + ": install a newer one";
  return *out != nullptr;
}

bool Driver::find_all(std::string* why) {
  const auto get = [&](auto* out, const char* name) { return find(out, name, why); };
  return get(&api.init, "cuInit") && get(&api.driver_version, "cuDriverGetVersion") &&
         get(&api.error_name, "cuGetErrorName") && get(&api.device_count, "cuDeviceGetCount") &&
         get(&api.device_get, "cuDeviceGet") && get(&api.device_name, "cuDeviceGetName") &&
         get(&api.device_attribute, "cuDeviceGetAttribute") && get(&api.context_retain, "cuDevicePrimaryCtxRetain") &&
         get(&api.context_release, "cuDevicePrimaryCtxRelease") && get(&api.context_push, "cuCtxPushCurrent") &&
         get(&api.context_pop, "cuCtxPopCurrent") && get(&api.priority_range, "cuCtxGetStreamPriorityRange") &&
         get(&api.stream_create, "cuStreamCreateWithPriority") && get(&api.stream_destroy, "cuStreamDestroy") &&
         get(&api.stream_synchronize, "cuStreamSynchronize") && get(&api.stream_wait_event, "cuStreamWaitEvent") &&
         get(&api.stream_capturing, "cuStreamIsCapturing") && get(&api.event_create, "cuEventCreate") &&
         get(&api.event_destroy, "cuEventDestroy") && get(&api.event_record, "cuEventRecord") &&
         get(&api.event_synchronize, "cuEventSynchronize") && get(&api.pointer_attribute, "cuPointerGetAttribute") &&
         get(&api.host_register, "cuMemHostRegister") && get(&api.host_unregister, "cuMemHostUnregister") &&
         get(&api.host_alloc, "cuMemHostAlloc") && get(&api.host_free, "cuMemFreeHost") &&
         get(&api.device_alloc, "cuMemAlloc") && get(&api.device_free, "cuMemFree") &&
         get(&api.module_load, "cuModuleLoadData") && get(&api.module_unload, "cuModuleUnload") &&
         get(&api.module_function, "cuModuleGetFunction") && get(&api.function_attribute, "cuFuncSetAttribute") &&
         get(&api.launch, "cuLaunchKernel") && get(&api.copy, "cuMemcpyAsync");
}

void Driver::find_batch() {
  if (version_ >= 13'000) {
    api.batch13 = reinterpret_cast<decltype(api.batch13)>(find("cuMemcpyBatchAsync", 13'000));
  } else if (version_ >= 12'080) {
    api.batch12 = reinterpret_cast<decltype(api.batch12)>(find("cuMemcpyBatchAsync", 12'080));
  }
}

std::shared_ptr<const Driver> Driver::load(const std::string& library, std::string* why) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<const Driver>> loaded;
  const std::string path = library.empty() ? kLibrary : library;
  const std::lock_guard lock(mutex);
  if (const auto found = loaded.find(path); found != loaded.end()) return found->second;
  void* const handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open
  if (handle == nullptr) {
    *why = path + " is not on this machine: it comes with the GPU's driver";
    return nullptr;
  }
  const std::shared_ptr<Driver> driver(new Driver);
  driver->get_address_ = reinterpret_cast<decltype(driver->get_address_)>(dlsym(handle, "cuGetProcAddress_v2"));
  if (driver->get_address_ == nullptr) {
    *why = path + " is older than CUDA 12.0: install a driver of version 525 or newer";
    return nullptr;
  }
  if (!driver->find_all(why)) return nullptr;
  if (const Result error = driver->api.init(0); error != kOk) {
    *why = "the GPU's driver does not start: " + driver->name_of(error);
    return nullptr;
  }
  if (driver->api.driver_version(&driver->version_) != kOk) driver->version_ = 0;
  driver->find_batch();
  loaded.emplace(path, driver);
  return driver;
}

std::string Driver::name_of(Result error) const {
  const char* name = nullptr;
  if (api.error_name == nullptr || api.error_name(error, &name) != kOk || name == nullptr) {
    return "error " + std::to_string(error);
  }
  return std::string(name) + " (" + std::to_string(error) + ")";
}

int Driver::attribute(DeviceAttribute which, int device) const {
  int value = 0;
  return api.device_attribute(&value, attribute_number(which), device) == kOk ? value : 0;
}

int Driver::device_of(DevicePtr pointer) const {
  constexpr int kMemoryType = 2, kOrdinal = 9;  // CU_POINTER_ATTRIBUTE_...
  unsigned type = 0;
  int ordinal = -1;
  if (api.pointer_attribute(&type, kMemoryType, pointer) != kOk || type != kMemoryTypeDevice) return -1;
  return api.pointer_attribute(&ordinal, kOrdinal, pointer) == kOk ? ordinal : -1;
}

Result Driver::copy_batch(DevicePtr* dsts, DevicePtr* srcs, std::size_t* bytes, std::size_t count,
                          Stream stream) const {
  CopyAttributes attributes;
  std::size_t first = 0, failed = 0;  // attributes of all copies from the first one on
  if (api.batch13 != nullptr) return api.batch13(dsts, srcs, bytes, count, &attributes, &first, 1, stream);
  if (api.batch12 == nullptr) return kInvalidValue;
  return api.batch12(dsts, srcs, bytes, count, &attributes, &first, 1, &failed, stream);
}

}  // namespace kvcommons::gpu
