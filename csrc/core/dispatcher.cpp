#include "dispatcher.h"

#include <exception>

namespace kvcommons {
namespace {

using wire::Frame;
using wire::FrameWriter;
using wire::Type;

void reply_status(Connection* connection, const Frame& frame, Status status) {
  const char* message = status == Status::Ok ? "" : Dispatcher::message_of(status);
  wire::encode_status(connection->out(), frame.header, status, message);
}

FrameWriter reply(Connection* connection, const Frame& frame) {
  return FrameWriter(connection->out(), static_cast<std::uint16_t>(frame.header.type | wire::kReplyBit), Status::Ok,
                     frame.header.request_id);
}

}  // namespace

const char* Dispatcher::message_of(Status status) {
  switch (status) {
    case Status::BadFrame:
      return "malformed frame";
    case Status::BadVersion:
      return "no protocol version in common";
    case Status::BadFingerprint:
      return "shards, slot sizes or chunk size differ from those this fingerprint was first declared with";
    case Status::Denied:
      return "not permitted to this connection";
    case Status::Full:
      return "sessions or leases are at their limit";
    case Status::Gone:
      return "the lease was revoked or the slot moved on";
    case Status::Busy:
      return "busy, try again later";
    case Status::TooLarge:
      return "over a limit";
    default:
      return "internal error";
  }
}

bool Dispatcher::handle(Connection* connection, const Frame& frame) {
  const std::size_t before = connection->out()->size();
  try {
    if (route(connection, frame)) return true;
    connection->out()->truncate(before);
    reply_status(connection, frame, Status::BadFrame);
    return false;
  } catch (const std::exception&) {
    // Out of memory, say: this request fails, the node and the other connections go on.
    connection->out()->truncate(before);
    reply_status(connection, frame, Status::Internal);
    return true;
  }
}

bool Dispatcher::route(Connection* connection, const Frame& frame) {
  const Type type = frame.type();
  if (type == Type::Stat) return stat(connection, frame);
  if (type == Type::Lookup) return lookup(connection, frame);
  if (connection->role == wire::Role::Tool) {  // no session: nothing that grants or frees
    reply_status(connection, frame, Status::Denied);
    return true;
  }
  switch (type) {
    case Type::Begin:
      return begin(connection, frame);
    case Type::Reserve:
      return reserve(connection, frame);
    case Type::Commit:
      return commit(connection, frame);
    case Type::Abort:
      return abort(connection, frame);
    case Type::Release:
      return release(connection, frame);
    case Type::Touch:
      return touch(connection, frame);
    case Type::Feedback:
      return feedback(connection, frame);
    case Type::Drained:
      return drained(connection, frame);
    case Type::Describe:
      return describe(connection, frame);
    default:
      return false;  // a second HELLO, or a type that a decoder let through without a handler
  }
}

bool Dispatcher::lookup(Connection* connection, const Frame& frame) {
  wire::LookupRequest request;
  if (!wire::decode_lookup(frame.payload, &request)) return false;
  LookupResult result;
  std::uint32_t pending = 0;
  if (connection->role == wire::Role::Tool) {
    result.hit_chunks = store_->lookup_any(connection->fingerprint, request.keys);
  } else {
    result = store_->lookup(connection->session, request.keys, request.lease);
    if (tiers_ != nullptr) {
      pending = tiers_->wanted(connection->session, request.tenant, request.keys, result.hit_chunks).chunks;
    }
  }
  reply(connection, frame).put(wire::LookupReply{result.lease, result.hit_chunks, pending}).finish();
  return true;
}

bool Dispatcher::begin(Connection* connection, const Frame& frame) {
  LeaseId lease = 0;
  if (!wire::decode_u64(frame.payload, &lease)) return false;
  slots_.clear();
  ledger_->set_own_drained(connection->session, false);
  const Status status = store_->begin(connection->session, lease, &slots_);
  if (status != Status::Ok) {
    reply_status(connection, frame, status);
    return true;
  }
  wire::encode_slots(connection->out(), static_cast<std::uint16_t>(frame.header.type | wire::kReplyBit),
                     frame.header.request_id, slots_);
  return true;
}

bool Dispatcher::reserve(Connection* connection, const Frame& frame) {
  wire::ReserveRequest request;
  if (!wire::decode_reserve(frame.payload, &request)) return false;
  reservations_.clear();
  ledger_->set_own_drained(connection->session, false);
  const Status status = store_->reserve(connection->session, request.tenant, request.parent, request.keys,
                                        &reservations_, eviction::Hints::unpacked(request.hints));
  if (status == Status::Ok) {
    wire::encode_reserve_reply(connection->out(), frame.header, reservations_);
  } else {
    reply_status(connection, frame, status);
  }
  return true;
}

bool Dispatcher::commit(Connection* connection, const Frame& frame) {
  if (!wire::decode_commit(frame.payload, &items_, &text_keys_)) return false;
  std::uint32_t accepted = 0;
  const Status status = store_->commit(connection->session, items_, &accepted);
  if (status == Status::Ok) {
    reply(connection, frame).put(wire::CountPrefix{accepted, 0}).finish();
  } else {
    reply_status(connection, frame, status);
  }
  return true;
}

bool Dispatcher::abort(Connection* connection, const Frame& frame) {
  if (!wire::decode_slots(frame.payload, &slots_)) return false;
  reply_status(connection, frame, store_->abort(connection->session, slots_));
  return true;
}

bool Dispatcher::release(Connection* connection, const Frame& frame) {
  LeaseId lease = 0;
  if (!wire::decode_u64(frame.payload, &lease)) return false;
  reply_status(connection, frame, store_->release(connection->session, lease));
  return true;
}

bool Dispatcher::touch(Connection* connection, const Frame& frame) {
  std::span<const Key> keys;
  if (!wire::decode_keys(frame.payload, &keys)) return false;
  store_->touch(connection->session, keys);
  reply_status(connection, frame, Status::Ok);
  return true;
}

bool Dispatcher::stat(Connection* connection, const Frame& frame) {
  if (!frame.payload.empty()) return false;
  const std::string json = stat_json_();
  reply(connection, frame).put_bytes(std::as_bytes(std::span(json))).finish();
  return true;
}

bool Dispatcher::feedback(Connection* connection, const Frame& frame) {
  std::string_view json;
  if (!wire::decode_feedback(frame.payload, &json)) return false;
  store_->feedback(connection->session, std::string(json));
  reply_status(connection, frame, Status::Ok);
  return true;
}

bool Dispatcher::drained(Connection* connection, const Frame& frame) {
  SessionId session = 0;
  if (!wire::decode_u64(frame.payload, &session) || session == 0) return false;
  if (session == connection->session) {
    ledger_->set_own_drained(session, true);
  } else {
    claim_drained(session, connection->peer().pid);
  }
  reply_status(connection, frame, Status::Ok);
  return true;
}

bool Dispatcher::describe(Connection* connection, const Frame& frame) {
  KvForm layout;
  if (!wire::decode_describe(frame.payload, &layout)) return false;
  if (layouts_ != nullptr) layouts_->declare(connection->fingerprint, layout);
  reply_status(connection, frame, Status::Ok);
  return true;
}

void Dispatcher::claim_drained(SessionId session, pid_t pid) {
  std::uint64_t connection = 0;
  if (ledger_->drained(session, pid, &connection) != SessionLedger::Claim::StillConnected) return;
  close_(connection);
  (void)ledger_->drained(session, pid, &connection);
}

}  // namespace kvcommons
