#include "process.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <string>
#include <string_view>

namespace kvcommons {
namespace {

#ifdef SO_PEERPIDFD
constexpr int kPeerPidfd = SO_PEERPIDFD;
#else
constexpr int kPeerPidfd = 77;  // Linux 6.5; the C library's headers may be older than the kernel
#endif
#ifdef SYS_pidfd_open
constexpr long kPidfdOpen = SYS_pidfd_open;
constexpr long kPidfdSendSignal = SYS_pidfd_send_signal;
#else
constexpr long kPidfdOpen = 434;
constexpr long kPidfdSendSignal = 424;
#endif

}  // namespace

UniqueFd open_pidfd(pid_t pid) { return UniqueFd(static_cast<int>(::syscall(kPidfdOpen, pid, 0))); }

bool is_pidfd(int fd) {
  if (fd < 0) return false;
  if (::syscall(kPidfdSendSignal, fd, 0, nullptr, 0) == 0) return true;
  return errno == ESRCH || errno == EPERM;  // a pidfd of an ended process, or of one that is not ours to signal
}

bool process_ended(int pidfd) {
  pollfd entry{pidfd, POLLIN, 0};
  return ::poll(&entry, 1, 0) > 0 && (entry.revents & (POLLIN | POLLHUP)) != 0;
}

pid_t pid_of(int pidfd) {
  const std::string path = "/proc/self/fdinfo/" + std::to_string(pidfd);
  UniqueFd info(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!info) return 0;
  std::array<char, 512> text{};
  const ssize_t got = ::read(info.get(), text.data(), text.size());
  if (got <= 0) return 0;
  const std::string_view all(text.data(), static_cast<std::size_t>(got));
  const auto at = all.find("Pid:\t");
  if (at == std::string_view::npos) return 0;
  pid_t pid = 0;
  std::from_chars(all.data() + at + 5, all.data() + all.size(), pid);
  return std::max<pid_t>(pid, 0);  // -1: it has ended
}

ProcessProof prove_peer(int socket, pid_t peer_pid, UniqueFd sent) {
  int fd = -1;
  socklen_t length = sizeof fd;
  if (::getsockopt(socket, SOL_SOCKET, kPeerPidfd, &fd, &length) == 0 && fd >= 0) {
    return {UniqueFd(fd), ProofSource::Socket};
  }
  if (peer_pid > 0) {
    if (UniqueFd opened = open_pidfd(peer_pid)) return {std::move(opened), ProofSource::Pid};
  }
  if (is_pidfd(sent.get())) return {std::move(sent), ProofSource::Sent};
  return {};
}

}  // namespace kvcommons
