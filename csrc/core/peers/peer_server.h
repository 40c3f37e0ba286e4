// What answers peers: a listening socket, and a thread for each connection up to a bound. A peer that sends half a
// frame, forges one or does not read its answers delays nobody but itself, and is cut off.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "peers/peer_source.h"
#include "peers/peer_stream.h"
#include "peers/tls_library.h"

namespace kvcommons::peers {

struct PeerServerConfig {
  std::string host = "127.0.0.1";  // an IP address
  std::uint16_t port = 0;          // 0: any
  Key secret;                      // the pool's
  std::optional<TlsConfig> tls;
  bool zero_copy = true;
  std::uint32_t connections_max = 256;
  std::uint32_t greet_ms_max = 2'000;
  std::uint32_t idle_ms_max = 120'000;
  std::uint32_t send_ms_max = 5'000;           // for one shard, or for what a peer brings
  std::uint32_t held_ms_max = 10'000;          // until the kernel has let go of what a lost connection was being sent
  std::uint64_t held_bytes_max = 64ull << 20;  // of one connection, sent without a copy and not let go of
};

struct PeerServerStats {
  std::atomic<std::uint64_t> connections{0}, accepted{0}, refused{0}, denied{0}, bad_frames{0};
  std::atomic<std::uint64_t> located{0}, sent{0}, sent_bytes{0}, sent_bytes_zero_copy{0}, sent_bytes_tls{0};
  std::atomic<std::uint64_t> gone{0}, missing{0}, taken{0}, taken_bytes{0}, taken_refused{0}, broken{0}, leaked{0};
};

class PeerServer {
 public:
  // Listens from here on; throws as tcp_listen and TlsContext do. The source outlives the server.
  PeerServer(PeerServerConfig config, PeerSource* source);
  ~PeerServer();
  PeerServer(const PeerServer&) = delete;  // owns its threads

  [[nodiscard]] std::uint16_t port() const noexcept { return port_; }
  // Under which the index tells of this node's chunks; wire::kAnyEpoch: it does not.
  void set_epoch(std::uint32_t epoch) noexcept { epoch_.store(epoch); }
  [[nodiscard]] const PeerServerStats& stats() const noexcept { return stats_; }

 private:
  class Connection;
  struct Served {
    std::unique_ptr<Connection> connection;
    std::thread thread;
  };
  void accept_all();
  void reap_ended();

  PeerServerConfig config_;
  PeerSource* source_;
  Key greeting_key_;
  std::unique_ptr<TlsContext> tls_;
  std::uint16_t port_ = 0;
  UniqueFd listener_, wake_;
  std::atomic<std::uint32_t> epoch_{wire::kAnyEpoch};
  std::atomic<bool> stopping_{false};
  PeerServerStats stats_;
  std::list<Served> served_;  // the acceptor's
  std::thread acceptor_;      // last: it uses the others
};

template <typename Visit>
void visit_counters(const PeerServerStats& s, Visit visit) {
#define KVCOMMONS_COUNTER(name) visit(std::string_view("peer_server_" #name), s.name.load())
  KVCOMMONS_COUNTER(connections);
  KVCOMMONS_COUNTER(accepted);
  KVCOMMONS_COUNTER(refused);
  KVCOMMONS_COUNTER(denied);
  KVCOMMONS_COUNTER(bad_frames);
  KVCOMMONS_COUNTER(located);
  KVCOMMONS_COUNTER(sent);
  KVCOMMONS_COUNTER(sent_bytes);
  KVCOMMONS_COUNTER(sent_bytes_zero_copy);
  KVCOMMONS_COUNTER(sent_bytes_tls);
  KVCOMMONS_COUNTER(gone);
  KVCOMMONS_COUNTER(missing);
  KVCOMMONS_COUNTER(taken);
  KVCOMMONS_COUNTER(taken_bytes);
  KVCOMMONS_COUNTER(taken_refused);
  KVCOMMONS_COUNTER(broken);
  KVCOMMONS_COUNTER(leaked);
#undef KVCOMMONS_COUNTER
}
static_assert(sizeof(PeerServerStats) == 17 * sizeof(std::uint64_t), "a counter is missing above");

}  // namespace kvcommons::peers
