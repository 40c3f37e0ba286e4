#include "gpu_context.h"

#include <array>
#include <stdexcept>

namespace kvcommons::gpu {
namespace {

std::shared_ptr<const Driver> driver_or_throw(const std::string& library) {
  std::string why;
  auto driver = Driver::load(library, &why);
  if (driver == nullptr) throw std::runtime_error(why);
  return driver;
}

}  // namespace

GpuContext::GpuContext(const std::string& library, int ordinal) : driver_(driver_or_throw(library)), ordinal_(ordinal) {
  int count = 0;
  if (!KVCOMMONS_GPU_TRY(*this, api().device_count(&count))) throw_last("no GPU answers");
  if (ordinal < 0 || ordinal >= count) {
    throw std::runtime_error("GPU " + std::to_string(ordinal) + " is not there: this process sees " +
                             std::to_string(count));
  }
  if (!KVCOMMONS_GPU_TRY(*this, api().device_get(&device_, ordinal)) ||
      !KVCOMMONS_GPU_TRY(*this, api().context_retain(&context_, device_))) {
    throw_last("GPU " + std::to_string(ordinal) + " can not be used");
  }
}

GpuContext::~GpuContext() { (void)KVCOMMONS_GPU_TRY(*this, api().context_release(device_)); }

std::string GpuContext::name() const {
  std::array<char, 256> name{};
  if (!KVCOMMONS_GPU_TRY(*this, api().device_name(name.data(), static_cast<int>(name.size()) - 1, device_))) return "?";
  return name.data();
}

bool GpuContext::check(Result result, const char* call, const char* file, int line) const {
  if (result == kOk) return true;
  std::string error = driver_->name_of(result) + " from " + call + " (" + file + ":" + std::to_string(line) + ")";
  const std::lock_guard lock(mutex_);
  error_ = std::move(error);
  return false;
}

std::string GpuContext::last_error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

void GpuContext::throw_last(const std::string& what) const { throw std::runtime_error(what + ": " + last_error()); }

GpuContext::Current::Current(const GpuContext& context)
    : context_(context), ok_(KVCOMMONS_GPU_TRY(context, context.api().context_push(context.context_))) {}

GpuContext::Current::~Current() {
  Context popped = nullptr;
  if (ok_) (void)KVCOMMONS_GPU_TRY(context_, context_.api().context_pop(&popped));
}

GpuKernels::GpuKernels(std::shared_ptr<const GpuContext> of, const std::string& image) : context_(std::move(of)) {
  abilities.batch = context_->driver().has_batch();
  if (image.empty()) {
    missing = "this build has no kernels for GPUs: build it with KVCOMMONS_GPU=cuda";
    return;
  }
  load(image);
}

void GpuKernels::load(const std::string& image) {
  const GpuContext& context = *context_;
  const Api& api = context.api();
  if (!KVCOMMONS_GPU_TRY(context, api.module_load(&module_, image.c_str()))) {
    missing = "the kernels do not run on this GPU or driver: " + context.last_error();
    return;
  }
  const auto find = [&](Function* function, const char* name) {
    return KVCOMMONS_GPU_TRY(context, api.module_function(function, module_, name));
  };
  if (!find(&units, "kvc_copy_units") || !find(&ring, "kvc_copy_ring") || !find(&quantise, "kvc_quantise") ||
      !find(&dequantise, "kvc_dequantise") || !find(&rope, "kvc_rope")) {
    missing = "the kernels are another version's: build them anew (" + context.last_error() + ")";
    return;
  }
  abilities.staged = true;
  abilities.warps = context.attribute(DeviceAttribute::HostPointers) != 0;
  constexpr int kDynamicSharedBytes = 8, kMajorMin = 9;  // bulk copies begin with sm_90
  if (!abilities.warps || context.attribute(DeviceAttribute::Major) < kMajorMin) return;
  if (context.attribute(DeviceAttribute::SharedBytesMax) < static_cast<int>(kRingSharedBytes)) return;
  abilities.ring =
      KVCOMMONS_GPU_TRY(context, api.function_attribute(ring, kDynamicSharedBytes, static_cast<int>(kRingSharedBytes)));
}

GpuKernels::~GpuKernels() {
  const GpuContext::Current current(*context_);
  if (module_ != nullptr && current.ok()) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().module_unload(module_));
}

bool GpuKernels::launch(Function function, unsigned blocks, unsigned threads, unsigned shared_bytes, Stream stream,
                        void** arguments) const {
  return KVCOMMONS_GPU_TRY(*context_, context_->api().launch(function, blocks, 1, 1, threads, 1, 1, shared_bytes,
                                                             stream, arguments, nullptr));
}

EventPool::~EventPool() {
  for (Event event : free_) (void)KVCOMMONS_GPU_TRY(context_, context_.api().event_destroy(event));
}

Event EventPool::take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      Event event = free_.back();
      free_.pop_back();
      return event;
    }
  }
  Event event = nullptr;
  const bool made =
      KVCOMMONS_GPU_TRY(context_, context_.api().event_create(&event, kEventBlockingSync | kEventDisableTiming));
  return made ? event : nullptr;
}

void EventPool::give_back(Event event) {
  if (event == nullptr) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(event);
}

}  // namespace kvcommons::gpu
