#include "server.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>
#include <unordered_map>

#include "connection.h"
#include "dispatcher.h"
#include "greeting.h"
#include "session_ledger.h"
#include "stats_json.h"

namespace kvcommons {
namespace {

using Clock = Connection::Clock;
using Io = Connection::Io;
using std::chrono::milliseconds;

constexpr milliseconds kTick{100};
constexpr int kEventsPerWake = 64;
constexpr int kAcceptsPerWake = 64;
constexpr int kHolderAttachMsMax = 20;  // of the server's thread, at most once in kHolderRetry
constexpr milliseconds kHolderRetry{1'000};

// What an epoll event is about: a kind in the top bits, a number below.
enum class Kind : std::uint64_t { Listener = 0, Wake = 1, Connection = 2, Process = 3 };
constexpr int kKindShift = 62;
constexpr std::uint64_t tag(Kind kind, std::uint64_t number) {
  return static_cast<std::uint64_t>(kind) << kKindShift | number;
}

}  // namespace

class Server::Impl {
 public:
  Impl(ServerConfig config, std::unique_ptr<UnixListener> listener, Store* store, HolderLink* holder,
       std::vector<HeldFd> held)
      : config_(std::move(config)),
        store_(store),
        holder_(holder),
        epoll_(::epoll_create1(EPOLL_CLOEXEC)),
        wake_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        ledger_(store, holder, [this](int fd, std::uint64_t serial) { return watch(fd, tag(Kind::Process, serial)); }),
        dispatcher_(
            store, config_.tiers, config_.layouts, &ledger_, [this] { return stat_json(); },
            [this](std::uint64_t id) { close(id); }),
        greeting_(&config_, store, &ledger_, &dispatcher_),
        listener_(std::move(listener)) {
    if (!epoll_ || !wake_) throw_errno("epoll and eventfd of the server");
    ledger_.adopt(std::move(held));
    publish_gauges();
    if (!watch(wake_.get(), tag(Kind::Wake, 0)) || !watch(listener_->fd(), tag(Kind::Listener, 0))) {
      throw_errno("epoll of the server");
    }
  }

  ~Impl() { stop(); }

  void start() {
    listener_->listen();
    thread_ = std::thread([this] { run(); });
  }

  void stop() {
    if (!thread_.joinable()) return;
    stopping_.store(true);
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
    thread_.join();
    connections_.clear();
  }

  [[nodiscard]] const Stats& stats() const noexcept { return stats_; }

  [[nodiscard]] std::string stat_json() const {
    return counters_json([this](auto visit) {
      visit_counters(store_->stats(), visit);
      visit_counters(stats_, visit);
      if (config_.tiers != nullptr) visit_counters(config_.tiers->stats(), visit);
    });
  }

 private:
  bool watch(int fd, std::uint64_t data) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = data;
    return ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  void run() {
    auto next_tick = Clock::now() + kTick;
    std::array<epoll_event, kEventsPerWake> events{};
    while (!stopping_.load()) {
      const auto left = std::chrono::ceil<milliseconds>(next_tick - Clock::now()).count();
      const int count =
          ::epoll_wait(epoll_.get(), events.data(), kEventsPerWake, static_cast<int>(std::max<std::int64_t>(left, 0)));
      for (int i = 0; i < count; ++i) on_event(events[static_cast<std::size_t>(i)]);
      if (Clock::now() >= next_tick) {
        tick();
        next_tick = Clock::now() + kTick;
      }
    }
  }

  void on_event(const epoll_event& event) {
    const std::uint64_t number = event.data.u64 & ~(std::uint64_t{3} << kKindShift);
    switch (static_cast<Kind>(event.data.u64 >> kKindShift)) {
      case Kind::Listener:
        accept();
        break;
      case Kind::Wake:
        break;  // stopping_ is set
      case Kind::Connection:
        // Closed by an earlier event of this round: its number is not used again.
        if (const auto found = connections_.find(number); found != connections_.end()) {
          on_connection(found->second.get(), event.events);
        }
        break;
      case Kind::Process:
        if (const std::uint64_t id = ledger_.process_ended(number); id != 0) close(id);
        break;
    }
  }

  void accept() {
    for (int i = 0; i < kAcceptsPerWake; ++i) {
      UniqueFd socket = unix_accept(listener_->fd());
      if (!socket) {
        // Out of descriptors: the listener stays readable, so it is left alone until the next tick.
        if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) pause_listener(true);
        return;
      }
      if (connections_.size() >= config_.connections_max) {
        stats_.refused.fetch_add(1);
        continue;
      }
      const std::uint64_t id = next_connection_++;
      auto connection = std::make_unique<Connection>(std::move(socket), id);
      connection->watched = EPOLLIN;
      if (!watch(connection->fd(), tag(Kind::Connection, id))) continue;
      connections_.emplace(id, std::move(connection));
      stats_.accepted.fetch_add(1);
      stats_.connections.store(connections_.size());
    }
  }

  void pause_listener(bool pause) {
    epoll_event event{};
    event.events = pause ? 0u : static_cast<std::uint32_t>(EPOLLIN);
    event.data.u64 = tag(Kind::Listener, 0);
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, listener_->fd(), &event);
    listener_paused_ = pause;
  }

  void on_connection(Connection* connection, std::uint32_t events) {
    const std::uint64_t id = connection->id();
    if ((events & EPOLLIN) != 0 && !connection->paused() && !connection->closing) {
      if (connection->read() == Io::Ended || !account(connection)) return close(id);
    } else if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
      return close(id);
    }
    advance(connection);
  }

  // Answers what has come in whole, sends what can be sent, and waits for what is missing.
  void advance(Connection* connection) {
    for (;;) {
      const bool all = serve_frames(connection);
      if (connection->flush() == Io::Ended) return close(connection->id());
      if (all || connection->paused()) break;
    }
    if (connection->closing && !connection->sending()) return close(connection->id());
    if (!account(connection)) return close(connection->id());
    const std::uint32_t wanted = (connection->paused() || connection->closing ? 0u : std::uint32_t{EPOLLIN}) |
                                 (connection->sending() ? std::uint32_t{EPOLLOUT} : 0u);
    if (wanted == connection->watched) return;
    epoll_event event{};
    event.events = wanted;
    event.data.u64 = tag(Kind::Connection, connection->id());
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, connection->fd(), &event);
    connection->watched = wanted;
  }

  // true: no whole frame is left. A connection that is to be closed has nothing left either.
  bool serve_frames(Connection* connection) {
    while (!connection->closing) {
      if (connection->paused()) return false;
      wire::Frame frame;
      const wire::Parse parsed = connection->next(&frame);
      if (parsed == wire::Parse::Incomplete) return true;
      stats_.requests.fetch_add(1, std::memory_order_relaxed);
      const bool proper = parsed == wire::Parse::Complete && serve(connection, frame);
      if (!proper) {
        if (parsed == wire::Parse::Malformed) {
          wire::encode_status(connection->out(), frame.header, Status::BadFrame,
                              Dispatcher::message_of(Status::BadFrame));
        }
        connection->closing = true;
        return true;
      }
      connection->consume(frame);
    }
    return true;
  }

  // false: answered, and to be closed.
  bool serve(Connection* connection, const wire::Frame& frame) {
    if (connection->greeted) {
      if (dispatcher_.handle(connection, frame)) return true;
      stats_.bad_frames.fetch_add(1);
      return false;
    }
    if (greeting_.greet(connection, frame)) return true;
    stats_.refused.fetch_add(1);
    return false;
  }

  // Keeps the sum of all buffers; false when this connection made it too much.
  bool account(Connection* connection) {
    buffered_ -= connection->accounted_bytes;
    connection->accounted_bytes = connection->buffered_bytes();
    buffered_ += connection->accounted_bytes;
    if (buffered_ <= config_.buffers_bytes_max) return true;
    stats_.overloaded.fetch_add(1);
    return false;
  }

  void close(std::uint64_t id) {
    const auto found = connections_.find(id);
    if (found == connections_.end()) return;
    const std::unique_ptr<Connection> connection = std::move(found->second);
    connections_.erase(found);
    buffered_ -= connection->accounted_bytes;
    if (connection->session != 0) ledger_.connection_ended(connection->session);
    stats_.connections.store(connections_.size());
  }

  void tick() {
    store_->expire_leases();
    if (listener_paused_) pause_listener(false);
    close_stalled(Clock::now());
    keep_holder(Clock::now());
    publish_gauges();
  }

  void close_stalled(Clock::time_point now) {
    std::vector<std::uint64_t> stalled;
    for (const auto& [id, connection] : connections_) {
      const auto still = now - connection->last_progress;
      const bool silent = !connection->greeted && still > milliseconds(config_.hello_ms_max);
      const bool stuck = connection->unfinished() && still > milliseconds(config_.stalled_ms_max);
      if (silent || stuck) stalled.push_back(id);
    }
    stats_.stalled.fetch_add(stalled.size());
    for (const std::uint64_t id : stalled) close(id);
  }

  // A holder that was restarted, or came after the node, gets everything again.
  void keep_holder(Clock::time_point now) {
    if (!holder_->configured() || holder_->alive() || now < holder_retry_at_) return;
    holder_retry_at_ = now + kHolderRetry;
    std::vector<HeldFd> stale;
    if (holder_->attach(&stale, kHolderAttachMsMax) != HolderLink::Attach::Attached) return;
    for (const HeldFd& entry : stale) holder_->remove(entry.name);
    if (config_.on_holder_attached) config_.on_holder_attached(holder_);
    ledger_.put_all_again();
  }

  void publish_gauges() {
    stats_.sessions_former.store(ledger_.waiting_for_proof());
    stats_.sessions_unproven.store(ledger_.without_proof());
    stats_.holder_connected.store(holder_->connected() ? 1 : 0);
  }

  ServerConfig config_;
  Store* store_;
  HolderLink* holder_;
  UniqueFd epoll_, wake_;
  SessionLedger ledger_;
  Dispatcher dispatcher_;
  Greeting greeting_;
  std::unique_ptr<UnixListener> listener_;
  std::unordered_map<std::uint64_t, std::unique_ptr<Connection>> connections_;
  std::uint64_t next_connection_ = 1;
  std::uint64_t buffered_ = 0;
  bool listener_paused_ = false;
  Clock::time_point holder_retry_at_{};
  Stats stats_;
  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

Server::Server(ServerConfig config, std::unique_ptr<UnixListener> listener, Store* store, HolderLink* holder,
               std::vector<HeldFd> held)
    : impl_(std::make_unique<Impl>(std::move(config), std::move(listener), store, holder, std::move(held))) {}
Server::~Server() = default;
void Server::start() { impl_->start(); }
void Server::stop() { impl_->stop(); }
const Server::Stats& Server::stats() const noexcept { return impl_->stats(); }
std::string Server::stat_json() const { return impl_->stat_json(); }

}  // namespace kvcommons
