#include "peers/peer_connection.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>

#include "xxh3.h"

namespace kvcommons::peers {
namespace {

using wire::Answer;
using wire::Type;

constexpr std::uint64_t kZeroCopyBytesMin = 64u << 10;  // below, a copy costs less than its notice

void count(std::atomic<std::uint64_t>& counter, std::uint64_t n = 1) {
  counter.fetch_add(n, std::memory_order_relaxed);
}

}  // namespace

void block_broken_pipe_signal() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGPIPE);
  (void)::pthread_sigmask(SIG_BLOCK, &set, nullptr);
}

void PeerServer::Connection::run() {
  block_broken_pipe_signal();
  if (greet()) {
    serve();
  } else if (!interrupted_.load()) {
    count(stats().denied);
  }
  let_go();
  {
    const std::lock_guard lock(mutex_);
    zero_copy_.reset();
    stream_.reset();
    raw_.reset();
    number_ = -1;
  }
  ended_.store(true);
}

void PeerServer::Connection::interrupt() {
  interrupted_.store(true);
  const std::lock_guard lock(mutex_);
  if (number_ >= 0) (void)::shutdown(number_, SHUT_RDWR);
}

bool PeerServer::Connection::greet() {
  const Deadline deadline = in_ms(config().greet_ms_max);
  std::unique_ptr<Stream> stream;
  if (server_->tls_) {
    std::string why;
    {
      const std::lock_guard lock(mutex_);
      number_ = -1;  // whoever interrupts finds `interrupted_` instead: the descriptor may be closed in there
    }
    const int fd = raw_.get();
    stream = server_->tls_->wrap(std::move(raw_), true, deadline, &why);
    if (!stream) return false;
    const std::lock_guard lock(mutex_);
    number_ = fd;
  } else {
    stream = std::make_unique<PlainStream>(std::move(raw_));
  }
  stream_ = std::move(stream);
  if (interrupted_.load() || !greet_client(*stream_, server_->greeting_key_, server_->epoch_.load(), deadline)) {
    return false;
  }
  zero_copy_ = std::make_unique<ZeroCopySender>(stream_->fd(), config().zero_copy && stream_->plain());
  return true;
}

void PeerServer::Connection::serve() {
  Received got;
  while (!interrupted_.load() && await_frame() && !interrupted_.load()) {
    if (!receive(*stream_, send_deadline(), &got) || !handle(got)) return;
  }
}

// The kernel's notices wake a wait, too: what they let go of is let go of at once, and no frame comes with them.
bool PeerServer::Connection::await_frame() {
  const Deadline deadline = in_ms(config().idle_ms_max);
  for (;;) {
    zero_copy_->reap();
    if (!stream_->readable(deadline)) return false;
    if (zero_copy_->held_bytes() == 0) return true;
    pollfd one{stream_->fd(), POLLIN, 0};
    if (::poll(&one, 1, 0) > 0 && (one.revents & (POLLIN | POLLHUP)) != 0) return true;
  }
}

bool PeerServer::Connection::handle(const Received& got) {
  switch (static_cast<Type>(got.header.type)) {
    case Type::Locate:
      return locate(got);
    case Type::Fetch:
      return fetch(got);
    case Type::Push:
      return push(got);
    case Type::Remove:
      return remove(got);
    default:
      return bad();
  }
}

bool PeerServer::Connection::bad() {
  count(stats().bad_frames);
  return false;
}

bool PeerServer::Connection::answer(Type type, Answer answer, std::uint64_t request) {
  wire::Out out;
  wire::put_frame(&out, type, answer, request, {});
  return stream_->write(out, send_deadline());
}

bool PeerServer::Connection::same_epoch(std::uint32_t asked) const {
  return asked == wire::kAnyEpoch || asked == server_->epoch_.load();
}

bool PeerServer::Connection::locate(const Received& got) {
  wire::LocateRequest request;
  if (!wire::decode(got.payload, &request)) return bad();
  count(stats().located);
  if (!same_epoch(request.head.epoch)) return answer(Type::Located, Answer::Gone, got.header.request);
  wire::LocatedReply reply;
  server_->source_->locate(request, &reply);
  reply.head.epoch = server_->epoch_.load();
  wire::Out out;
  wire::put_located(&out, got.header.request, reply.head, reply.places);
  return stream_->write(out, send_deadline());
}

bool PeerServer::Connection::fetch(const Received& got) {
  wire::FetchRequest request;
  if (!wire::decode(got.payload, &request)) return bad();
  const bool current = same_epoch(request.head.epoch);
  for (const wire::Item& item : request.items) {
    Lent lent;
    const Answer status = current ? server_->source_->lend(request.head.fingerprint, item, &lent) : Answer::Gone;
    if (status == Answer::Ok) {
      if (!send_shard(got.header.request, lent, send_deadline())) {
        count(stats().broken);
        return false;
      }
      continue;
    }
    count(status == Answer::Gone ? stats().gone : stats().missing);
    if (!answer(Type::Shard, status, got.header.request)) return false;
  }
  return true;
}

bool PeerServer::Connection::send_shard(std::uint64_t request, const Lent& lent, Deadline deadline) {
  const std::span<const std::byte> bytes(lent.data, lent.meta.payload_bytes);
  wire::Out out;
  wire::put_shard(&out, Type::Shard, request, lent.meta, {});
  if (!stream_->write(out, deadline)) return false;
  if (zero_copy_->worthwhile() && bytes.size() >= kZeroCopyBytesMin) {
    if (!zero_copy_->send(bytes, lent.hold, deadline)) return false;
    const std::uint64_t all = zero_copy_->sent_bytes();
    count(stats().sent_bytes_zero_copy, all - std::exchange(told_zero_copy_bytes_, all));
    if (!zero_copy_->settle(config().held_bytes_max, deadline)) return false;
  } else if (!stream_->write(bytes, deadline)) {
    return false;
  }
  count(stats().sent);
  count(stats().sent_bytes, bytes.size());
  if (!stream_->plain()) count(stats().sent_bytes_tls, bytes.size());
  return true;
}

bool PeerServer::Connection::read_past(std::uint64_t bytes, Deadline deadline) {
  std::array<std::byte, 16'384> some{};
  while (bytes != 0) {
    const auto part = std::min<std::uint64_t>(bytes, some.size());
    if (!stream_->read(std::span(some).first(static_cast<std::size_t>(part)), deadline)) return false;
    bytes -= part;
  }
  return true;
}

bool PeerServer::Connection::push(const Received& got) {
  wire::ShardHead shard;
  if (!wire::decode_shard(got.payload, true, &shard)) return bad();
  const Deadline deadline = send_deadline();
  Room room;
  Answer status = server_->source_->take(shard, &room);
  if (room.data == nullptr) {
    if (!read_past(shard.meta.payload_bytes, deadline)) return false;
    if (status != Answer::Ok) count(stats().taken_refused);
    return answer(Type::Pushed, status, got.header.request);
  }
  const std::span<std::byte> into(room.data, shard.meta.payload_bytes);
  const bool read = stream_->read(into, deadline);
  const bool whole = read && xxh3_64(into.data(), into.size()) == shard.meta.checksum;
  status = room.finish(whole);
  if (!read) return false;
  if (status == Answer::Ok) {
    count(stats().taken);
    count(stats().taken_bytes, into.size());
  } else {
    count(stats().taken_refused);
  }
  return answer(Type::Pushed, status, got.header.request);
}

bool PeerServer::Connection::remove(const Received& got) {
  wire::RemoveRequest request;
  if (!wire::decode(got.payload, &request)) return bad();
  const std::uint64_t removed = server_->source_->remove(request);
  wire::Out out;
  wire::put_frame(&out, Type::Removed, Answer::Ok, got.header.request, removed);
  return stream_->write(out, send_deadline());
}

// What is still being sent is thrown away, and held until the kernel has said so.
void PeerServer::Connection::let_go() {
  if (!zero_copy_) return;
  if (zero_copy_->abort(in_ms(config().held_ms_max))) return;
  count(stats().leaked);
  zero_copy_->leak();
}

}  // namespace kvcommons::peers
