#include "client_link.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "arena_mapping.h"
#include "process.h"

namespace kvcommons {
namespace {

using std::chrono::milliseconds;
using wire::Frame;
using wire::Type;

constexpr std::chrono::seconds kRefusedUpkeep{10};
constexpr std::size_t kFormerSessionsMax = 256;  // older ones are resolved when this process ends

bool hopeless(Status status) {
  return status == Status::BadVersion || status == Status::BadFingerprint || status == Status::Denied;
}

// A wire status that is not part of this protocol version is an error of the node.
Status status_of(const Frame& reply) {
  return reply.header.status <= static_cast<std::uint16_t>(Status::Internal) ? static_cast<Status>(reply.header.status)
                                                                             : Status::Internal;
}

std::string message_of(const Frame& reply) {
  const auto bytes = reply.payload.first(std::min(reply.payload.size(), wire::kMessageBytesMax));
  std::string message(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return wire::valid_utf8(message) ? message : "(a message that is not text)";
}

}  // namespace

ClientLink::ClientLink(ClientConfig config)
    : config_(std::move(config)), owner_(::getpid()), back_off_ms_(config_.reconnect_ms_min) {}

ClientLink::Clock::time_point ClientLink::deadline() const { return Clock::now() + milliseconds(config_.call_ms_max); }

bool ClientLink::in_child() const { return ::getpid() != owner_; }

bool ClientLink::ensure_connected() {
  const auto until = deadline();
  const std::unique_lock lock(io_lock_, until);
  if (!lock.owns_lock()) return false;
  // Found out now, not by the call that follows: what is begun on one connection must not be granted on another.
  if (!in_child() && socket_.peer_closed()) drop("the node closed the connection");
  return attach_if_due(until);
}

void ClientLink::copy_finished() {
  if (copies_.fetch_sub(1) != 1 || !former_waiting_.load()) return;
  const auto until = deadline();
  const std::unique_lock lock(io_lock_, until);
  if (!lock.owns_lock() || in_child()) return;
  // Zero again under the lock: since the former sessions ended, every copy that they granted has ended too.
  if (copies_.load() == 0) mark_former_drained();
  if (socket_.open()) say_drained(until);
}

void ClientLink::upkeep() {
  const std::unique_lock lock(io_lock_, Clock::now());
  if (!lock.owns_lock() || closed_ || in_child()) return;  // whoever calls the node finds out by itself
  if (socket_.peer_closed()) drop("the node closed the connection");
  // Never attached: the first call does that, when the engine is up.
  if (get(&Shared::attach_count) == 0 || socket_.open() || attached_in_passing()) return;
  unmap_if_abandoned();
}

// Leaves the back-off of calls alone: a node that has just come back is there for the next call, however often it was
// looked for in vain before.
bool ClientLink::attached_in_passing() {
  if (Clock::now() < upkeep_at_) return false;
  const Status status = attach(deadline());
  if (status == Status::Ok) return true;
  socket_.close();
  // Looking for a node that is not there costs nothing; one that refuses or does not answer is left in peace for a
  // while.
  if (status != Status::Disconnected) upkeep_at_ = Clock::now() + kRefusedUpkeep;
  return false;
}

void ClientLink::unmap_if_abandoned() {
  if (copies_.load() != 0 || Clock::now() - dropped_at_ < milliseconds(config_.arena_kept_ms)) return;
  Client::ArenaRef arena;  // unmapped outside the lock
  const std::lock_guard lock(shared_mutex_);
  shared_.arena.swap(arena);
  shared_.arena_bytes = 0;
}

void ClientLink::close() {
  const std::lock_guard lock(io_lock_);  // held by others for one call at most
  if (closed_) return;
  const auto until = deadline();
  closed_ = true;
  if (socket_.open() && !in_child() && session_ != 0 && copies_.load() == 0) {
    say_drained(until);
    if (socket_.open()) send_drained(session_, until);
  }
  socket_.close();
  connected_.store(false);
}

bool ClientLink::in_arena(const SlotRef& slot) const {
  const std::uint64_t slot_bytes = this->slot_bytes();
  const std::uint64_t arena_bytes = get(&Shared::arena_bytes);
  return slot_bytes <= arena_bytes && slot.offset_bytes <= arena_bytes - slot_bytes;
}

void ClientLink::set_error(std::string why) {
  const std::lock_guard lock(shared_mutex_);
  shared_.last_error = std::move(why);
}

bool ClientLink::attach_if_due(Clock::time_point until) {
  if (closed_ || in_child()) return false;
  if (socket_.open()) return true;
  if (Clock::now() < retry_at_) return false;
  const Status status = attach(until);
  if (status == Status::Ok) return true;
  socket_.close();
  if (hopeless(status)) back_off_ms_ = config_.reconnect_ms_max;
  back_off();
  return false;
}

void ClientLink::back_off() {
  retry_at_ = Clock::now() + milliseconds(back_off_ms_);
  back_off_ms_ = std::min(back_off_ms_ * 2, config_.reconnect_ms_max);
}

Status ClientLink::attach(Clock::time_point until) {
  if (!socket_.connect(config_.socket_path)) {
    set_error("no node answers at '" + config_.socket_path + "'");
    return Status::Disconnected;
  }
  // Zero now means that every copy of a former session has ended: none is granted while there is no connection.
  if (copies_.load() == 0) mark_former_drained();
  wire::HelloRequest hello{config_.role, wire::kVersionMin, wire::kVersionMax, 0, {}, config_.exact};
  hello.spec = {config_.fingerprint, config_.chunk_tokens, config_.shards, std::nullopt, 1};
  hello.spec.readers_per_shard = config_.readers_per_shard;
  if (config_.own_shard != 0xffffffffu) hello.spec.own_shard = config_.own_shard;
  if (!drained_.empty()) hello.drained_session = drained_.back();
  const std::uint64_t id = ++request_id_;
  wire::encode_hello(&socket_.request, id, hello);
  const UniqueFd self = open_pidfd(owner_);
  UniqueFd arena_fd;
  Frame reply;
  const Status sent = socket_.exchange(id, self.get(), until, &reply, &arena_fd);
  if (sent != Status::Ok) {
    set_error("the node did not answer the greeting");
    return sent;
  }
  const Status status = status_of(reply);
  if (status != Status::Ok) {
    set_error(message_of(reply));
    return status;
  }
  const Status status_then = welcomed(reply, arena_fd.get());
  return status_then == Status::Ok ? describe(until) : status_then;
}

// A node that cannot use it goes on without; one that has gone meanwhile is not attached.
Status ClientLink::describe(Clock::time_point until) {
  if (!config_.layout || (get(&Shared::flags) & wire::kFlagLayouts) == 0) return Status::Ok;
  Frame reply;
  const std::uint64_t id = ++request_id_;
  wire::encode_describe(&socket_.request, id, *config_.layout);
  (void)exchange(Type::Describe, id, until, &reply);
  return socket_.open() ? Status::Ok : Status::Disconnected;
}

Key ClientLink::fingerprint() const {
  const std::uint32_t flags = get(&Shared::flags);
  const kvcodec::CodecSpec lossy{static_cast<kvcodec::CodecId>(flags >> wire::kLossyCodecShift & 0xff),
                                 flags >> wire::kLossyGroupShift};
  return config_.exact ? config_.fingerprint : kvcodec::lossy_fingerprint(config_.fingerprint, lossy);
}

// The session ends with its connection; what it held stays its own until its copies are known to have ended.
void ClientLink::drop(const char* why) {
  socket_.close();
  dropped_at_ = Clock::now();
  if (session_ != 0) {
    if (former_.size() >= kFormerSessionsMax) former_.erase(former_.begin());
    former_.push_back(std::exchange(session_, 0));
    former_waiting_.store(true);
  }
  connected_.store(false);
  set_error(why);
}

void ClientLink::mark_former_drained() {
  drained_.insert(drained_.end(), former_.begin(), former_.end());
  former_.clear();
  former_waiting_.store(false);
  if (drained_.size() > kFormerSessionsMax) drained_.erase(drained_.begin(), drained_.end() - kFormerSessionsMax);
}

void ClientLink::say_drained(Clock::time_point until) {
  if (!former_.empty() && copies_.load() == 0) mark_former_drained();
  while (!drained_.empty() && socket_.open()) {
    if (!send_drained(drained_.back(), until)) return;
    drained_.pop_back();
  }
}

Status ClientLink::exchange(wire::Type type, std::uint64_t id, Clock::time_point until, Frame* reply) {
  const Status sent = socket_.exchange(id, -1, until, reply, nullptr);
  if (sent != Status::Ok) {
    drop(sent == Status::TimedOut ? "the node did not answer in time" : "the node closed the connection");
    if (sent == Status::TimedOut) back_off();
    return sent;
  }
  if (reply->type() != type) {
    drop("the node answered another request");
    return Status::Disconnected;
  }
  const Status status = status_of(*reply);
  if (status != Status::Ok) set_error(message_of(*reply));
  if (status == Status::BadFrame) drop("the node refused a frame as malformed");
  return status;
}

Status ClientLink::welcomed(const Frame& reply, int arena_fd) {
  wire::HelloAnswer answer;
  if (reply.type() != Type::Hello || !wire::decode_hello_reply(reply.payload, &answer)) {
    set_error("the node's greeting could not be read");
    return Status::Disconnected;
  }
  std::array<std::uint8_t, 16> id{};
  std::copy_n(answer.fixed.arena_id, id.size(), id.begin());
  Client::ArenaRef arena = get(&Shared::arena);
  if (config_.role == wire::Role::Scheduler) {
    arena.reset();
  } else if (!arena || get(&Shared::arena_id) != id || get(&Shared::arena_bytes) != answer.fixed.arena_bytes) {
    std::string why;
    arena = map_arena(arena_fd, answer.fixed.arena_bytes, &why);
    if (!arena) {
      set_error(std::move(why));
      return Status::Internal;
    }
  }
  if (!drained_.empty()) drained_.pop_back();
  former_waiting_.store(!former_.empty());
  session_ = answer.fixed.session;
  // All at once: whoever reads the arena and the same attach_count before and after has the two that belong together.
  const std::lock_guard lock(shared_mutex_);
  shared_.last_error.clear();
  shared_.node_id = answer.node_id;
  shared_.flags = answer.fixed.flags;
  std::copy_n(answer.fixed.namespace_secret, kKeyBytes, shared_.secret.bytes.begin());
  shared_.arena.swap(arena);  // the former one is unmapped by its last reference
  shared_.arena_id = id;
  shared_.arena_bytes = answer.fixed.arena_bytes;
  ++shared_.attach_count;
  connected_.store(true);
  return Status::Ok;
}

bool ClientLink::send_drained(SessionId session, Clock::time_point until) {
  Frame reply;
  const std::uint64_t id = ++request_id_;
  wire::encode_u64(&socket_.request, static_cast<std::uint16_t>(Type::Drained), id, session);
  return exchange(Type::Drained, id, until, &reply) == Status::Ok;
}

}  // namespace kvcommons
