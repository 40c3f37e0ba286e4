// A device without hardware: its memory is the host's, its streams are threads that copy. What orders, leases and fails
// around a GPU's copies is the same code as around these, so it can be tried and tested on every machine.
#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

#include "device.h"

namespace kvcommons {

class StreamDevice final : public Device {
 public:
  // Asked before each call by its name: "copy" (Done or Failed: refused), "run" (on the stream: Failed or Lost),
  // "pin" (Failed: not pinned).
  using Script = std::function<State(std::string_view call)>;
  explicit StreamDevice(Script script = {});
  ~StreamDevice() override;  // ends what was put on its streams, but for what stands behind a mark that nobody reaches
  StreamDevice(const StreamDevice&) = delete;  // owns its threads

  // stream 0 has nothing to wait for. Any other is a stream of the test: its marks are reached by reach().
  Mark mark(std::uintptr_t stream) override;
  void drop(Mark mark) override { reach(mark); }
  void reach(Mark mark);

  Mark copy(Way way, std::span<const kernels::CopyRun> runs, Mark after) override;
  State wait(Way way, Mark mark) override;
  bool pin(std::byte* start, std::size_t bytes) override;
  void unpin(std::byte* start) override;

  [[nodiscard]] std::size_t pinned_bytes() const;
  [[nodiscard]] std::size_t marks() const;  // of the engine's streams, that no copy has taken and nobody reached

 private:
  struct Batch {
    Mark mark = 0, after = 0;
    std::vector<kernels::CopyRun> runs;
  };
  struct Stream {
    std::deque<Batch> queue;
    std::map<Mark, State> ended;  // and not waited for yet
    Mark last = 0;
    bool lost = false;
    std::thread thread;
  };
  void run(Stream* stream);
  Stream& stream_of(Way way) { return streams_[way == Way::Load ? 0 : 1]; }
  State ask(std::string_view call) const { return script_ ? script_(call) : State::Done; }

  const Script script_;
  mutable std::mutex mutex_;  // guards what follows; not held while copying
  std::condition_variable changed_;
  std::array<Stream, 2> streams_;
  std::set<Mark> open_;  // marks of the engine that are not reached
  Mark last_engine_mark_ = 0;
  std::map<std::byte*, std::size_t> pins_;
  bool stop_ = false;
};

}  // namespace kvcommons
