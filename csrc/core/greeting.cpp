#include "greeting.h"

#include <algorithm>
#include <cstring>
#include <string>

namespace kvcommons {
namespace {

std::string versions_refused(const wire::HelloRequest& hello) {
  return "protocol versions " + std::to_string(hello.version_min) + " to " + std::to_string(hello.version_max) +
         " were offered; this node serves " + std::to_string(wire::kVersionMin) + " to " +
         std::to_string(wire::kVersionMax);
}

bool among(const std::vector<gid_t>& allowed, gid_t group) {
  return std::find(allowed.begin(), allowed.end(), group) != allowed.end();
}

// By its user, by its group, or by one of its further groups, for which the kernel is asked only then.
bool is_allowed(const ServerConfig& config, const Connection& connection) {
  const PeerCredentials& peer = connection.peer();
  const auto& users = config.allowed_uids;
  if (std::find(users.begin(), users.end(), peer.uid) != users.end()) return true;
  if (config.allowed_gids.empty()) return false;
  if (among(config.allowed_gids, peer.gid)) return true;
  const std::vector<gid_t> groups = peer_groups(connection.fd());
  return std::any_of(groups.begin(), groups.end(), [&](gid_t group) { return among(config.allowed_gids, group); });
}

}  // namespace

bool Greeting::refuse(Connection* connection, const wire::Frame& frame, Status status, std::string_view why) {
  wire::encode_status(connection->out(), frame.header, status, why);
  return false;
}

bool Greeting::greet(Connection* connection, const wire::Frame& frame) {
  if (!is_allowed(*config_, *connection)) {
    const char* groups = config_->allowed_gids.empty() ? "" : ", and in none of its groups";
    return refuse(
        connection, frame, Status::Denied,
        "user " + std::to_string(connection->peer().uid) + " is not among this node's allowed users" + groups);
  }
  if (frame.type() != wire::Type::Hello) return refuse(connection, frame, Status::BadFrame, "HELLO must come first");
  wire::HelloRequest hello;
  const Status status = wire::decode_hello(frame.payload, &hello);
  if (status == Status::BadVersion) return refuse(connection, frame, status, versions_refused(hello));
  if (status != Status::Ok) return refuse(connection, frame, status, Dispatcher::message_of(status));
  // Before the new session is opened, so that what the former one held is there for it.
  if (hello.drained_session != 0) dispatcher_->claim_drained(hello.drained_session, connection->peer().pid);
  connection->role = hello.role;
  if (config_->layouts != nullptr && config_->lossy.id != kvcodec::CodecId::None && !hello.exact) {
    hello.spec.fingerprint = kvcodec::lossy_fingerprint(hello.spec.fingerprint, config_->lossy);
    config_->layouts->allow(hello.spec.fingerprint, config_->lossy);
  }
  connection->fingerprint = hello.spec.fingerprint;
  if (hello.role != wire::Role::Tool && !open_session(connection, frame, hello)) return false;
  return welcome(connection, frame, hello);
}

bool Greeting::open_session(Connection* connection, const wire::Frame& frame, const wire::HelloRequest& hello) {
  const pid_t pid = connection->peer().pid;
  ProcessProof proof = prove_peer(connection->fd(), pid, connection->take_sent_fd());
  if (proof.source == ProofSource::None) {
    return refuse(connection, frame, Status::Denied,
                  "the end of this process could not be seen from here (no pidfd), so its slots could never be freed");
  }
  SessionId session = 0;
  const Status status = store_->open_session(hello.spec, &session);
  if (status != Status::Ok) return refuse(connection, frame, status, Dispatcher::message_of(status));
  connection->session = session;
  if (pid > 0) store_->note_process(session, static_cast<std::uint32_t>(pid));
  if (ledger_->opened(session, connection->id(), pid, std::move(proof))) return true;
  connection->session = 0;
  store_->close_session(session);
  store_->resolve_session(session);  // it was never told of any slot
  return refuse(connection, frame, Status::Internal, "the node cannot watch one more process");
}

bool Greeting::welcome(Connection* connection, const wire::Frame& frame, const wire::HelloRequest& hello) {
  const bool tool = hello.role == wire::Role::Tool;
  wire::HelloAnswer answer;
  answer.node_id = config_->node_id;
  answer.fixed.version =
      wire::negotiate(wire::kVersionMin, wire::kVersionMax, hello.version_min, hello.version_max).value_or(0);
  answer.fixed.flags = config_->multi_tenant ? std::uint32_t{wire::kFlagMultiTenant} : 0u;
  if (config_->tiers != nullptr) answer.fixed.flags |= wire::kFlagTiers;
  if (config_->layouts != nullptr) {
    answer.fixed.flags |= wire::kFlagLayouts;
    answer.fixed.flags |= static_cast<std::uint32_t>(config_->lossy.id) << wire::kLossyCodecShift;
    answer.fixed.flags |= config_->lossy.group << wire::kLossyGroupShift;
  }
  answer.fixed.session = connection->session;
  answer.fixed.arena_bytes = config_->arena_bytes;
  std::memcpy(answer.fixed.arena_id, config_->arena_id.data(), config_->arena_id.size());
  if (!tool) std::memcpy(answer.fixed.namespace_secret, config_->namespace_secret.bytes.data(), kKeyBytes);
  wire::encode_hello_reply(connection->out(), frame.header, answer);
  connection->greeted = true;
  // Nothing was sent before on this connection, so the reply goes out whole, and the arena with it.
  return connection->flush_with_fd(config_->arena_fd) != Connection::Io::Ended;
}

}  // namespace kvcommons
