#include "socket.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace kvcommons {
namespace {

constexpr int kBacklog = 512;
constexpr const char* kLockSuffix = ".lock";
constexpr int kLockAttemptsMax = 16;  // each finds that an owner has just gone

sockaddr_un unix_address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path) {
    throw std::invalid_argument("socket path '" + path + "' has " + std::to_string(path.size()) +
                                " bytes; a Unix socket's path has 1 to " + std::to_string(sizeof address.sun_path - 1) +
                                ": choose a shorter directory");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

std::string directory_of(const std::string& path) {
  const auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

// Whoever may replace the socket file may pose as the node: only sticky directories may be writable by everyone.
void check_directory(const std::string& path) {
  const std::string directory = directory_of(path);
  struct stat info{};
  if (::stat(directory.c_str(), &info) != 0) {
    throw_errno("directory '" + directory + "' of the socket (create it, or set another socket path)");
  }
  if (!S_ISDIR(info.st_mode)) throw std::invalid_argument("'" + directory + "' is not a directory");
  if ((info.st_mode & S_IWOTH) != 0 && (info.st_mode & S_ISVTX) == 0) {
    throw std::invalid_argument("directory '" + directory +
                                "' of the socket is writable by everyone: chmod o-w it, or set another socket path");
  }
  if (::access(directory.c_str(), W_OK | X_OK) != 0) {
    throw_errno("directory '" + directory + "' of the socket is not writable (run as its owner, or set another path)");
  }
}

// Whether a locked file is still the one at its path: its owner removes it before giving up the lock.
bool still_there(int lock, const std::string& file) {
  struct stat held{}, there{};
  return ::fstat(lock, &held) == 0 && ::stat(file.c_str(), &there) == 0 && held.st_ino == there.st_ino &&
         held.st_dev == there.st_dev;
}

UniqueFd lock_path(const std::string& path) {
  const std::string file = path + kLockSuffix;
  for (int attempt = 0; attempt < kLockAttemptsMax; ++attempt) {
    UniqueFd lock(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!lock) throw_errno("lock file '" + file + "'");
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) break;
    if (still_there(lock.get(), file)) return lock;
  }
  throw std::system_error(EADDRINUSE, std::generic_category(),
                          "socket '" + path + "' is in use by a live process: stop it, or set another socket path");
}

// A socket file that nobody answers on was left by a killed process; anything else is not ours to remove.
void remove_stale(const std::string& path, int type) {
  struct stat info{};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return;
    throw_errno("socket '" + path + "'");
  }
  if (!S_ISSOCK(info.st_mode)) {
    throw std::invalid_argument("'" + path + "' exists and is no socket: remove it, or set another socket path");
  }
  if (unix_connect(path, type) || (errno != ECONNREFUSED && errno != ENOENT)) {
    throw std::system_error(EADDRINUSE, std::generic_category(),
                            "socket '" + path + "' is in use by a live process: stop it, or set another socket path");
  }
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) throw_errno("stale socket '" + path + "'");
}

}  // namespace

void throw_errno(const std::string& what) { throw std::system_error(errno, std::generic_category(), what); }

void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

void UniqueFd::reset(int fd) noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = fd;
}

UnixListener::UnixListener(std::string path, int type, mode_t mode) : path_(std::move(path)) {
  const sockaddr_un address = unix_address(path_);
  check_directory(path_);
  lock_ = lock_path(path_);
  remove_stale(path_, type);
  socket_.reset(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!socket_) throw_errno("socket");
  // Before bind, so that the file never exists with more rights than these.
  if (::fchmod(socket_.get(), mode) != 0) throw_errno("mode of socket '" + path_ + "'");
  if (::bind(socket_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    throw_errno("bind of socket '" + path_ + "'");
  }
  if (::chmod(path_.c_str(), mode) != 0) throw_errno("mode of socket '" + path_ + "'");  // whatever the umask took away
}

void UnixListener::listen() {
  if (::listen(socket_.get(), kBacklog) != 0) throw_errno("listen on socket '" + path_ + "'");
}

UnixListener::~UnixListener() {
  // The lock is still held, so both files are this listener's; whoever has opened the lock's meanwhile sees it gone.
  if (socket_) ::unlink(path_.c_str());
  if (lock_) ::unlink((path_ + kLockSuffix).c_str());
}

UniqueFd unix_connect(const std::string& path, int type) {
  const sockaddr_un address = unix_address(path);
  UniqueFd fd(::socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fd;
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    fd.reset();
    errno = error;
  }
  return fd;
}

UniqueFd unix_accept(int listener) {
  return UniqueFd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

PeerCredentials peer_credentials(int socket) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) return {};
  return {peer.pid, peer.uid, peer.gid};
}

std::vector<gid_t> peer_groups(int socket) {
  socklen_t length = 0;  // asked without room, the kernel says how much it takes
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, nullptr, &length) == 0 || errno != ERANGE) return {};
  std::vector<gid_t> groups(std::min(length / sizeof(gid_t), kPeerGroupsMax));
  length = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &length) != 0) return {};
  groups.resize(length / sizeof(gid_t));
  return groups;
}

ssize_t send_with_fd(int socket, std::span<const std::byte> bytes, int fd, int flags) {
  iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  return ::sendmsg(socket, &message, flags | MSG_NOSIGNAL);
}

ssize_t recv_with_fd(int socket, std::span<std::byte> bytes, UniqueFd* fd, int flags) {
  iovec piece{bytes.data(), bytes.size()};
  alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(sizeof(int) * kFdsPerMessageMax)> control{};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t got = ::recvmsg(socket, &message, flags | MSG_CMSG_CLOEXEC);
  if (got < 0) return got;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const std::size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (std::size_t i = 0; i < count; ++i) {
      int received = -1;
      std::memcpy(&received, CMSG_DATA(header) + i * sizeof(int), sizeof received);
      UniqueFd owned(received);
      if (!*fd) *fd = std::move(owned);
    }
  }
  return got;
}

bool wait_for(int fd, short events, int ms_max) {
  using Clock = std::chrono::steady_clock;
  const auto deadline = Clock::now() + std::chrono::milliseconds(ms_max);
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
    pollfd entry{fd, events, 0};
    const int ready = ::poll(&entry, 1, left > 0 ? static_cast<int>(left) : 0);
    if (ready > 0) return true;
    if (ready == 0 && left <= 0) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
}

}  // namespace kvcommons
