// What stands behind a client: its one connection, attached and attached again, and the sessions that it left behind.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "client.h"
#include "client_socket.h"
#include "codec.h"
#include "timed_lock.h"

namespace kvcommons {

class ClientLink {
 public:
  using Clock = ClientSocket::Clock;

  explicit ClientLink(ClientConfig config);
  ~ClientLink() { close(); }
  ClientLink(const ClientLink&) = delete;  // owns the connection

  // Encodes with encode(buffer, request id), waits, and decodes an Ok reply with decode(payload) -> bool.
  template <typename Encode, typename Decode>
  Status call(wire::Type type, Encode encode, Decode decode);

  bool ensure_connected();
  void copy_started() { copies_.fetch_add(1); }
  void copy_finished();
  void upkeep();
  void close();

  struct Shared {
    std::string last_error, node_id;
    std::uint32_t flags = 0;
    Key secret;
    std::uint64_t attach_count = 0, arena_bytes = 0;
    std::array<std::uint8_t, 16> arena_id{};
    Client::ArenaRef arena;
  };
  template <typename T>
  [[nodiscard]] T get(T Shared::* field) const {
    const std::lock_guard lock(shared_mutex_);
    return shared_.*field;
  }
  [[nodiscard]] bool connected() const noexcept { return connected_.load(); }
  [[nodiscard]] std::uint64_t slot_bytes() const noexcept {
    return config_.own_shard < config_.shards.size() ? config_.shards[config_.own_shard].slot_bytes : 0;
  }
  [[nodiscard]] Key fingerprint() const;
  // Whether a slot of this process' shard lies in the arena: what a broken node says is not copied to.
  [[nodiscard]] bool in_arena(const SlotRef& slot) const;
  void set_error(std::string why);

 private:
  [[nodiscard]] Clock::time_point deadline() const;
  [[nodiscard]] bool in_child() const;
  // Sends what was encoded as request `id`. Not Ok: the reply's status, or the connection is gone.
  Status exchange(wire::Type type, std::uint64_t id, Clock::time_point until, wire::Frame* reply);
  bool attach_if_due(Clock::time_point until);
  Status attach(Clock::time_point until);
  Status welcomed(const wire::Frame& reply, int arena_fd);
  void back_off();
  void drop(const char* why);
  bool attached_in_passing();
  void unmap_if_abandoned();
  void mark_former_drained();
  void say_drained(Clock::time_point until);
  bool send_drained(SessionId session, Clock::time_point until);
  Status describe(Clock::time_point until);

  const ClientConfig config_;
  const pid_t owner_;

  TimedLock io_lock_;  // guards what follows, for as long as a call takes
  ClientSocket socket_;
  std::uint64_t request_id_ = 0;
  SessionId session_ = 0;
  std::vector<SessionId> former_;   // their copies may still run
  std::vector<SessionId> drained_;  // none runs any more: the node is to be told
  Clock::time_point retry_at_{};
  Clock::time_point upkeep_at_{};   // not to be attached by upkeep() before
  Clock::time_point dropped_at_{};  // when the last connection was found to be gone
  std::uint32_t back_off_ms_;
  bool closed_ = false;

  std::atomic<std::int64_t> copies_{0};
  std::atomic<bool> former_waiting_{false};
  std::atomic<bool> connected_{false};
  mutable std::mutex shared_mutex_;  // never held over a system call that waits
  Shared shared_;
};

template <typename Encode, typename Decode>
Status ClientLink::call(wire::Type type, Encode encode, Decode decode) {
  const auto until = deadline();
  const std::unique_lock lock(io_lock_, until);
  if (!lock.owns_lock()) return Status::TimedOut;
  // A connection that the node's restart ended is found out only by using it: once more then, on a new one.
  for (int attempt = 0;; ++attempt) {
    const bool fresh = !socket_.open();
    if (!attach_if_due(until)) return Status::Disconnected;
    say_drained(until);
    wire::Frame reply;
    const std::uint64_t id = ++request_id_;
    encode(&socket_.request, id);
    const Status status = exchange(type, id, until, &reply);
    if (status == Status::Disconnected && !fresh && attempt == 0) continue;
    if (status == Status::Ok && !decode(reply.payload)) {
      drop("the node's reply could not be read");
      return Status::Disconnected;
    }
    if (status == Status::Ok) back_off_ms_ = config_.reconnect_ms_min;
    return status;
  }
}

}  // namespace kvcommons
