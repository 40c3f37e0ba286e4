// Sending from the arena without a copy (MSG_ZEROCOPY): the kernel reads the pages later, and says when it no longer
// does. Until then whatever was sent is held. Where the kernel copies after all (loopback, many drivers), refuses, or
// runs out of its own memory for notices, the plain path is as fast: `worthwhile` says so.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>

#include "peers/peer_stream.h"

namespace kvcommons::peers {

class ZeroCopySender {
 public:
  explicit ZeroCopySender(int fd, bool wanted);
  ZeroCopySender(const ZeroCopySender&) = delete;  // counts one socket's calls

  [[nodiscard]] bool worthwhile() const noexcept { return enabled_; }
  // All of it, or false: the stream is good for nothing more. `hold` is kept until the kernel has let go of the bytes,
  // also where this fails.
  [[nodiscard]] bool send(std::span<const std::byte> bytes, std::shared_ptr<void> hold, Deadline deadline);
  // Lets go of what the kernel says it is done with. Does not wait.
  void reap();
  // Waits until no more than `bytes` are held.
  [[nodiscard]] bool settle(std::uint64_t bytes, Deadline deadline);
  // The connection is over: what still waits in the kernel is thrown away, and then let go of. False: the kernel has
  // not said so by the deadline; what is held then stays held.
  [[nodiscard]] bool abort(Deadline deadline);
  [[nodiscard]] std::uint64_t held_bytes() const noexcept { return held_bytes_; }
  [[nodiscard]] std::uint64_t sent_bytes() const noexcept { return sent_bytes_; }      // without a copy
  [[nodiscard]] std::uint64_t copied_calls() const noexcept { return copied_calls_; }  // the kernel copied after all
  // What the kernel never let go of: never given back while the process lives.
  void leak();

 private:
  struct Held {
    std::uint32_t first = 0, calls = 0;  // as the kernel counts them, modulo 2^32
    std::uint32_t open = 0;              // not yet let go of
    bool sending = true;
    std::uint64_t bytes = 0;
    std::shared_ptr<void> hold;
  };
  void noticed(std::uint32_t first, std::uint32_t last, bool copied);
  void drop_ended();

  int fd_;
  bool enabled_ = false;
  std::uint32_t next_call_ = 0;
  std::uint64_t held_bytes_ = 0, sent_bytes_ = 0, copied_calls_ = 0;
  std::deque<Held> held_;
};

}  // namespace kvcommons::peers
