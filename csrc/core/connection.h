// One client's socket with its two bounded buffers. It never blocks: what cannot be sent waits here, and while more
// than kOutPauseBytes wait, nothing further is read from that client.
#pragma once

#include <chrono>
#include <cstdint>

#include "byte_buffer.h"
#include "codec.h"
#include "socket.h"

namespace kvcommons {

class Connection {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kReadBytes = 64u << 10;   // of one read: 512 keys come in one
  static constexpr std::size_t kKeptBytes = 128u << 10;  // a buffer that grew further is given back when empty
  static constexpr std::size_t kOutPauseBytes = 1u << 20;

  Connection(UniqueFd socket, std::uint64_t id) : id_(id), socket_(std::move(socket)) {
    peer_ = peer_credentials(socket_.get());
  }
  Connection(const Connection&) = delete;  // owns its socket

  enum class Io : std::uint8_t { Some, Nothing, Ended };
  Io read();
  // Sends what waits. Ended: the peer is gone.
  Io flush();
  // A reply that carries a descriptor is the first on its connection, so it fits the socket's buffer or the peer is
  // odd.
  Io flush_with_fd(int fd);

  [[nodiscard]] wire::Parse next(wire::Frame* frame) const { return wire::parse_request(in_.bytes(), frame); }
  void consume(const wire::Frame& frame) {
    in_.consume(frame.bytes());
    in_.shrink(kKeptBytes);
  }
  [[nodiscard]] ByteBuffer* out() noexcept { return &out_; }
  [[nodiscard]] bool paused() const noexcept { return out_.size() > kOutPauseBytes; }
  [[nodiscard]] bool sending() const noexcept { return !out_.empty(); }
  // Something is half done: a frame, a reply or a reading of replies.
  [[nodiscard]] bool unfinished() const noexcept { return !in_.empty() || !out_.empty(); }
  [[nodiscard]] std::size_t buffered_bytes() const noexcept { return in_.capacity() + out_.capacity(); }

  [[nodiscard]] int fd() const noexcept { return socket_.get(); }
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] const PeerCredentials& peer() const noexcept { return peer_; }
  UniqueFd take_sent_fd() noexcept { return std::move(sent_fd_); }

  // Owned by the server.
  SessionId session = 0;
  wire::Role role = wire::Role::Tool;
  Key fingerprint;
  bool greeted = false;  // HELLO was answered with Ok
  bool closing = false;  // closed once what waits is sent
  std::uint32_t watched = 0;
  std::size_t accounted_bytes = 0;  // of its buffers, in the server's sum
  Clock::time_point last_progress = Clock::now();

 private:
  std::uint64_t id_;
  UniqueFd socket_;
  PeerCredentials peer_;
  UniqueFd sent_fd_;  // came with the HELLO
  ByteBuffer in_, out_;
};

}  // namespace kvcommons
