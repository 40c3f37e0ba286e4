#include "peers/peer_stream.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace kvcommons::peers {
namespace {

constexpr int kBacklog = 128;

union Address {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
};

socklen_t parse(const std::string& host, std::uint16_t port, Address* out) {
  std::memset(out, 0, sizeof *out);
  if (::inet_pton(AF_INET, host.c_str(), &out->v4.sin_addr) == 1) {
    out->v4.sin_family = AF_INET;
    out->v4.sin_port = htons(port);
    return sizeof out->v4;
  }
  if (::inet_pton(AF_INET6, host.c_str(), &out->v6.sin6_addr) == 1) {
    out->v6.sin6_family = AF_INET6;
    out->v6.sin6_port = htons(port);
    return sizeof out->v6;
  }
  return 0;
}

void set_option(int fd, int level, int option) {
  const int one = 1;
  (void)::setsockopt(fd, level, option, &one, sizeof one);
}

int ms_until(Deadline deadline) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count() + 1;
  return static_cast<int>(std::clamp<long long>(left, 0, 60'000));
}

bool again() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

bool wait_until(int fd, short events, Deadline deadline) {
  for (;;) {
    pollfd one{fd, events, 0};
    const int ready = ::poll(&one, 1, ms_until(deadline));
    if (ready > 0) return true;
    if (ready < 0 && errno != EINTR) return false;
    if (Clock::now() >= deadline) return false;
  }
}

bool Stream::readable(Deadline deadline) { return wait_until(fd_.get(), POLLIN, deadline); }

void Stream::interrupt() noexcept { (void)::shutdown(fd_.get(), SHUT_RDWR); }

bool PlainStream::read(std::span<std::byte> into, Deadline deadline) {
  while (!into.empty()) {
    const ssize_t got = ::recv(fd_.get(), into.data(), into.size(), 0);
    if (got > 0) {
      into = into.subspan(static_cast<std::size_t>(got));
    } else if (got == 0 || !again() || !wait_until(fd_.get(), POLLIN, deadline)) {
      return false;
    }
  }
  return true;
}

bool PlainStream::write(std::span<const std::byte> bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    } else if (!again() || !wait_until(fd_.get(), POLLOUT, deadline)) {
      return false;
    }
  }
  return true;
}

UniqueFd tcp_connect(const std::string& host, std::uint16_t port, Deadline deadline) {
  Address address{};
  const socklen_t size = parse(host, port, &address);
  if (size == 0) {
    errno = EINVAL;
    return {};
  }
  UniqueFd fd(::socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return {};
  set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY);
  if (::connect(fd.get(), &address.any, size) == 0) return fd;
  if (errno != EINPROGRESS) return {};
  if (!wait_until(fd.get(), POLLOUT, deadline)) {
    errno = ETIMEDOUT;
    return {};
  }
  int error = 0;
  socklen_t bytes = sizeof error;
  (void)::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &bytes);
  if (error != 0) {
    errno = error;
    return {};
  }
  return fd;
}

UniqueFd tcp_listen(const std::string& host, std::uint16_t port, std::uint16_t* bound) {
  Address address{};
  socklen_t size = parse(host, port, &address);
  if (size == 0) {
    throw std::invalid_argument("peers.listen host '" + host + "' is no IP address: give one, or 0.0.0.0 for all");
  }
  UniqueFd fd(::socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) throw_errno("socket for peers.listen");
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  if (::bind(fd.get(), &address.any, size) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    throw std::system_error(errno, std::generic_category(),
                            "peers.listen " + host + " port " + std::to_string(port) +
                                " cannot be bound: choose an address of this machine and a port that is free");
  }
  if (::getsockname(fd.get(), &address.any, &size) != 0) throw_errno("getsockname");
  *bound = ntohs(address.any.sa_family == AF_INET ? address.v4.sin_port : address.v6.sin6_port);
  return fd;
}

UniqueFd tcp_accept(int listener) {
  UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (fd) set_option(fd.get(), IPPROTO_TCP, TCP_NODELAY);
  return fd;
}

bool loopback(const std::string& host) {
  Address address{};
  if (parse(host, 0, &address) == 0) return false;
  if (address.any.sa_family == AF_INET) return (ntohl(address.v4.sin_addr.s_addr) >> 24) == 127;
  return IN6_IS_ADDR_LOOPBACK(&address.v6.sin6_addr);
}

}  // namespace kvcommons::peers
