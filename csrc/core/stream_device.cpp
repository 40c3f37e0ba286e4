#include "stream_device.h"

#include <utility>

#include "transfer_thread.h"

namespace kvcommons {

StreamDevice::StreamDevice(Script script) : script_(std::move(script)) {
  streams_[0].thread = native_thread("kvc-dev-load", [this] { run(&streams_[0]); });
  streams_[1].thread = native_thread("kvc-dev-store", [this] { run(&streams_[1]); });
}

StreamDevice::~StreamDevice() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (Stream& stream : streams_) stream.thread.join();
}

Device::Mark StreamDevice::mark(std::uintptr_t stream) {
  if (stream == 0) return 0;
  const std::lock_guard lock(mutex_);
  open_.insert(++last_engine_mark_);
  return last_engine_mark_;
}

void StreamDevice::reach(Mark mark) {
  const std::lock_guard lock(mutex_);
  open_.erase(mark);
  changed_.notify_all();
}

Device::Mark StreamDevice::copy(Way way, std::span<const kernels::CopyRun> runs, Mark after) {
  const bool refused = ask("copy") != State::Done;
  const std::lock_guard lock(mutex_);
  Stream& stream = stream_of(way);
  if (refused || stop_ || stream.lost) {
    open_.erase(after);
    return 0;
  }
  stream.queue.push_back({++stream.last, after, {runs.begin(), runs.end()}});
  changed_.notify_all();
  return stream.last;
}

Device::State StreamDevice::wait(Way way, Mark mark) {
  std::unique_lock lock(mutex_);
  Stream& stream = stream_of(way);
  changed_.wait(lock, [&] { return stream.ended.contains(mark); });
  return stream.ended.extract(mark).mapped();
}

void StreamDevice::run(Stream* stream) {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock,
                  [&] { return stop_ || (!stream->queue.empty() && !open_.contains(stream->queue.front().after)); });
    if (stream->queue.empty() || open_.contains(stream->queue.front().after)) return;
    const Batch batch = std::move(stream->queue.front());
    stream->queue.pop_front();
    State state = stream->lost ? State::Lost : State::Done;
    lock.unlock();
    if (state == State::Done) state = ask("run");
    if (state == State::Done) kernels::copy_runs(batch.runs, kernels::Stores::Streaming);
    lock.lock();
    stream->lost = state == State::Lost;
    stream->ended[batch.mark] = state;
    changed_.notify_all();
  }
}

bool StreamDevice::pin(std::byte* start, std::size_t bytes) {
  const bool refused = ask("pin") != State::Done;
  const std::lock_guard lock(mutex_);
  return !refused && pins_.emplace(start, bytes).second;
}

void StreamDevice::unpin(std::byte* start) {
  const std::lock_guard lock(mutex_);
  pins_.erase(start);
}

std::size_t StreamDevice::pinned_bytes() const {
  const std::lock_guard lock(mutex_);
  std::size_t bytes = 0;
  for (const auto& [start, size] : pins_) bytes += size;
  return bytes;
}

std::size_t StreamDevice::marks() const {
  const std::lock_guard lock(mutex_);
  return open_.size();
}

}  // namespace kvcommons
