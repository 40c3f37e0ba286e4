#include "peers/zero_copy.h"

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif

namespace kvcommons::peers {
namespace {

constexpr std::size_t kCallBytesMax = 1u << 20;  // of one call: its notice comes the sooner
constexpr std::uint64_t kCopiedMax = 8;          // so many notices of a copy, and it is not tried any more

}  // namespace

ZeroCopySender::ZeroCopySender(int fd, bool wanted) : fd_(fd) {
  const int one = 1;
  enabled_ = wanted && ::setsockopt(fd_, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) == 0;
}

bool ZeroCopySender::send(std::span<const std::byte> bytes, std::shared_ptr<void> hold, Deadline deadline) {
  held_.push_back({next_call_, 0, 0, true, bytes.size(), std::move(hold)});
  held_bytes_ += bytes.size();
  Held& held = held_.back();  // stays where it is: only what ended before it goes
  bool good = true;
  while (!bytes.empty()) {
    const std::size_t part = std::min(bytes.size(), kCallBytesMax);
    const int flags = MSG_NOSIGNAL | (enabled_ ? MSG_ZEROCOPY : 0);
    const ssize_t sent = ::send(fd_, bytes.data(), part, flags);
    if (sent > 0) {
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
      if ((flags & MSG_ZEROCOPY) != 0) {
        ++held.open;
        ++held.calls;
        ++next_call_;
        sent_bytes_ += static_cast<std::uint64_t>(sent);
      }
      continue;
    }
    reap();  // an error state of the socket may be nothing but notices
    if (errno == ENOBUFS && enabled_) {
      if (held_.size() == 1 && held.open == 0) enabled_ = false;  // not even one: the plain path from here on
      if (enabled_ && Clock::now() < deadline) {
        pollfd one{fd_, 0, 0};
        (void)::poll(&one, 1, 1);
        continue;
      }
      if (!enabled_) continue;
    }
    if ((errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) || !wait_until(fd_, POLLOUT, deadline)) {
      good = false;
      break;
    }
  }
  held.sending = false;
  reap();
  drop_ended();
  return good;
}

void ZeroCopySender::reap() {
  const int saved = errno;
  for (;;) {
    alignas(cmsghdr) std::array<std::byte, 128> control{};
    msghdr message{};
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    if (::recvmsg(fd_, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) break;
    for (cmsghdr* one = CMSG_FIRSTHDR(&message); one != nullptr; one = CMSG_NXTHDR(&message, one)) {
      const bool error = (one->cmsg_level == SOL_IP && one->cmsg_type == IP_RECVERR) ||
                         (one->cmsg_level == SOL_IPV6 && one->cmsg_type == IPV6_RECVERR);
      if (!error) continue;
      sock_extended_err told{};
      std::copy_n(reinterpret_cast<const std::byte*>(CMSG_DATA(one)), sizeof told, reinterpret_cast<std::byte*>(&told));
      if (told.ee_origin != SO_EE_ORIGIN_ZEROCOPY || told.ee_errno != 0) continue;
      noticed(told.ee_info, told.ee_data, (told.ee_code & SO_EE_CODE_ZEROCOPY_COPIED) != 0);
    }
  }
  errno = saved;
}

// Calls first .. last, modulo 2^32.
void ZeroCopySender::noticed(std::uint32_t first, std::uint32_t last, bool copied) {
  if (copied && (copied_calls_ += last - first + 1) >= kCopiedMax) enabled_ = false;
  for (Held& held : held_) {
    for (std::uint32_t call = 0; call < held.calls && held.open != 0; ++call) {
      if (held.first + call - first <= last - first) --held.open;
    }
  }
  drop_ended();
}

// From the front and in place, so that what is being sent stays where it is.
void ZeroCopySender::drop_ended() {
  for (Held& held : held_) {
    if (held.open != 0 || held.sending || !held.hold) continue;
    held.hold.reset();
    held_bytes_ -= held.bytes;
  }
  while (!held_.empty() && !held_.front().hold) held_.pop_front();
}

bool ZeroCopySender::settle(std::uint64_t bytes, Deadline deadline) {
  reap();
  while (held_bytes_ > bytes) {
    pollfd one{fd_, 0, 0};  // POLLERR is always told
    if (::poll(&one, 1, 20) < 0 && errno != EINTR) return false;
    const std::uint64_t before = held_bytes_;
    reap();
    if (held_bytes_ == before && Clock::now() >= deadline) return false;
  }
  return true;
}

bool ZeroCopySender::abort(Deadline deadline) {
  if (held_.empty()) return true;
  sockaddr none{};
  none.sa_family = AF_UNSPEC;
  (void)::connect(fd_, &none, sizeof none);  // ends the connection and empties its queue
  return settle(0, deadline);
}

void ZeroCopySender::leak() {
  for (Held& held : held_) (void)new std::shared_ptr<void>(std::move(held.hold));
  held_.clear();
  held_bytes_ = 0;
}

}  // namespace kvcommons::peers
