// One attached connection of a client: sends a request and waits for its reply, until a deadline.
#pragma once

#include <chrono>
#include <cstdint>

#include "byte_buffer.h"
#include "codec.h"
#include "socket.h"

namespace kvcommons {

class ClientSocket {
 public:
  using Clock = std::chrono::steady_clock;

  [[nodiscard]] bool open() const noexcept { return static_cast<bool>(socket_); }
  // Whether the other side has ended an open connection, as far as the kernel knows at this moment.
  [[nodiscard]] bool peer_closed() const noexcept;
  bool connect(const std::string& path);
  void close() noexcept;

  // Sends what `request` holds, with `passed_fd` if it is not -1, and receives the reply to `request_id`, which points
  // into this object until the next exchange. Ok, TimedOut or Disconnected; the connection is closed unless Ok.
  // *received takes a descriptor that comes with the reply, when it is not null.
  Status exchange(std::uint64_t request_id, int passed_fd, Clock::time_point deadline, wire::Frame* reply,
                  UniqueFd* received);

  ByteBuffer request;  // encode here, then exchange()

 private:
  Status send_all(int passed_fd, Clock::time_point deadline);
  Status receive(std::uint64_t request_id, Clock::time_point deadline, wire::Frame* reply, UniqueFd* received);
  Status wait(short events, Clock::time_point deadline) const;

  UniqueFd socket_;
  ByteBuffer in_;
  std::size_t consumed_ = 0;  // of the reply handed out last
};

}  // namespace kvcommons
