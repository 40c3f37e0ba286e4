// A tiny process that keeps descriptors by name for a daemon that restarts: the arena, its records, and the pidfds of
// the engines' processes. It maps none of them. One node at a time is attached to it, so that two daemons never serve
// one arena. Its protocol is one message a packet (SOCK_SEQPACKET); a PUT is complete as soon as it was sent, because a
// packet outlives its sender.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "socket.h"

namespace kvcommons {

inline constexpr std::size_t kHeldNameBytesMax = 64;
inline constexpr std::size_t kHeldMetaBytesMax = 256;
inline constexpr std::size_t kHeldEntriesMax = 8'192;  // sessions_max pidfds and a few more

struct HeldFd {
  std::string name;
  std::vector<std::byte> meta;
  UniqueFd fd;
};

// Serves until told to stop, until no connection was open for idle_seconds_max, or until `interrupted` says so (it is
// asked after each signal and at least once a second). Throws as UnixListener does.
void holder_serve(const std::string& socket_path, std::uint32_t idle_seconds_max,
                  const std::function<bool()>& interrupted);
// Returns false when nothing listens there.
bool holder_stop(const std::string& socket_path);

// The node's side. Not thread-safe: it belongs to whichever thread runs the node at the time.
class HolderLink {
 public:
  explicit HolderLink(std::string socket_path) : path_(std::move(socket_path)) {}
  HolderLink(const HolderLink&) = delete;  // attached once

  enum class Attach : std::uint8_t {
    Attached,
    Absent,  // nothing listens, or it went away meanwhile
    InUse,   // another live node is attached
    Denied,  // another user's holder
  };
  // What is held comes out with the right to serve it.
  Attach attach(std::vector<HeldFd>* held, int ms_max);

  // false: the link is down (and closed): everything is put again after the next attach.
  bool put(std::string_view name, std::span<const std::byte> meta, int fd);
  bool remove(std::string_view name);
  [[nodiscard]] bool connected() const noexcept { return static_cast<bool>(socket_); }
  [[nodiscard]] bool configured() const noexcept { return !path_.empty(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }
  bool alive();  // asks the socket: notices a holder that went away
  void close() noexcept { socket_.reset(); }

 private:
  bool send(std::span<const std::byte> packet, int fd);

  std::string path_;
  UniqueFd socket_;
};

}  // namespace kvcommons
