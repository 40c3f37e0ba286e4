// Turns one decoded request of a greeted connection into a call of the store and a reply frame. Knows no socket.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "connection.h"
#include "kv_layouts.h"
#include "session_ledger.h"
#include "store.h"
#include "tiers/manager.h"

namespace kvcommons {

class Dispatcher {
 public:
  // tiers: null for memory alone. layouts: null where nobody wants to know.
  Dispatcher(Store* store, TierManager* tiers, KvLayouts* layouts, SessionLedger* ledger,
             std::function<std::string()> stat_json, std::function<void(std::uint64_t connection)> close)
      : store_(store),
        tiers_(tiers),
        layouts_(layouts),
        ledger_(ledger),
        stat_json_(std::move(stat_json)),
        close_(std::move(close)) {}
  Dispatcher(const Dispatcher&) = delete;  // its scratch space is for one thread

  // false: the frame was malformed: BadFrame is in the connection's buffer, close it after.
  bool handle(Connection* connection, const wire::Frame& frame);

  // `session` is said to be drained by the process `pid`; a connection that it still has is closed first.
  void claim_drained(SessionId session, pid_t pid);

  static const char* message_of(Status status);

 private:
  using Bytes = std::span<const std::byte>;
  bool lookup(Connection* connection, const wire::Frame& frame);
  bool begin(Connection* connection, const wire::Frame& frame);
  bool reserve(Connection* connection, const wire::Frame& frame);
  bool commit(Connection* connection, const wire::Frame& frame);
  bool abort(Connection* connection, const wire::Frame& frame);
  bool release(Connection* connection, const wire::Frame& frame);
  bool touch(Connection* connection, const wire::Frame& frame);
  bool stat(Connection* connection, const wire::Frame& frame);
  bool feedback(Connection* connection, const wire::Frame& frame);
  bool drained(Connection* connection, const wire::Frame& frame);
  bool describe(Connection* connection, const wire::Frame& frame);
  bool route(Connection* connection, const wire::Frame& frame);

  Store* store_;
  TierManager* tiers_;
  KvLayouts* layouts_;
  SessionLedger* ledger_;
  std::function<std::string()> stat_json_;
  std::function<void(std::uint64_t)> close_;
  std::vector<SlotRef> slots_;
  std::vector<Reservation> reservations_;
  std::vector<CommitItem> items_;
  std::vector<std::uint64_t> text_keys_;
};

}  // namespace kvcommons
