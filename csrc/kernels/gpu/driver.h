// A GPU's driver (CUDA's), found at run time: nothing links it, and a machine without one only hears why it has none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace kvcommons::gpu {

// The part of the driver's binary interface that is used. abi_check.h holds it against the vendor's own headers.
using Result = int;
using DevicePtr = std::uint64_t;
using Context = void*;
using Stream = void*;
using Event = void*;
using Module = void*;
using Function = void*;

inline constexpr Result kOk = 0;
inline constexpr Result kInvalidValue = 1;
inline constexpr unsigned kStreamNonBlocking = 1;
inline constexpr unsigned kEventBlockingSync = 1, kEventDisableTiming = 2;
inline constexpr unsigned kHostPortable = 1, kHostDeviceMap = 2;  // of cuMemHostRegister and cuMemHostAlloc
inline constexpr int kMemoryTypeDevice = 2;
inline constexpr std::uintptr_t kLegacyStream = 1;  // the handle that names the stream 0 explicitly

struct MemLocation {
  int type = 0;
  int id = 0;
};
struct CopyAttributes {
  int source_order = 1;  // the source is read in the stream's order
  MemLocation source_hint, target_hint;
  unsigned flags = 0;
};
struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

enum class DeviceAttribute : std::uint8_t { Processors, Major, Minor, SharedBytesMax, HostPointers };

// Every function of it may be called from any thread; but for init and those that name a device, with a context
// current.
struct Api {
  Result (*init)(unsigned flags) = nullptr;
  Result (*driver_version)(int* version) = nullptr;
  Result (*error_name)(Result error, const char** name) = nullptr;
  Result (*device_count)(int* count) = nullptr;
  Result (*device_get)(int* device, int ordinal) = nullptr;
  Result (*device_name)(char* name, int bytes, int device) = nullptr;
  Result (*device_attribute)(int* value, int attribute, int device) = nullptr;
  Result (*context_retain)(Context* context, int device) = nullptr;
  Result (*context_release)(int device) = nullptr;
  Result (*context_push)(Context context) = nullptr;
  Result (*context_pop)(Context* context) = nullptr;
  Result (*priority_range)(int* least, int* greatest) = nullptr;
  Result (*stream_create)(Stream* stream, unsigned flags, int priority) = nullptr;
  Result (*stream_destroy)(Stream stream) = nullptr;
  Result (*stream_synchronize)(Stream stream) = nullptr;
  Result (*stream_wait_event)(Stream stream, Event event, unsigned flags) = nullptr;
  Result (*stream_capturing)(Stream stream, int* status) = nullptr;
  Result (*event_create)(Event* event, unsigned flags) = nullptr;
  Result (*event_destroy)(Event event) = nullptr;
  Result (*event_record)(Event event, Stream stream) = nullptr;
  Result (*event_synchronize)(Event event) = nullptr;
  Result (*pointer_attribute)(void* value, int attribute, DevicePtr pointer) = nullptr;
  Result (*host_register)(void* start, std::size_t bytes, unsigned flags) = nullptr;
  Result (*host_unregister)(void* start) = nullptr;
  Result (*host_alloc)(void** start, std::size_t bytes, unsigned flags) = nullptr;
  Result (*host_free)(void* start) = nullptr;
  Result (*device_alloc)(DevicePtr* start, std::size_t bytes) = nullptr;
  Result (*device_free)(DevicePtr start) = nullptr;
  Result (*module_load)(Module* module, const void* image) = nullptr;
  Result (*module_unload)(Module module) = nullptr;
  Result (*module_function)(Function* function, Module module, const char* name) = nullptr;
  Result (*function_attribute)(Function function, int attribute, int value) = nullptr;
  Result (*launch)(Function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream stream, void** arguments,
                   void** extra) = nullptr;
  Result (*copy)(DevicePtr dst, DevicePtr src, std::size_t bytes, Stream stream) = nullptr;
  // At most one of these two: without and with the index of the copy that failed (CUDA 13, CUDA 12.8).
  Result (*batch13)(DevicePtr* dsts, DevicePtr* srcs, std::size_t* bytes, std::size_t count, CopyAttributes* attributes,
                    std::size_t* attribute_firsts, std::size_t attribute_count, Stream stream) = nullptr;
  Result (*batch12)(DevicePtr* dsts, DevicePtr* srcs, std::size_t* bytes, std::size_t count, CopyAttributes* attributes,
                    std::size_t* attribute_firsts, std::size_t attribute_count, std::size_t* failed,
                    Stream stream) = nullptr;
};

class Driver {
 public:
  static constexpr int kVersionMin = 12'000;

  // library: a path or soname; empty: the usual one. Loaded once a path, and never unloaded. nullptr: *why says what is
  // missing on this machine, and what to do.
  static std::shared_ptr<const Driver> load(const std::string& library, std::string* why);

  Api api;
  [[nodiscard]] int version() const noexcept { return version_; }  // 13000 for 13.0
  [[nodiscard]] bool has_batch() const noexcept { return api.batch12 != nullptr || api.batch13 != nullptr; }
  [[nodiscard]] std::string name_of(Result error) const;
  // 0 where the driver does not know.
  [[nodiscard]] int attribute(DeviceAttribute which, int device) const;
  // Kind of memory at an address of a device: its ordinal, or -1 where it is none of a device's.
  [[nodiscard]] int device_of(DevicePtr pointer) const;

  // In no order among themselves; the stream must be a real one. With has_batch() only.
  Result copy_batch(DevicePtr* dsts, DevicePtr* srcs, std::size_t* bytes, std::size_t count, Stream stream) const;

 private:
  Driver() = default;
  bool find_all(std::string* why);
  void find_batch();
  template <typename Fn>
  bool find(Fn* out, const char* name, std::string* why) const;
  void* find(const char* name, int version) const;

  int version_ = 0;
  Result (*get_address_)(const char* name, void** function, int version, std::uint64_t flags, int* status) = nullptr;
};

}  // namespace kvcommons::gpu
