#include "client_socket.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace kvcommons {
namespace {

constexpr std::size_t kReadBytes = 64u << 10;
constexpr std::size_t kKeptBytes = 256u << 10;

bool would_block() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

}  // namespace

bool ClientSocket::peer_closed() const noexcept {
  if (!open()) return false;
  pollfd entry{socket_.get(), POLLRDHUP, 0};
  return ::poll(&entry, 1, 0) == 1 && (entry.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool ClientSocket::connect(const std::string& path) {
  close();
  socket_ = unix_connect(path, SOCK_STREAM);
  return open();
}

void ClientSocket::close() noexcept {
  socket_.reset();
  in_.clear();
  request.clear();
  consumed_ = 0;
}

Status ClientSocket::exchange(std::uint64_t request_id, int passed_fd, Clock::time_point deadline, wire::Frame* reply,
                              UniqueFd* received) {
  in_.consume(consumed_);
  consumed_ = 0;
  in_.shrink(kKeptBytes);
  Status status = send_all(passed_fd, deadline);
  if (status == Status::Ok) status = receive(request_id, deadline, reply, received);
  if (status != Status::Ok) close();
  return status;
}

Status ClientSocket::wait(short events, Clock::time_point deadline) const {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - Clock::now()).count();
  if (left <= 0) return Status::TimedOut;
  return wait_for(socket_.get(), events, static_cast<int>(left)) ? Status::Ok : Status::TimedOut;
}

Status ClientSocket::send_all(int passed_fd, Clock::time_point deadline) {
  while (!request.empty()) {
    const ssize_t sent = send_with_fd(socket_.get(), request.bytes(), passed_fd, MSG_DONTWAIT);
    if (sent > 0) {
      request.consume(static_cast<std::size_t>(sent));
      passed_fd = -1;
      continue;
    }
    if (!would_block()) return Status::Disconnected;
    if (const Status status = wait(POLLOUT, deadline); status != Status::Ok) return status;
  }
  request.shrink(kKeptBytes);
  return Status::Ok;
}

Status ClientSocket::receive(std::uint64_t request_id, Clock::time_point deadline, wire::Frame* reply,
                             UniqueFd* received) {
  for (;;) {
    const wire::Parse parsed = wire::parse_reply(in_.bytes(), reply);
    if (parsed == wire::Parse::Malformed) return Status::Disconnected;
    if (parsed == wire::Parse::Complete) {
      if (reply->header.request_id != request_id) return Status::Disconnected;  // calls are serialised: not our node
      consumed_ = reply->bytes();
      return Status::Ok;
    }
    // The server is at work by now: waiting first spares a read that would find nothing.
    if (const Status status = wait(POLLIN, deadline); status != Status::Ok) return status;
    const auto room = in_.room(kReadBytes);
    const ssize_t got = received != nullptr ? recv_with_fd(socket_.get(), room, received, MSG_DONTWAIT)
                                            : ::recv(socket_.get(), room.data(), room.size(), MSG_DONTWAIT);
    if (got > 0) {
      in_.filled(static_cast<std::size_t>(got));
    } else if (got == 0 || !would_block()) {
      return Status::Disconnected;
    }
  }
}

}  // namespace kvcommons
