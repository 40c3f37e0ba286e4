// Unix sockets and the descriptors that go over them. Every call here is close-on-exec and free of SIGPIPE.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace kvcommons {

// Closes its descriptor when it goes away.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) noexcept : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  UniqueFd(const UniqueFd&) = delete;  // a copy would close the descriptor twice
  ~UniqueFd() { reset(); }

  [[nodiscard]] int get() const noexcept { return fd_; }
  [[nodiscard]] explicit operator bool() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
  void reset(int fd = -1) noexcept;

 private:
  int fd_ = -1;
};

struct PeerCredentials {
  pid_t pid = 0;  // 0: in a PID namespace that cannot be seen from here
  uid_t uid = static_cast<uid_t>(-1);
  gid_t gid = static_cast<gid_t>(-1);
};

// A bound Unix socket that owns its path: the lock file beside it keeps a second owner out for as long as this lives, a
// socket file that nobody answers on is replaced, and the file is unlinked at the end. Until listen(), connecting is
// refused.
class UnixListener {
 public:
  // type: SOCK_STREAM or SOCK_SEQPACKET. Throws std::invalid_argument or std::system_error with the path and the
  // remedy.
  UnixListener(std::string path, int type, mode_t mode);
  ~UnixListener();
  UnixListener(const UnixListener&) = delete;

  void listen();
  [[nodiscard]] int fd() const noexcept { return socket_.get(); }
  [[nodiscard]] const std::string& path() const noexcept { return path_; }

 private:
  std::string path_;
  UniqueFd lock_;
  UniqueFd socket_;
};

// -1 with errno set when nothing answers. Non-blocking afterwards.
UniqueFd unix_connect(const std::string& path, int type);
UniqueFd unix_accept(int listener);
PeerCredentials peer_credentials(int socket);

inline constexpr std::size_t kPeerGroupsMax = 65'536;  // as many as Linux gives a process

// The peer's supplementary groups at the time when it connected; none where the kernel does not tell (SO_PEERGROUPS).
std::vector<gid_t> peer_groups(int socket);

inline constexpr std::size_t kFdsPerMessageMax = 4;

// As sendmsg and recvmsg: bytes moved, or -1 with errno set. send_with_fd sends no descriptor when fd is -1.
// recv_with_fd keeps the first descriptor that came and closes any other.
ssize_t send_with_fd(int socket, std::span<const std::byte> bytes, int fd, int flags);
ssize_t recv_with_fd(int socket, std::span<std::byte> bytes, UniqueFd* fd, int flags);

// Waits until `events` (POLLIN, POLLOUT) or an error state; false after ms_max.
bool wait_for(int fd, short events, int ms_max);

// Thousands of sessions are as many descriptors; the soft limit is often 1,024.
void raise_descriptor_limit();

[[noreturn]] void throw_errno(const std::string& what);

}  // namespace kvcommons
