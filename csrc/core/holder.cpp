#include "holder.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <map>
#include <memory>

#include "holder_packet.h"

namespace kvcommons {
namespace {

using holder::Op;
using holder::Packet;
using holder::PacketBytes;
using holder::write_packet;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kConnectionsMax = 16;
constexpr int kSendMsMax = 1'000;

class Holder {
 public:
  explicit Holder(const std::string& path) : listener_(path, SOCK_SEQPACKET, 0600) { listener_.listen(); }

  void run(std::uint32_t idle_seconds_max, const std::function<bool()>& interrupted) {
    auto idle_since = Clock::now();
    while (!stopped_ && !(interrupted && interrupted())) {
      if (!connections_.empty()) idle_since = Clock::now();
      if (Clock::now() - idle_since >= std::chrono::seconds(idle_seconds_max)) return;
      poll_once();
    }
  }

 private:
  void poll_once() {
    std::vector<pollfd> entries{{listener_.fd(), POLLIN, 0}};
    for (const UniqueFd& connection : connections_) entries.push_back({connection.get(), POLLIN, 0});
    if (::poll(entries.data(), entries.size(), 1'000) <= 0) return;
    for (std::size_t i = entries.size() - 1; i >= 1; --i) {
      if (entries[i].revents != 0 && !serve(connections_[i - 1].get())) drop(i - 1);
    }
    if (entries[0].revents != 0) accept();
  }

  void accept() {
    UniqueFd connection = unix_accept(listener_.fd());
    if (!connection || connections_.size() >= kConnectionsMax) return;
    const uid_t uid = peer_credentials(connection.get()).uid;
    if (uid != ::geteuid() && uid != 0) {
      answer(connection.get(), {Op::Denied, {}, {}}, -1);
      return;
    }
    connections_.push_back(std::move(connection));
  }

  void drop(std::size_t index) {
    if (connections_[index].get() == attached_) attached_ = -1;
    connections_.erase(connections_.begin() + static_cast<std::ptrdiff_t>(index));
  }

  // false: the connection ended or broke the protocol.
  bool serve(int connection) {
    PacketBytes bytes;
    UniqueFd fd;
    const ssize_t got = recv_with_fd(connection, bytes, &fd, MSG_DONTWAIT);
    if (got < 0) return errno == EAGAIN || errno == EINTR;
    if (got == 0) return false;
    const auto packet = holder::read_packet(std::span(bytes).first(static_cast<std::size_t>(got)));
    if (!packet) return false;
    switch (packet->op) {
      case Op::Attach:
        return attach(connection);
      case Op::Put:
        return connection == attached_ && put(*packet, std::move(fd));
      case Op::Remove:
        if (connection != attached_) return false;
        if (const auto found = held_.find(packet->name); found != held_.end()) held_.erase(found);
        return true;
      case Op::Stop:
        stopped_ = true;
        return true;
      default:
        return false;
    }
  }

  // What a node that was killed had sent comes before its connection's end, and is not to keep its successor out.
  void hear_attached_out() {
    for (std::size_t packets = 0; packets < 2 * kHeldEntriesMax && wait_for(attached_, POLLIN, 0); ++packets) {
      if (serve(attached_)) continue;
      attached_ = -1;  // dropped when it is next looked at
      return;
    }
  }

  bool attach(int connection) {
    if (attached_ >= 0 && attached_ != connection) hear_attached_out();
    if (attached_ >= 0 && attached_ != connection) return answer(connection, {Op::InUse, {}, {}}, -1);
    attached_ = connection;
    for (const auto& [name, entry] : held_) {
      if (!answer(connection, {Op::Entry, name, entry.meta}, entry.fd.get())) return false;
    }
    return answer(connection, {Op::End, {}, {}}, -1);
  }

  bool put(const Packet& packet, UniqueFd fd) {
    if (!fd || packet.name.empty()) return false;
    const auto found = held_.find(packet.name);
    if (found == held_.end() && held_.size() >= kHeldEntriesMax) return true;  // refused by keeping what is there
    Entry entry{{packet.meta.begin(), packet.meta.end()}, std::move(fd)};
    held_.insert_or_assign(std::string(packet.name), std::move(entry));
    return true;
  }

  static bool answer(int connection, const Packet& packet, int fd) {
    PacketBytes bytes;
    const auto message = write_packet(&bytes, packet);
    if (send_with_fd(connection, message, fd, MSG_DONTWAIT) >= 0) return true;
    if (errno != EAGAIN || !wait_for(connection, POLLOUT, kSendMsMax)) return false;
    return send_with_fd(connection, message, fd, MSG_DONTWAIT) >= 0;
  }

  struct Entry {
    std::vector<std::byte> meta;
    UniqueFd fd;
  };
  UnixListener listener_;
  std::vector<UniqueFd> connections_;
  std::map<std::string, Entry, std::less<>> held_;
  int attached_ = -1;
  bool stopped_ = false;
};

}  // namespace

void holder_serve(const std::string& socket_path, std::uint32_t idle_seconds_max,
                  const std::function<bool()>& interrupted) {
  raise_descriptor_limit();
  Holder(socket_path).run(idle_seconds_max, interrupted);
}

bool holder_stop(const std::string& socket_path) {
  UniqueFd socket = unix_connect(socket_path, SOCK_SEQPACKET);
  if (!socket) return false;
  PacketBytes bytes;
  if (send_with_fd(socket.get(), holder::write_packet(&bytes, {Op::Stop, {}, {}}), -1, MSG_DONTWAIT) < 0) return false;
  return wait_for(socket.get(), POLLIN, kSendMsMax);  // its end closes the connection
}

HolderLink::Attach HolderLink::attach(std::vector<HeldFd>* held, int ms_max) {
  held->clear();
  socket_ = unix_connect(path_, SOCK_SEQPACKET);
  if (!socket_) return errno == EACCES ? Attach::Denied : Attach::Absent;
  PacketBytes bytes;
  if (!send(write_packet(&bytes, {Op::Attach, {}, {}}), -1)) return Attach::Absent;
  const auto give_up = [&](Attach why) {
    socket_.reset();
    held->clear();
    return why;
  };
  const auto deadline = Clock::now() + std::chrono::milliseconds(ms_max);
  for (std::size_t i = 0; i <= kHeldEntriesMax; ++i) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    UniqueFd fd;
    if (!wait_for(socket_.get(), POLLIN, static_cast<int>(std::max<std::int64_t>(left, 0)))) break;
    const ssize_t got = recv_with_fd(socket_.get(), bytes, &fd, MSG_DONTWAIT);
    if (got <= 0) break;
    const auto packet = holder::read_packet(std::span(bytes).first(static_cast<std::size_t>(got)));
    if (!packet) break;
    if (packet->op == Op::End) return Attach::Attached;
    if (packet->op == Op::InUse) return give_up(Attach::InUse);
    if (packet->op == Op::Denied) return give_up(Attach::Denied);
    if (packet->op != Op::Entry || !fd) break;
    held->push_back({std::string(packet->name), {packet->meta.begin(), packet->meta.end()}, std::move(fd)});
  }
  return give_up(Attach::Absent);
}

bool HolderLink::put(std::string_view name, std::span<const std::byte> meta, int fd) {
  if (!connected() || name.empty() || name.size() > kHeldNameBytesMax || meta.size() > kHeldMetaBytesMax) return false;
  PacketBytes bytes;
  return send(write_packet(&bytes, {Op::Put, name, meta}), fd);
}

bool HolderLink::remove(std::string_view name) {
  if (!connected() || name.size() > kHeldNameBytesMax) return false;
  PacketBytes bytes;
  return send(write_packet(&bytes, {Op::Remove, name, {}}), -1);
}

bool HolderLink::alive() {
  if (!connected()) return false;
  std::byte unused{};
  const ssize_t got = ::recv(socket_.get(), &unused, 1, MSG_DONTWAIT | MSG_PEEK);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  socket_.reset();
  return false;
}

bool HolderLink::send(std::span<const std::byte> packet, int fd) {
  constexpr int kFullMsMax = 20;  // the holder does nothing else: a queue that stays full means it hangs
  for (int attempt = 0; attempt < 2; ++attempt) {
    if (send_with_fd(socket_.get(), packet, fd, MSG_DONTWAIT) >= 0) return true;
    if (errno != EAGAIN || !wait_for(socket_.get(), POLLOUT, kFullMsMax)) break;
  }
  socket_.reset();
  return false;
}

}  // namespace kvcommons
