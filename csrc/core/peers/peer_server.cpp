#include "peers/peer_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>

#include "peers/peer_connection.h"

namespace kvcommons::peers {

PeerServer::PeerServer(PeerServerConfig config, PeerSource* source)
    : config_(std::move(config)), source_(source), greeting_key_(greeting_key(config_.secret)) {
  if (config_.tls) tls_ = std::make_unique<TlsContext>(*config_.tls);
  listener_ = tcp_listen(config_.host, config_.port, &port_);
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) throw_errno("eventfd");
  acceptor_ = std::thread([this] { accept_all(); });
}

PeerServer::~PeerServer() {
  stopping_.store(true);
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof one);
  acceptor_.join();
  for (Served& served : served_) served.connection->interrupt();
  for (Served& served : served_) served.thread.join();
}

void PeerServer::accept_all() {
  block_broken_pipe_signal();
  while (!stopping_.load()) {
    std::array<pollfd, 2> watched{pollfd{listener_.get(), POLLIN, 0}, pollfd{wake_.get(), POLLIN, 0}};
    (void)::poll(watched.data(), watched.size(), 1'000);
    reap_ended();
    for (UniqueFd fd = tcp_accept(listener_.get()); fd && !stopping_.load(); fd = tcp_accept(listener_.get())) {
      if (served_.size() >= config_.connections_max) {
        stats_.refused.fetch_add(1);
        continue;  // closed
      }
      stats_.accepted.fetch_add(1);
      served_.push_back({std::make_unique<Connection>(this, std::move(fd)), {}});
      Connection* connection = served_.back().connection.get();
      served_.back().thread = std::thread([connection] { connection->run(); });
      stats_.connections.store(served_.size());
    }
  }
}

void PeerServer::reap_ended() {
  for (auto it = served_.begin(); it != served_.end();) {
    if (it->connection->ended()) {
      it->thread.join();
      it = served_.erase(it);
    } else {
      ++it;
    }
  }
  stats_.connections.store(served_.size());
}

}  // namespace kvcommons::peers
