// What a remote tier wants done in its store, and what came of it. A driver (in Python, with the store's own client
// library; in C++ in tests) takes jobs with as many threads as there are lanes and never sees the arena: objects go
// through memory of the driver's own, so that a store that hangs can neither hold a slot nor write to it later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace kvcommons::tiers {

enum class RemoteOp : std::uint8_t {
  Put,     // one object, of `bytes`, to be forgotten by the store after ttl_ms; object() has its content
  Get,     // one object, of `bytes` at most
  Ask,     // the size of each object, 0 where it is not there; in one round trip where the store can
  Remove,  // objects; those that are not there are no fault
  Clear,   // whatever begins with names[0]
  Ping,    // does it answer?
};

enum class RemoteOutcome : std::uint8_t {
  Ok,
  Exists,       // Put: an object of this name and size is there already, and was left
  Missing,      // Get
  Full,         // the store has no room
  Failed,       // the store refused, and answers
  Unreachable,  // no answer within the time-out, or no connection
};

struct RemoteJob {
  std::uint64_t id = 0;
  RemoteOp op{};
  std::vector<std::string> names;
  std::uint64_t bytes = 0;
  std::uint64_t ttl_ms = 0;
  std::uint32_t time_out_ms = 0;  // after that its answer is waited for no more
};

struct RemoteAnswer {
  RemoteOutcome outcome = RemoteOutcome::Failed;
  std::span<const std::byte> object;     // Get
  std::span<const std::uint64_t> sizes;  // Ask: of each name
  std::uint64_t removed = 0;             // Clear
  std::string why;                       // of Full, Failed, Unreachable: for a person; without credentials
};

// Thread-safe; outlives its tier, and is closed then.
class RemotePort {
 public:
  virtual ~RemotePort() = default;
  RemotePort() = default;
  RemotePort(const RemotePort&) = delete;  // there is one queue

  [[nodiscard]] virtual std::string_view name() const noexcept = 0;
  [[nodiscard]] virtual unsigned lanes() const noexcept = 0;
  [[nodiscard]] virtual bool closed() const = 0;
  // The next job for this lane; false: none came within wait_ms, or it is closed. What writes to one object always
  // comes to the same lane, in order: the job before must be done when its lane takes the next.
  virtual bool take(unsigned lane, std::uint32_t wait_ms, RemoteJob* job) = 0;
  // Put: writes its bytes to `out`. False: it is not wanted any more.
  virtual bool object(std::uint64_t id, std::byte* out) = 0;
  virtual void done(std::uint64_t id, const RemoteAnswer& answer) = 0;
};

}  // namespace kvcommons::tiers
