// The node's Unix socket: one thread, one epoll, non-blocking connections with bounded buffers. A client that sends
// half a frame, forges one or does not read its replies delays nobody but itself.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "holder.h"
#include "kv_layouts.h"
#include "socket.h"
#include "store.h"
#include "tiers/manager.h"

namespace kvcommons {

struct ServerConfig {
  std::vector<uid_t> allowed_uids;  // checked against SO_PEERCRED
  std::vector<gid_t> allowed_gids;  // or this one, or SO_PEERGROUPS: whoever is in one of them is let in as well
  std::string node_id;
  Key namespace_secret;
  bool multi_tenant = false;
  int arena_fd = -1;  // the caller's; outlives the server
  std::uint64_t arena_bytes = 0;
  std::array<std::uint8_t, 16> arena_id{};
  std::uint32_t connections_max = 4'160;                // sessions_max and some tools
  std::uint32_t hello_ms_max = 5'000;                   // a connection that has not greeted by then is closed
  std::uint32_t stalled_ms_max = 10'000;                // as is one whose half frame or unread reply makes no progress
  std::uint64_t buffers_bytes_max = 256ull << 20;       // of all connections together
  KvLayouts* layouts = nullptr;                         // told what engines say of their slots; outlives the server
  kvcodec::CodecSpec lossy;                             // what a codec with loss gives back may answer; None: never
  TierManager* tiers = nullptr;                         // asked for what memory has not; outlives the server
  std::function<void(HolderLink*)> on_holder_attached;  // puts what is the caller's again, on the server's thread
};

class Server {
 public:
  // Takes the proofs of a former life out of `held`; listens from start() on.
  Server(ServerConfig config, std::unique_ptr<UnixListener> listener, Store* store, HolderLink* holder,
         std::vector<HeldFd> held);
  ~Server();
  Server(const Server&) = delete;  // owns its thread

  void start();
  void stop();  // closes the connections; sessions stay as they are, for the next daemon to resolve

  struct Stats {
    std::atomic<std::uint64_t> connections{0}, accepted{0}, refused{0}, requests{0}, bad_frames{0}, overloaded{0},
        stalled{0}, sessions_former{0}, sessions_unproven{0}, holder_connected{0};
  };
  [[nodiscard]] const Stats& stats() const noexcept;
  [[nodiscard]] std::string stat_json() const;  // the store's counters and these

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

template <typename Visit>
void visit_counters(const Server::Stats& s, Visit visit) {
  visit(std::string_view("connections"), s.connections.load());
  visit(std::string_view("connections_accepted"), s.accepted.load());
  visit(std::string_view("connections_refused"), s.refused.load());
  visit(std::string_view("requests"), s.requests.load());
  visit(std::string_view("bad_frames"), s.bad_frames.load());
  visit(std::string_view("connections_overloaded"), s.overloaded.load());
  visit(std::string_view("connections_stalled"), s.stalled.load());
  visit(std::string_view("sessions_former"), s.sessions_former.load());
  visit(std::string_view("sessions_unproven"), s.sessions_unproven.load());
  visit(std::string_view("holder_connected"), s.holder_connected.load());
}

}  // namespace kvcommons
