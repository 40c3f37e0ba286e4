// Inside of the peer server: one connection and its life.
#pragma once

#include <mutex>

#include "peers/peer_greeting.h"
#include "peers/peer_server.h"
#include "peers/zero_copy.h"

namespace kvcommons::peers {

class PeerServer::Connection {
 public:
  Connection(PeerServer* server, UniqueFd fd) : server_(server), raw_(std::move(fd)), number_(raw_.get()) {}
  Connection(const Connection&) = delete;  // owns the socket

  void run();        // on its own thread
  void interrupt();  // run() ends soon
  [[nodiscard]] bool ended() const noexcept { return ended_.load(); }

 private:
  [[nodiscard]] bool greet();
  void serve();
  [[nodiscard]] bool await_frame();
  [[nodiscard]] bool handle(const Received& got);
  [[nodiscard]] bool locate(const Received& got);
  [[nodiscard]] bool fetch(const Received& got);
  [[nodiscard]] bool push(const Received& got);
  [[nodiscard]] bool remove(const Received& got);
  [[nodiscard]] bool send_shard(std::uint64_t request, const Lent& lent, Deadline deadline);
  [[nodiscard]] bool answer(wire::Type type, wire::Answer answer, std::uint64_t request);
  [[nodiscard]] bool same_epoch(std::uint32_t asked) const;
  [[nodiscard]] bool read_past(std::uint64_t bytes, Deadline deadline);
  void let_go();
  [[nodiscard]] bool bad();

  [[nodiscard]] PeerServerStats& stats() { return server_->stats_; }
  [[nodiscard]] const PeerServerConfig& config() const { return server_->config_; }
  [[nodiscard]] Deadline send_deadline() const { return in_ms(config().send_ms_max); }

  PeerServer* server_;
  UniqueFd raw_;
  int number_;
  std::mutex mutex_;  // guards the end of the socket against interrupt()
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<ZeroCopySender> zero_copy_;
  std::uint64_t told_zero_copy_bytes_ = 0;
  std::atomic<bool> interrupted_{false}, ended_{false};
};

// A thread of peers: a connection that is gone is an error of the call, not a signal.
void block_broken_pipe_signal();

}  // namespace kvcommons::peers
