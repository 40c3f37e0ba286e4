#include "gpu_lane.h"

#include <algorithm>
#include <cstring>

namespace kvcommons::gpu {
namespace {

constexpr std::size_t kBatchMax = 32'768;

DevicePtr pointer(const std::byte* at) { return reinterpret_cast<DevicePtr>(at); }

}  // namespace

std::unique_ptr<UnitBuffer> UnitBuffer::make(std::shared_ptr<const GpuContext> context) {
  const GpuContext& c = *context;
  constexpr std::size_t kBytes = kUnitsMax * sizeof(CopyUnit);
  std::unique_ptr<UnitBuffer> buffer(new UnitBuffer(std::move(context)));
  if (!KVCOMMONS_GPU_TRY(c, c.api().host_alloc(&buffer->host, kBytes, kHostPortable)) ||
      !KVCOMMONS_GPU_TRY(c, c.api().device_alloc(&buffer->device, kBytes))) {
    return nullptr;
  }
  return buffer;
}

UnitBuffer::~UnitBuffer() {
  const GpuContext::Current current(*context_);
  if (!current.ok()) return;
  if (host != nullptr) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().host_free(host));
  if (device != 0) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().device_free(device));
}

void keep_for_good(UnitBuffers buffers) {
  static std::mutex mutex;
  static auto* const kept = new UnitBuffers;  // not destroyed when the process ends
  const std::lock_guard lock(mutex);
  for (auto& buffer : buffers) kept->push_back(std::move(buffer));
}

Lane::Lane(std::shared_ptr<const GpuContext> context, std::shared_ptr<const GpuKernels> kernels, Device::Way way)
    : context_(std::move(context)), kernels_(std::move(kernels)), way_(way) {
  const Api& api = context_->api();
  int least = 0, greatest = 0;  // a smaller number comes first
  (void)KVCOMMONS_GPU_TRY(*context_, api.priority_range(&least, &greatest));
  const int priority = way == Device::Way::Load ? greatest : least;
  if (!KVCOMMONS_GPU_TRY(*context_, api.stream_create(&stream_, kStreamNonBlocking, priority))) {
    context_->throw_last("the GPU gives no stream");
  }
  if (kernels_->abilities.staged && !KVCOMMONS_GPU_TRY(*context_, api.device_alloc(&staging_, kStagingBytes))) {
    staging_ = 0;
  }
}

Lane::~Lane() {
  const GpuContext::Current current(*context_);
  if (!current.ok() || !synchronize()) {  // nobody knows what still runs: its memory stays
    keep_for_good(std::move(free_));
    return;
  }
  if (staging_ != 0) (void)KVCOMMONS_GPU_TRY(*context_, context_->api().device_free(staging_));
  (void)KVCOMMONS_GPU_TRY(*context_, context_->api().stream_destroy(stream_));
}

Abilities Lane::abilities() const noexcept {
  Abilities abilities = kernels_->abilities;
  abilities.staged = abilities.staged && staging_ != 0;
  return abilities;
}

bool Lane::synchronize() const { return KVCOMMONS_GPU_TRY(*context_, context_->api().stream_synchronize(stream_)); }

bool Lane::wait_for(Event event) {
  return KVCOMMONS_GPU_TRY(*context_, context_->api().stream_wait_event(stream_, event, 0));
}

bool Lane::put(Method method, std::span<const kernels::CopyRun> runs, UnitBuffers* used) {
  switch (method) {
    case Method::Batch:
      return put_batch(runs);
    case Method::Warps:
      return put_kernel(method, runs, GpuKernels::kWarpsBlocks, used);
    case Method::Ring:
      return put_kernel(method, runs, GpuKernels::kRingBlocks, used);
    case Method::Staged:
      return put_staged(runs, used);
    case Method::Loop:
      break;
  }
  return put_loop(runs);
}

bool Lane::put_loop(std::span<const kernels::CopyRun> runs) {
  return std::all_of(runs.begin(), runs.end(), [&](const kernels::CopyRun& run) {
    return KVCOMMONS_GPU_TRY(*context_, context_->api().copy(pointer(run.dst), pointer(run.src), run.bytes, stream_));
  });
}

bool Lane::put_batch(std::span<const kernels::CopyRun> runs) {
  for (; !runs.empty(); runs = runs.subspan(std::min(kBatchMax, runs.size()))) {
    dsts_.clear();
    srcs_.clear();
    bytes_.clear();
    for (const kernels::CopyRun& run : runs.first(std::min(kBatchMax, runs.size()))) {
      dsts_.push_back(pointer(run.dst));
      srcs_.push_back(pointer(run.src));
      bytes_.push_back(run.bytes);
    }
    const Result result =
        context_->driver().copy_batch(dsts_.data(), srcs_.data(), bytes_.data(), bytes_.size(), stream_);
    if (!context_->check(result, "cuMemcpyBatchAsync", __FILE__, __LINE__)) return false;
  }
  return true;
}

bool Lane::put_kernel(Method method, std::span<const kernels::CopyRun> runs, unsigned blocks, UnitBuffers* used) {
  const bool ring = method == Method::Ring;
  cut_units(runs, ring ? kRingUnitBytes : kUnitBytes, &units_);
  for (std::size_t first = 0; first < units_.size(); first += UnitBuffer::kUnitsMax) {
    const auto count = static_cast<unsigned>(std::min(UnitBuffer::kUnitsMax, units_.size() - first));
    auto buffer = take();
    if (buffer == nullptr) return false;
    const DevicePtr list = buffer->device;
    void* const host = buffer->host;
    used->push_back(std::move(buffer));
    std::memcpy(host, units_.data() + first, count * sizeof(CopyUnit));
    const Result copied =
        context_->api().copy(list, reinterpret_cast<DevicePtr>(host), count * sizeof(CopyUnit), stream_);
    if (!context_->check(copied, "copy of the units", __FILE__, __LINE__)) return false;
    DevicePtr list_argument = list;
    unsigned count_argument = count;
    void* arguments[] = {&list_argument, &count_argument};
    const unsigned units_a_block = ring ? 1 : kCopyThreads / kWarp;
    const unsigned grid = std::min(blocks, (count + units_a_block - 1) / units_a_block);
    const bool launched = kernels_->launch(ring ? kernels_->ring : kernels_->units, grid, ring ? kWarp : kCopyThreads,
                                           ring ? kRingSharedBytes : 0, stream_, arguments);
    if (!launched) return false;
  }
  return true;
}

bool Lane::put_staged(std::span<const kernels::CopyRun> runs, UnitBuffers* used) {
  const auto relayout = [&](const StagedRound& round) {
    return put_kernel(Method::Warps, round.relayout, GpuKernels::kRelayoutBlocks, used);
  };
  std::byte* const staging = reinterpret_cast<std::byte*>(staging_);
  for (const StagedRound& round : stage(way_, runs, staging, kStagingBytes)) {
    const bool put =
        way_ == Device::Way::Load ? put_loop(round.flat) && relayout(round) : relayout(round) && put_loop(round.flat);
    if (!put) return false;
  }
  return true;
}

std::unique_ptr<UnitBuffer> Lane::take() {
  {
    const std::lock_guard lock(free_mutex_);
    if (!free_.empty()) {
      auto buffer = std::move(free_.back());
      free_.pop_back();
      return buffer;
    }
  }
  return UnitBuffer::make(context_);
}

void Lane::give_back(UnitBuffers buffers) {
  const std::lock_guard lock(free_mutex_);
  for (auto& buffer : buffers) free_.push_back(std::move(buffer));
}

}  // namespace kvcommons::gpu
