// A stand-in for libcuda.so.1 over the host's memory, loaded in its place by the tests: streams are threads, kernels
// are their host versions, and every call can be made to fail. It is strict where the driver is: contexts, streams,
// registrations, and memory that a kernel may touch. Environment, for tests of whole processes: FAKE_CUDA_VERSION
// (13000), FAKE_CUDA_MAJOR (9), FAKE_CUDA_ALL=1 (any memory that nobody registered is the device's).
#include "fake_cuda.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "kernels/gpu/copy_units.h"
#include "kernels/gpu/driver.h"
#include "kernels/gpu/transforms.h"

namespace gpu = kvcommons::gpu;
using gpu::Result;

namespace {

constexpr Result kInvalidContext = 201, kInvalidHandle = 400, kInvalidImage = 200, kNotFound = 500, kIllegal = 700;

struct Point {  // what an event stands for
  bool reached = false;
};
struct FakeEvent {
  std::shared_ptr<Point> point;
};
struct FakeStream {
  std::deque<std::function<Result()>> queue;
  bool held = false, busy = false, stop = false;
  std::thread thread;
};
struct Fault {
  int left = 0;
  Result code = 0;
};

struct World {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Fault> faults;
  std::map<std::string, int> calls;
  std::map<std::uintptr_t, std::size_t> device, host, areas;  // allocations; pinned memory; the test's own
  Result broken = 0;
  int objects = 0;
  FakeStream* legacy = nullptr;
};
World& world() {
  static World* const all = new World;  // outlives the threads
  return *all;
}
thread_local int contexts = 0;
int context_handle = 0;

int number_of(const char* name, int usual) {
  const char* const text = std::getenv(name);
  return text == nullptr ? usual : std::atoi(text);
}

// With the mutex held. Counts the call, and answers what it has to fail with.
Result enter(World& w, const char* name, bool in_context = true) {
  ++w.calls[name];
  Fault& fault = w.faults[name];
  if (fault.left > 0 && --fault.left == 0) return fault.code;
  if (w.broken != 0) return w.broken;
  return in_context && contexts == 0 ? kInvalidContext : gpu::kOk;
}
#define ENTER(...)                     \
  World& w = world();                  \
  const std::lock_guard lock(w.mutex); \
  if (const Result e = enter(w, __VA_ARGS__); e != gpu::kOk) return e

// 0: outside of all of them; 1: inside one; -1: partly.
int inside(const std::map<std::uintptr_t, std::size_t>& areas, std::uintptr_t start, std::size_t bytes) {
  for (const auto& [at, size] : areas) {
    if (start >= at && start + bytes <= at + size) return 1;
    if (start < at + size && start + bytes > at) return -1;
  }
  return 0;
}
bool is_device(const World& w, std::uintptr_t start, std::size_t bytes) {
  if (inside(w.device, start, bytes) == 1 || inside(w.areas, start, bytes) == 1) return true;
  return number_of("FAKE_CUDA_ALL", 0) != 0 && inside(w.host, start, bytes) == 0;
}
bool may_touch(const World& w, const void* start, std::size_t bytes) {
  const auto at = reinterpret_cast<std::uintptr_t>(start);
  return is_device(w, at, bytes) || inside(w.host, at, bytes) == 1;
}

void run_stream(FakeStream* stream) {
  World& w = world();
  std::unique_lock lock(w.mutex);
  for (;;) {
    w.changed.wait(lock, [&] { return stream->stop || (!stream->held && !stream->queue.empty()); });
    if (stream->queue.empty() || stream->held) return;
    const auto operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    Fault& fault = w.faults["stream"];
    const bool fails = fault.left > 0 && --fault.left == 0;
    if (fails) w.broken = fault.code;
    stream->busy = true;
    lock.unlock();
    const Result result = operation();
    lock.lock();
    stream->busy = false;
    if (result != gpu::kOk && w.broken == 0) w.broken = result;
    w.changed.notify_all();
  }
}

FakeStream* make_stream() {
  auto* const stream = new FakeStream;
  stream->thread = std::thread([stream] { run_stream(stream); });
  return stream;
}
// With the mutex held.
FakeStream* stream_of(World& w, gpu::Stream handle) {
  if (reinterpret_cast<std::uintptr_t>(handle) > gpu::kLegacyStream) return static_cast<FakeStream*>(handle);
  if (w.legacy == nullptr) w.legacy = make_stream();
  return w.legacy;
}
void put(World& w, FakeStream* stream, std::function<Result()> operation) {
  stream->queue.push_back(std::move(operation));
  w.changed.notify_all();
}

bool whole() {
  const std::lock_guard lock(world().mutex);
  return world().broken == 0;
}
void move(gpu::DevicePtr dst, gpu::DevicePtr src, std::size_t bytes) {
  if (whole()) std::memcpy(reinterpret_cast<void*>(dst), reinterpret_cast<const void*>(src), bytes);
}
// A copy may not leave a registration half-way.
bool copyable(const World& w, gpu::DevicePtr at, std::size_t bytes) { return inside(w.host, at, bytes) >= 0; }

Result run_units(bool ring, const gpu::CopyUnit* units, unsigned count, unsigned blocks) {
  {
    const std::lock_guard lock(world().mutex);
    if (world().broken != 0) return gpu::kOk;
    for (unsigned i = 0; i < count; ++i) {
      const gpu::CopyUnit& unit = units[i];
      if (!may_touch(world(), unit.src, unit.bytes) || !may_touch(world(), unit.dst, unit.bytes)) return kIllegal;
      if (ring && (gpu::access_bytes(unit) != gpu::kRingAlign || unit.bytes > gpu::kRingUnitBytes)) return kIllegal;
    }
  }
  for (unsigned block = 0; block < blocks; ++block) {
    for (unsigned thread = 0; thread < gpu::kCopyThreads; ++thread) {
      gpu::copy_units(units, count, block, blocks, thread, gpu::kCopyThreads);
    }
  }
  return gpu::kOk;
}

template <typename Job, typename One>
std::function<Result()> all_of(const Job& job, std::uint32_t count, One one) {
  return [=] {
    for (std::uint32_t i = 0; whole() && i < count; ++i) one(gpu::HostWarp{}, job, i);
    return gpu::kOk;
  };
}

Result init(unsigned) {
  ENTER("cuInit", false);
  return gpu::kOk;
}
Result driver_version(int* version) {
  *version = number_of("FAKE_CUDA_VERSION", 13'000);
  return gpu::kOk;
}
Result error_name(Result error, const char** name) {
  *name = error == kIllegal ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_OF_A_TEST";
  return gpu::kOk;
}
Result device_count(int* count) {
  ENTER("cuDeviceGetCount", false);
  *count = 1;
  return gpu::kOk;
}
Result device_get(int* device, int ordinal) {
  ENTER("cuDeviceGet", false);
  *device = ordinal;
  return ordinal == 0 ? gpu::kOk : kInvalidHandle;
}
Result device_name(char* name, int bytes, int) {
  std::strncpy(name, "a GPU that is none", static_cast<std::size_t>(bytes));
  return gpu::kOk;
}
Result device_attribute(int* value, int attribute, int) {
  const std::map<int, int> values = {
      {16, 132}, {75, number_of("FAKE_CUDA_MAJOR", 9)}, {76, 0}, {97, 232'448}, {91, number_of("FAKE_CUDA_MAPS", 1)}};
  const auto found = values.find(attribute);
  if (found == values.end()) return gpu::kInvalidValue;
  *value = found->second;
  return gpu::kOk;
}
Result context_retain(gpu::Context* context, int) {
  ENTER("cuDevicePrimaryCtxRetain", false);
  ++w.objects;
  *context = &context_handle;
  return gpu::kOk;
}
Result context_release(int) {
  const std::lock_guard lock(world().mutex);
  --world().objects;
  return gpu::kOk;
}
Result context_push(gpu::Context) {
  ENTER("cuCtxPushCurrent", false);
  ++contexts;
  return gpu::kOk;
}
Result context_pop(gpu::Context*) {
  --contexts;
  return gpu::kOk;
}
Result priority_range(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return gpu::kOk;
}
Result stream_create(gpu::Stream* stream, unsigned flags, int) {
  ENTER("cuStreamCreateWithPriority");
  if (flags != gpu::kStreamNonBlocking) return gpu::kInvalidValue;
  *stream = make_stream();
  ++w.objects;
  return gpu::kOk;
}
Result stream_destroy(gpu::Stream handle) {
  auto* const stream = static_cast<FakeStream*>(handle);
  {
    const std::lock_guard lock(world().mutex);
    stream->stop = true;
    stream->held = false;
    --world().objects;
    world().changed.notify_all();
  }
  stream->thread.join();
  delete stream;
  return gpu::kOk;
}
Result stream_synchronize(gpu::Stream handle) {
  World& w = world();
  std::unique_lock lock(w.mutex);
  if (const Result e = enter(w, "cuStreamSynchronize"); e != gpu::kOk) return e;
  FakeStream* const stream = stream_of(w, handle);
  w.changed.wait(lock, [&] { return w.broken != 0 || (stream->queue.empty() && !stream->busy); });
  return w.broken;
}
Result stream_wait_event(gpu::Stream handle, gpu::Event event, unsigned) {
  ENTER("cuStreamWaitEvent");
  put(w, stream_of(w, handle), [point = static_cast<FakeEvent*>(event)->point] {
    std::unique_lock waiting(world().mutex);
    world().changed.wait(waiting, [&] { return point == nullptr || point->reached || world().broken != 0; });
    return gpu::kOk;
  });
  return gpu::kOk;
}
Result stream_capturing(gpu::Stream, int* status) {
  ENTER("cuStreamIsCapturing");
  *status = number_of("FAKE_CUDA_CAPTURING", 0);
  return gpu::kOk;
}
Result event_create(gpu::Event* event, unsigned) {
  ENTER("cuEventCreate");
  *event = new FakeEvent;
  ++w.objects;
  return gpu::kOk;
}
Result event_destroy(gpu::Event event) {
  const std::lock_guard lock(world().mutex);
  delete static_cast<FakeEvent*>(event);
  --world().objects;
  return gpu::kOk;
}
Result event_record(gpu::Event event, gpu::Stream stream) {
  ENTER("cuEventRecord");
  const auto point = std::make_shared<Point>();
  static_cast<FakeEvent*>(event)->point = point;
  put(w, stream_of(w, stream), [point] {
    const std::lock_guard reaching(world().mutex);
    point->reached = true;
    return gpu::kOk;
  });
  return gpu::kOk;
}
Result event_synchronize(gpu::Event event) {
  World& w = world();
  std::unique_lock lock(w.mutex);
  if (const Result e = enter(w, "cuEventSynchronize"); e != gpu::kOk) return e;
  const auto point = static_cast<FakeEvent*>(event)->point;
  w.changed.wait(lock, [&] { return w.broken != 0 || point->reached; });
  return w.broken;
}
Result pointer_attribute(void* value, int attribute, gpu::DevicePtr pointer) {
  ENTER("cuPointerGetAttribute");
  const bool device = is_device(w, pointer, 1);
  if (!device && inside(w.host, pointer, 1) == 0) return gpu::kInvalidValue;
  const int answer = attribute == 2 ? (device ? gpu::kMemoryTypeDevice : 1) : 0;
  std::memcpy(value, &answer, sizeof answer);
  return gpu::kOk;
}
Result host_register(void* start, std::size_t bytes, unsigned) {
  ENTER("cuMemHostRegister");
  if (inside(w.host, reinterpret_cast<std::uintptr_t>(start), bytes) != 0) return 712;  // already registered
  w.host[reinterpret_cast<std::uintptr_t>(start)] = bytes;
  ++w.objects;
  return gpu::kOk;
}
Result host_unregister(void* start) {
  const std::lock_guard lock(world().mutex);
  const bool was = world().host.erase(reinterpret_cast<std::uintptr_t>(start)) == 1;
  world().objects -= was ? 1 : 0;
  return was ? gpu::kOk : gpu::kInvalidValue;
}
Result host_alloc(void** start, std::size_t bytes, unsigned) {
  ENTER("cuMemHostAlloc");
  *start = std::calloc(1, bytes);
  w.host[reinterpret_cast<std::uintptr_t>(*start)] = bytes;
  ++w.objects;
  return gpu::kOk;
}
Result host_free(void* start) {
  (void)host_unregister(start);
  std::free(start);
  return gpu::kOk;
}
Result device_alloc(gpu::DevicePtr* start, std::size_t bytes) {
  ENTER("cuMemAlloc");
  *start = reinterpret_cast<gpu::DevicePtr>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  w.device[*start] = bytes;
  ++w.objects;
  return gpu::kOk;
}
Result device_free(gpu::DevicePtr start) {
  const std::lock_guard lock(world().mutex);
  world().objects -= static_cast<int>(world().device.erase(start));
  std::free(reinterpret_cast<void*>(start));
  return gpu::kOk;
}
Result module_load(gpu::Module* module, const void* image) {
  ENTER("cuModuleLoadData");
  if (std::strncmp(static_cast<const char*>(image), "broken", 6) == 0) return kInvalidImage;
  *module = &w;
  ++w.objects;
  return gpu::kOk;
}
Result module_unload(gpu::Module) {
  const std::lock_guard lock(world().mutex);
  --world().objects;
  return gpu::kOk;
}
constexpr const char* kKernels[] = {"kvc_copy_units", "kvc_copy_ring", "kvc_quantise", "kvc_dequantise", "kvc_rope"};
Result module_function(gpu::Function* function, gpu::Module, const char* name) {
  ENTER("cuModuleGetFunction");
  for (const char* const& known : kKernels) {
    if (std::strcmp(known, name) != 0) continue;
    *function = const_cast<const char**>(&known);
    return gpu::kOk;
  }
  return kNotFound;
}
Result function_attribute(gpu::Function, int, int) {
  ENTER("cuFuncSetAttribute");
  return gpu::kOk;
}
Result launch(gpu::Function function, unsigned grid_x, unsigned, unsigned, unsigned block_x, unsigned, unsigned,
              unsigned shared_bytes, gpu::Stream handle, void** arguments, void**) {
  ENTER("cuLaunchKernel");
  const std::string name = *static_cast<const char**>(function);
  const bool ring = name == "kvc_copy_ring";
  if (grid_x == 0 || block_x == 0 || (ring && shared_bytes != gpu::kRingSharedBytes)) return gpu::kInvalidValue;
  FakeStream* const stream = stream_of(w, handle);
  if (ring || name == "kvc_copy_units") {
    const auto* const units = *static_cast<const gpu::CopyUnit**>(arguments[0]);
    const unsigned count = *static_cast<unsigned*>(arguments[1]);
    put(w, stream, [=] { return run_units(ring, units, count, grid_x); });
  } else if (name == "kvc_rope") {
    const auto job = *static_cast<gpu::RopeJob*>(arguments[0]);
    put(w, stream, all_of(job, job.rows, [](auto warp, auto& j, auto i) { gpu::rope(warp, j, i); }));
  } else {
    const auto job = *static_cast<gpu::QuantJob*>(arguments[0]);
    const bool there = name == "kvc_quantise";
    put(w, stream, all_of(job, job.tiles, [there](auto warp, auto& j, auto i) {
          there ? gpu::quantise(warp, j, i) : gpu::dequantise(warp, j, i);
        }));
  }
  return gpu::kOk;
}
Result copy(gpu::DevicePtr dst, gpu::DevicePtr src, std::size_t bytes, gpu::Stream stream) {
  ENTER("cuMemcpyAsync");
  if (!copyable(w, dst, bytes) || !copyable(w, src, bytes)) return gpu::kInvalidValue;
  put(w, stream_of(w, stream), [=] {
    move(dst, src, bytes);
    return gpu::kOk;
  });
  return gpu::kOk;
}
Result batch(gpu::DevicePtr* dsts, gpu::DevicePtr* srcs, std::size_t* bytes, std::size_t count,
             gpu::CopyAttributes* attributes, std::size_t* firsts, std::size_t attribute_count, gpu::Stream stream) {
  ENTER("cuMemcpyBatchAsync");
  if (reinterpret_cast<std::uintptr_t>(stream) <= gpu::kLegacyStream || count == 0) return gpu::kInvalidValue;
  if (attribute_count != 1 || firsts[0] != 0 || attributes->source_order != 1) return gpu::kInvalidValue;
  for (std::size_t i = count; i-- > 0;) {  // in an order of its own
    if (!copyable(w, dsts[i], bytes[i]) || !copyable(w, srcs[i], bytes[i])) return gpu::kInvalidValue;
    put(w, stream_of(w, stream), [dst = dsts[i], src = srcs[i], size = bytes[i]] {
      move(dst, src, size);
      return gpu::kOk;
    });
  }
  return gpu::kOk;
}
Result batch12(gpu::DevicePtr* dsts, gpu::DevicePtr* srcs, std::size_t* bytes, std::size_t count,
               gpu::CopyAttributes* attributes, std::size_t* firsts, std::size_t attribute_count, std::size_t*,
               gpu::Stream stream) {
  return batch(dsts, srcs, bytes, count, attributes, firsts, attribute_count, stream);
}

template <typename Fn>
void* address(Fn* function) {
  return reinterpret_cast<void*>(function);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

Result cuGetProcAddress_v2(const char* name, void** function, int version, std::uint64_t flags, int* status);
Result cuGetProcAddress_v2(const char* name, void** function, int version, std::uint64_t, int* status) {
  static const std::map<std::string, void*> all = {
      {"cuInit", address(init)},
      {"cuDriverGetVersion", address(driver_version)},
      {"cuGetErrorName", address(error_name)},
      {"cuDeviceGetCount", address(device_count)},
      {"cuDeviceGet", address(device_get)},
      {"cuDeviceGetName", address(device_name)},
      {"cuDeviceGetAttribute", address(device_attribute)},
      {"cuDevicePrimaryCtxRetain", address(context_retain)},
      {"cuDevicePrimaryCtxRelease", address(context_release)},
      {"cuCtxPushCurrent", address(context_push)},
      {"cuCtxPopCurrent", address(context_pop)},
      {"cuCtxGetStreamPriorityRange", address(priority_range)},
      {"cuStreamCreateWithPriority", address(stream_create)},
      {"cuStreamDestroy", address(stream_destroy)},
      {"cuStreamSynchronize", address(stream_synchronize)},
      {"cuStreamWaitEvent", address(stream_wait_event)},
      {"cuStreamIsCapturing", address(stream_capturing)},
      {"cuEventCreate", address(event_create)},
      {"cuEventDestroy", address(event_destroy)},
      {"cuEventRecord", address(event_record)},
      {"cuEventSynchronize", address(event_synchronize)},
      {"cuPointerGetAttribute", address(pointer_attribute)},
      {"cuMemHostRegister", address(host_register)},
      {"cuMemHostUnregister", address(host_unregister)},
      {"cuMemHostAlloc", address(host_alloc)},
      {"cuMemFreeHost", address(host_free)},
      {"cuMemAlloc", address(device_alloc)},
      {"cuMemFree", address(device_free)},
      {"cuModuleLoadData", address(module_load)},
      {"cuModuleUnload", address(module_unload)},
      {"cuModuleGetFunction", address(module_function)},
      {"cuFuncSetAttribute", address(function_attribute)},
      {"cuLaunchKernel", address(launch)},
      {"cuMemcpyAsync", address(copy)},
  };
  *status = 0;
  if (std::strcmp(name, "cuMemcpyBatchAsync") == 0) {
    *function = version >= 13'000 ? address(batch) : address(batch12);
    return gpu::kOk;
  }
  const auto found = all.find(name);
  *function = found == all.end() ? nullptr : found->second;
  *status = found == all.end() ? 1 : 0;
  return gpu::kOk;
}

void fake_cuda_fail(const char* name, int nth, int code) {
  const std::lock_guard lock(world().mutex);
  world().faults[name] = {nth, code};
}
void fake_cuda_reset() {
  const std::lock_guard lock(world().mutex);
  world().faults.clear();
  world().calls.clear();
  world().areas.clear();
  world().broken = 0;
}
void fake_cuda_device_memory(const void* start, std::size_t bytes) {
  const std::lock_guard lock(world().mutex);
  world().areas[reinterpret_cast<std::uintptr_t>(start)] = bytes;
}
void fake_cuda_hold(void* stream) {
  const std::lock_guard lock(world().mutex);
  stream_of(world(), stream)->held = true;
}
void fake_cuda_release(void* stream) {
  const std::lock_guard lock(world().mutex);
  stream_of(world(), stream)->held = false;
  world().changed.notify_all();
}
int fake_cuda_objects() {
  const std::lock_guard lock(world().mutex);
  return world().objects;
}
int fake_cuda_calls(const char* name) {
  const std::lock_guard lock(world().mutex);
  return world().calls[name];
}

}  // extern "C"
#pragma GCC visibility pop
