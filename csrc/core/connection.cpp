#include "connection.h"

#include <sys/socket.h>

#include <cerrno>

namespace kvcommons {
namespace {

Connection::Io failed() {
  return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? Connection::Io::Nothing : Connection::Io::Ended;
}

}  // namespace

Connection::Io Connection::read() {
  const std::span<std::byte> room = in_.room(kReadBytes);
  // A descriptor may come with the HELLO alone; plain recv makes the kernel drop any that comes later.
  const ssize_t got = greeted ? ::recv(fd(), room.data(), room.size(), MSG_DONTWAIT)
                              : recv_with_fd(fd(), room, &sent_fd_, MSG_DONTWAIT);
  if (got == 0) return Io::Ended;
  if (got < 0) return failed();
  in_.filled(static_cast<std::size_t>(got));
  last_progress = Clock::now();
  return Io::Some;
}

Connection::Io Connection::flush() {
  while (!out_.empty()) {
    const auto bytes = out_.bytes();
    const ssize_t sent = ::send(fd(), bytes.data(), bytes.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent < 0) return failed();
    out_.consume(static_cast<std::size_t>(sent));
    last_progress = Clock::now();
  }
  out_.shrink(kKeptBytes);
  return Io::Some;
}

Connection::Io Connection::flush_with_fd(int passed) {
  const ssize_t sent = send_with_fd(fd(), out_.bytes(), passed, MSG_DONTWAIT);
  if (sent <= 0) return Io::Ended;
  out_.consume(static_cast<std::size_t>(sent));
  return Io::Some;
}

}  // namespace kvcommons
