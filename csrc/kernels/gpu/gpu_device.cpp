#include "gpu_device.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "kernels/gpu/warp.h"

namespace kvcommons::gpu {
namespace {

const std::byte* host_side(Device::Way way, const kernels::CopyRun& run) {
  return way == Device::Way::Load ? run.src : run.dst;
}

}  // namespace

GpuDevice::GpuDevice(const GpuOptions& options)
    : context_(std::make_shared<GpuContext>(options.library, options.ordinal)) {
  const GpuContext::Current current(*context_);
  if (!current.ok()) context_->throw_last("GPU " + std::to_string(options.ordinal) + " can not be used");
  kernels_ = std::make_shared<GpuKernels>(context_, options.kernels);
  events_ = std::make_unique<EventPool>(*context_);
  load_lane_ = std::make_unique<Lane>(context_, kernels_, Way::Load);
  store_lane_ = std::make_unique<Lane>(context_, kernels_, Way::Store);
  if (options.calibrate) calibrate();
}

GpuDevice::~GpuDevice() {
  const GpuContext::Current current(*context_);
  for (auto& [mark, event] : engine_marks_) events_->give_back(event);
  const bool idle = load_lane_->synchronize() && store_lane_->synchronize();
  for (auto& [mark, copy] : copies_) {
    events_->give_back(copy.event);
    if (!idle) keep_for_good(std::move(copy.buffers));
  }
  for (const auto& [start, bytes] : pins_) {
    (void)KVCOMMONS_GPU_TRY(*context_, context_->api().host_unregister(const_cast<std::byte*>(start)));
  }
  load_lane_.reset();
  store_lane_.reset();
  copies_.clear();
  events_.reset();
}

void GpuDevice::check_memory(std::uintptr_t start, std::uint64_t bytes) const {
  const GpuContext::Current current(*context_);
  if (bytes == 0) return;
  for (const std::uint64_t at : {std::uint64_t{start}, start + bytes - 1}) {
    const int device = context_->driver().device_of(at);
    if (device == context_->ordinal()) continue;
    throw std::invalid_argument("KV at address " + std::to_string(at) + " is not memory of GPU " +
                                std::to_string(context_->ordinal()) + " but of " +
                                (device < 0 ? "no GPU" : "GPU " + std::to_string(device)) +
                                ": pass the layers of the GPU that the engine runs on");
  }
}

Device::Mark GpuDevice::mark(std::uintptr_t stream) {
  if (stream == 0) return 0;
  const GpuContext::Current current(*context_);
  Event event = nullptr;
  if (current.ok()) {
    Stream const handle = reinterpret_cast<Stream>(stream);
    int capturing = 0;
    if (KVCOMMONS_GPU_TRY(*context_, context_->api().stream_capturing(handle, &capturing)) && capturing == 0) {
      event = events_->take();
    }
    if (event != nullptr && !KVCOMMONS_GPU_TRY(*context_, context_->api().event_record(event, handle))) {
      events_->give_back(std::exchange(event, nullptr));
    }
  }
  const std::lock_guard lock(mutex_);
  engine_marks_.emplace(++last_mark_, event);
  return last_mark_;
}

void GpuDevice::drop(Mark mark) {
  bool broken = false;
  events_->give_back(take_engine_event(mark, &broken));
}

Event GpuDevice::take_engine_event(Mark mark, bool* broken) {
  if (mark == 0) return nullptr;
  const std::lock_guard lock(mutex_);
  const auto found = engine_marks_.extract(mark);
  Event event = found.empty() ? nullptr : found.mapped();
  *broken = event == nullptr;  // what it stood for can't be waited for
  return event;
}

Device::Mark GpuDevice::copy(Way way, std::span<const kernels::CopyRun> runs, Mark after) {
  const Traits traits = traits_of(way, runs, is_pinned(way, runs));
  return copy_by(choose(way, traits, lane_of(way).abilities(), costs_), way, runs, after);
}

Device::Mark GpuDevice::copy_by(Method method, Way way, std::span<const kernels::CopyRun> runs, Mark after) {
  bool broken = false;
  Event event = take_engine_event(after, &broken);
  const Traits traits = traits_of(way, runs, is_pinned(way, runs));
  if (broken || !can_use(method, traits, lane_of(way).abilities())) {
    events_->give_back(event);
    return 0;
  }
  const Mark mark = submit(way, method, runs, event);
  events_->give_back(event);  // a wait for it stands for what was recorded before
  return mark;
}

Device::Mark GpuDevice::submit(Way way, Method method, std::span<const kernels::CopyRun> runs, Event after) {
  const GpuContext::Current current(*context_);
  if (!current.ok()) return 0;
  Lane& lane = lane_of(way);
  const std::lock_guard lane_lock(lane.mutex());
  if (after != nullptr && !lane.wait_for(after)) return 0;
  Copy copy;
  copy.failed = !lane.put(method, runs, &copy.buffers);
  copy.event = events_->take();
  if (copy.event == nullptr || !KVCOMMONS_GPU_TRY(*context_, context_->api().event_record(copy.event, lane.stream()))) {
    events_->give_back(std::exchange(copy.event, nullptr));
    copy.failed = true;
  }
  if (copy.failed && lane.synchronize()) {  // what had been put has ended: refused as a whole
    events_->give_back(copy.event);
    lane.give_back(std::move(copy.buffers));
    return 0;
  }
  const std::lock_guard lock(mutex_);
  ++copies_by_[static_cast<std::size_t>(method)];
  copies_.emplace(++last_mark_, std::move(copy));
  return last_mark_;
}

Device::State GpuDevice::wait(Way way, Mark mark) {
  Copy copy;
  {
    const std::lock_guard lock(mutex_);
    const auto found = copies_.extract(mark);
    if (found.empty()) return State::Lost;
    copy = std::move(found.mapped());
  }
  Lane& lane = lane_of(way);
  const GpuContext::Current current(*context_);
  const bool ended =
      current.ok() &&
      (copy.failed ? lane.synchronize() : KVCOMMONS_GPU_TRY(*context_, context_->api().event_synchronize(copy.event)));
  events_->give_back(copy.event);
  if (!ended) {
    keep_for_good(std::move(copy.buffers));
    return State::Lost;
  }
  lane.give_back(std::move(copy.buffers));
  return copy.failed ? State::Failed : State::Done;
}

Device::State GpuDevice::transform(Function function, std::uint32_t warps, const void* job) {
  constexpr unsigned kWarps = kTransformThreads / kLanes, kBlocksMax = 4'096;
  const GpuContext::Current current(*context_);
  if (!current.ok() || function == nullptr) return State::Failed;
  if (warps == 0) return State::Done;
  void* arguments[] = {const_cast<void*>(job)};
  const unsigned blocks = std::min(kBlocksMax, (warps + kWarps - 1) / kWarps);
  const std::lock_guard lane_lock(store_lane_->mutex());
  if (!kernels_->launch(function, blocks, kTransformThreads, 0, store_lane_->stream(), arguments)) {
    return State::Failed;
  }
  return store_lane_->synchronize() ? State::Done : State::Lost;
}

bool GpuDevice::pin(std::byte* start, std::size_t bytes) {
  const GpuContext::Current current(*context_);
  if (!current.ok()) return false;
  const bool pinned =
      KVCOMMONS_GPU_TRY(*context_, context_->api().host_register(start, bytes, kHostPortable | kHostDeviceMap));
  const std::lock_guard lock(mutex_);
  if (pinned) pins_[start] = bytes;
  return pinned;
}

void GpuDevice::unpin(std::byte* start) {
  {
    const std::lock_guard lock(mutex_);
    pins_.erase(start);
  }
  const GpuContext::Current current(*context_);
  if (current.ok()) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().host_unregister(start));
}

bool GpuDevice::is_pinned(Way way, std::span<const kernels::CopyRun> runs) const {
  const std::lock_guard lock(mutex_);
  const std::byte *begin = nullptr, *end = nullptr;  // of the piece that the last run was in
  return std::all_of(runs.begin(), runs.end(), [&](const kernels::CopyRun& run) {
    const std::byte* const at = host_side(way, run);
    if (begin == nullptr || at < begin || at >= end) {
      const auto next = pins_.upper_bound(at);
      if (next == pins_.begin()) return false;
      begin = std::prev(next)->first;
      end = begin + std::prev(next)->second;
    }
    return at < end && run.bytes <= static_cast<std::size_t>(end - at);
  });
}

std::string GpuDevice::description() const {
  const int version = context_->driver().version();
  return context_->name() + ", sm_" + std::to_string(context_->attribute(DeviceAttribute::Major)) +
         std::to_string(context_->attribute(DeviceAttribute::Minor)) + ", driver " + std::to_string(version / 1000) +
         "." + std::to_string(version % 1000 / 10) + (kernels_->missing.empty() ? "" : "; " + kernels_->missing);
}

std::string GpuDevice::last_error() const { return context_->last_error(); }

std::uint64_t GpuDevice::copies_by(Method method) const {
  const std::lock_guard lock(mutex_);
  return copies_by_[static_cast<std::size_t>(method)];
}

}  // namespace kvcommons::gpu
