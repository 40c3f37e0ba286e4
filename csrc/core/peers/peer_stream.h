// A connection between two nodes, plain or by TLS. Every call has a deadline and moves all of its bytes or fails; a
// stream that failed once is good for nothing more. One thread reads and writes; interrupt() may come from another.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "socket.h"

namespace kvcommons::peers {

using Clock = std::chrono::steady_clock;
using Deadline = Clock::time_point;

inline Deadline in_ms(std::uint32_t ms) { return Clock::now() + std::chrono::milliseconds(ms); }

class Stream {
 public:
  explicit Stream(UniqueFd fd) : fd_(std::move(fd)) {}
  virtual ~Stream() = default;
  Stream(const Stream&) = delete;  // owns the socket
  Stream& operator=(const Stream&) = delete;

  [[nodiscard]] virtual bool read(std::span<std::byte> into, Deadline deadline) = 0;
  [[nodiscard]] virtual bool write(std::span<const std::byte> bytes, Deadline deadline) = 0;
  // Whether the other side has something to say (or has hung up); false at the deadline.
  [[nodiscard]] virtual bool readable(Deadline deadline);
  [[nodiscard]] virtual bool plain() const noexcept = 0;
  // Both directions end now; a call that waits fails.
  void interrupt() noexcept;
  [[nodiscard]] int fd() const noexcept { return fd_.get(); }

 protected:
  UniqueFd fd_;
};

class PlainStream final : public Stream {
 public:
  using Stream::Stream;
  [[nodiscard]] bool read(std::span<std::byte> into, Deadline deadline) override;
  [[nodiscard]] bool write(std::span<const std::byte> bytes, Deadline deadline) override;
  [[nodiscard]] bool plain() const noexcept override { return true; }
};

// Waits for `events`; false at the deadline.
bool wait_until(int fd, short events, Deadline deadline);

// host: an IPv4 or IPv6 address, no name. Null with errno set. Non-blocking, TCP_NODELAY.
UniqueFd tcp_connect(const std::string& host, std::uint16_t port, Deadline deadline);

// Throws std::invalid_argument or std::system_error with the address and the remedy. port 0: any; *bound says which.
UniqueFd tcp_listen(const std::string& host, std::uint16_t port, std::uint16_t* bound);
UniqueFd tcp_accept(int listener);
[[nodiscard]] bool loopback(const std::string& host);

}  // namespace kvcommons::peers
