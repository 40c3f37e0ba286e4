// The first frame of a connection: who is it, does it speak our protocol, which session and arena does it get.
#pragma once

#include "connection.h"
#include "dispatcher.h"
#include "server.h"
#include "session_ledger.h"

namespace kvcommons {

class Greeting {
 public:
  Greeting(const ServerConfig* config, Store* store, SessionLedger* ledger, Dispatcher* dispatcher)
      : config_(config), store_(store), ledger_(ledger), dispatcher_(dispatcher) {}
  Greeting(const Greeting&) = delete;  // one a server

  // Answers the frame. false: refused, close the connection after the answer.
  bool greet(Connection* connection, const wire::Frame& frame);

 private:
  bool refuse(Connection* connection, const wire::Frame& frame, Status status, std::string_view why);
  bool open_session(Connection* connection, const wire::Frame& frame, const wire::HelloRequest& hello);
  bool welcome(Connection* connection, const wire::Frame& frame, const wire::HelloRequest& hello);

  const ServerConfig* config_;
  Store* store_;
  SessionLedger* ledger_;
  Dispatcher* dispatcher_;
};

}  // namespace kvcommons
