#include "client.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <mutex>

#include "arena_mapping.h"
#include "client_socket.h"
#include "codec.h"
#include "process.h"

namespace kvcommons {
namespace {

using Clock = ClientSocket::Clock;
using std::chrono::milliseconds;
using wire::Frame;
using wire::Type;

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

class Client::Impl {
 public:
  explicit Impl(ClientConfig config) : config_(std::move(config)), back_off_ms_(config_.reconnect_ms_min) {}

  ~Impl() { close(); }

  // Encodes with encode(buffer, request id), waits, and decodes an Ok reply with decode(payload) -> bool.
  template <typename Encode, typename Decode>
  Status call(Type type, Encode encode, Decode decode) {
    const auto deadline = Clock::now() + milliseconds(config_.call_ms_max);
    const std::unique_lock lock(io_mutex_, deadline);
    if (!lock.owns_lock()) return Status::TimedOut;
    // A connection that the node's restart ended is found out only by using it: once more then, on a new one.
    for (int attempt = 0;; ++attempt) {
      const bool fresh = !socket_.open();
      if (!attach_if_due(deadline)) return Status::Disconnected;
      say_drained(deadline);
      Frame reply;
      Status status = request(type, encode, deadline, &reply);
      if (status == Status::Disconnected && !fresh && attempt == 0) continue;
      if (status == Status::Ok && !decode(reply.payload)) {
        drop("the node's reply could not be read");
        return Status::Disconnected;
      }
      if (status == Status::Ok) back_off_ms_ = config_.reconnect_ms_min;
      return status;
    }
  }

  bool ensure_connected() {
    const auto deadline = Clock::now() + milliseconds(config_.call_ms_max);
    const std::unique_lock lock(io_mutex_, deadline);
    if (!lock.owns_lock()) return false;
    // Found out now, not by the call that follows: what is begun on one connection must not be granted on another.
    if (!in_child() && socket_.peer_closed()) drop("the node closed the connection");
    return attach_if_due(deadline);
  }

  void copy_started() { copies_.fetch_add(1); }

  void copy_finished() {
    if (copies_.fetch_sub(1) != 1 || !former_waiting_.load()) return;
    const auto deadline = Clock::now() + milliseconds(config_.call_ms_max);
    const std::unique_lock lock(io_mutex_, deadline);
    if (!lock.owns_lock() || in_child()) return;
    // Zero again under the lock: since the former sessions ended, every copy that they granted has ended too.
    if (copies_.load() == 0) mark_former_drained();
    if (socket_.open()) say_drained(deadline);
  }

  void close() {
    const std::lock_guard lock(io_mutex_);  // held by others for one call at most
    if (closed_) return;
    const auto deadline = Clock::now() + milliseconds(config_.call_ms_max);
    closed_ = true;
    if (socket_.open() && !in_child() && session_ != 0 && copies_.load() == 0) {
      say_drained(deadline);
      if (socket_.open()) send_drained(session_, deadline);
    }
    socket_.close();
    connected_.store(false);
  }

  struct Shared {
    std::string last_error, node_id;
    std::uint32_t flags = 0;
    Key secret;
    std::uint64_t attach_count = 0, arena_bytes = 0;
    std::array<std::uint8_t, 16> arena_id{};
    ArenaRef arena;
  };
  [[nodiscard]] Shared shared() const {
    const std::lock_guard lock(shared_mutex_);
    return shared_;
  }
  template <typename T>
  [[nodiscard]] T get(T Shared::* field) const {
    const std::lock_guard lock(shared_mutex_);
    return shared_.*field;
  }
  [[nodiscard]] bool connected() const noexcept { return connected_.load(); }
  [[nodiscard]] std::uint64_t slot_bytes() const noexcept {
    return config_.own_shard < config_.shards.size() ? config_.shards[config_.own_shard].slot_bytes : 0;
  }
  // Whether a slot of this process' shard lies in the arena: what a broken node says is not copied to.
  [[nodiscard]] bool in_arena(const SlotRef& slot) const {
    const std::uint64_t slot_bytes = this->slot_bytes();
    const std::uint64_t arena_bytes = get(&Shared::arena_bytes);
    return slot_bytes <= arena_bytes && slot.offset_bytes <= arena_bytes - slot_bytes;
  }
  void set_error(std::string why) {
    const std::lock_guard lock(shared_mutex_);
    shared_.last_error = std::move(why);
  }

 private:
  [[nodiscard]] bool in_child() const { return ::getpid() != owner_; }

  template <typename Encode>
  Status request(Type type, Encode encode, Clock::time_point deadline, Frame* reply) {
    const std::uint64_t id = ++request_id_;
    encode(&socket_.request, id);
    Status status = socket_.exchange(id, -1, deadline, reply, nullptr);
    if (status != Status::Ok) {
      drop(status == Status::TimedOut ? "the node did not answer in time" : "the node closed the connection");
      if (status == Status::TimedOut) back_off();
      return status;
    }
    if (reply->type() != type) {
      drop("the node answered another request");
      return Status::Disconnected;
    }
    status = status_of(*reply);
    if (status != Status::Ok) set_error(message_of(*reply));
    if (status == Status::BadFrame) drop("the node refused a frame as malformed");
    return status;
  }

  bool attach_if_due(Clock::time_point deadline) {
    if (closed_ || in_child()) return false;
    if (socket_.open()) return true;
    if (Clock::now() < retry_at_) return false;
    const Status status = attach(deadline);
    if (status == Status::Ok) return true;
    socket_.close();
    if (hopeless(status)) back_off_ms_ = config_.reconnect_ms_max;
    back_off();
    return false;
  }

  void back_off() {
    retry_at_ = Clock::now() + milliseconds(back_off_ms_);
    back_off_ms_ = std::min(back_off_ms_ * 2, config_.reconnect_ms_max);
  }

  Status attach(Clock::time_point deadline) {
    if (!socket_.connect(config_.socket_path)) {
      set_error("no node answers at '" + config_.socket_path + "'");
      return Status::Disconnected;
    }
    // Zero now means that every copy of a former session has ended: none is granted while there is no connection.
    if (copies_.load() == 0) mark_former_drained();
    wire::HelloRequest hello{config_.role, wire::kVersionMin, wire::kVersionMax, 0, {}};
    hello.spec = {config_.fingerprint, config_.chunk_tokens, config_.shards, std::nullopt, 1};
    hello.spec.readers_per_shard = config_.readers_per_shard;
    if (config_.own_shard != 0xffffffffu) hello.spec.own_shard = config_.own_shard;
    if (!drained_.empty()) hello.drained_session = drained_.back();
    const std::uint64_t id = ++request_id_;
    wire::encode_hello(&socket_.request, id, hello);
    const UniqueFd self = open_pidfd(owner_);
    UniqueFd arena_fd;
    Frame reply;
    const Status sent = socket_.exchange(id, self.get(), deadline, &reply, &arena_fd);
    if (sent != Status::Ok) {
      set_error("the node did not answer the greeting");
      return sent;
    }
    const Status status = status_of(reply);
    if (status != Status::Ok) {
      set_error(message_of(reply));
      return status;
    }
    return welcomed(reply, arena_fd.get());
  }

  Status welcomed(const Frame& reply, int arena_fd) {
    wire::HelloAnswer answer;
    if (reply.type() != Type::Hello || !wire::decode_hello_reply(reply.payload, &answer)) {
      set_error("the node's greeting could not be read");
      return Status::Disconnected;
    }
    if (!take_arena(answer, arena_fd)) return Status::Internal;
    if (!drained_.empty()) drained_.pop_back();
    former_waiting_.store(!former_.empty());
    session_ = answer.fixed.session;
    const std::lock_guard lock(shared_mutex_);
    shared_.last_error.clear();
    shared_.node_id = answer.node_id;
    shared_.flags = answer.fixed.flags;
    std::copy_n(answer.fixed.namespace_secret, kKeyBytes, shared_.secret.bytes.begin());
    ++shared_.attach_count;
    connected_.store(true);
    return Status::Ok;
  }

  bool take_arena(const wire::HelloAnswer& answer, int arena_fd) {
    std::array<std::uint8_t, 16> id{};
    std::copy_n(answer.fixed.arena_id, id.size(), id.begin());
    {
      const std::lock_guard lock(shared_mutex_);
      if (shared_.arena && shared_.arena_id == id && shared_.arena_bytes == answer.fixed.arena_bytes) return true;
    }
    std::string why;
    ArenaRef arena = map_arena(arena_fd, answer.fixed.arena_bytes, &why);
    const std::lock_guard lock(shared_mutex_);
    if (!arena) {
      shared_.last_error = why;
      return false;
    }
    shared_.arena.swap(arena);  // the former one is unmapped by its last reference
    shared_.arena_id = id;
    shared_.arena_bytes = answer.fixed.arena_bytes;
    return true;
  }

  // The session ends with its connection; what it held stays its own until its copies are known to have ended.
  void drop(const char* why) {
    socket_.close();
    if (session_ != 0) {
      if (former_.size() >= kFormerSessionsMax) former_.erase(former_.begin());
      former_.push_back(std::exchange(session_, 0));
      former_waiting_.store(true);
    }
    connected_.store(false);
    set_error(why);
  }

  void mark_former_drained() {
    drained_.insert(drained_.end(), former_.begin(), former_.end());
    former_.clear();
    former_waiting_.store(false);
    if (drained_.size() > kFormerSessionsMax) drained_.erase(drained_.begin(), drained_.end() - kFormerSessionsMax);
  }

  void say_drained(Clock::time_point deadline) {
    if (!former_.empty() && copies_.load() == 0) mark_former_drained();
    while (!drained_.empty() && socket_.open()) {
      if (!send_drained(drained_.back(), deadline)) return;
      drained_.pop_back();
    }
  }

  bool send_drained(SessionId session, Clock::time_point deadline) {
    Frame reply;
    const auto encode = [session](ByteBuffer* out, std::uint64_t id) {
      wire::encode_u64(out, static_cast<std::uint16_t>(Type::Drained), id, session);
    };
    return request(Type::Drained, encode, deadline, &reply) == Status::Ok;
  }

  const ClientConfig config_;
  const pid_t owner_ = ::getpid();

  std::timed_mutex io_mutex_;  // guards what follows, for as long as a call takes
  ClientSocket socket_;
  std::uint64_t request_id_ = 0;
  SessionId session_ = 0;
  std::vector<SessionId> former_;   // their copies may still run
  std::vector<SessionId> drained_;  // none runs any more: the node is to be told
  Clock::time_point retry_at_{};
  std::uint32_t back_off_ms_;
  bool closed_ = false;

  std::atomic<std::int64_t> copies_{0};
  std::atomic<bool> former_waiting_{false};
  std::atomic<bool> connected_{false};
  mutable std::mutex shared_mutex_;  // never held over a system call that waits
  Shared shared_;
};

Client::Client(ClientConfig config) : impl_(std::make_unique<Impl>(std::move(config))) {}
Client::~Client() = default;

bool Client::ensure_connected() { return impl_->ensure_connected(); }
bool Client::connected() const noexcept { return impl_->connected(); }
std::string Client::last_error() const { return impl_->get(&Impl::Shared::last_error); }
std::uint32_t Client::hello_flags() const noexcept { return impl_->get(&Impl::Shared::flags); }
Key Client::namespace_secret() const noexcept { return impl_->get(&Impl::Shared::secret); }
std::string Client::node_id() const { return impl_->get(&Impl::Shared::node_id); }
std::uint64_t Client::attach_count() const noexcept { return impl_->get(&Impl::Shared::attach_count); }
Client::ArenaRef Client::arena() const { return impl_->get(&Impl::Shared::arena); }
std::uint64_t Client::arena_bytes() const noexcept { return impl_->get(&Impl::Shared::arena_bytes); }
std::uint64_t Client::slot_bytes() const noexcept { return impl_->slot_bytes(); }
void Client::copy_started() { impl_->copy_started(); }
void Client::copy_finished() { impl_->copy_finished(); }
void Client::close() { impl_->close(); }

Status Client::lookup(std::span<const Key> keys, std::uint64_t tenant, bool lease, Hit* out) {
  if (keys.size() > kKeysPerFrameMax) return Status::TooLarge;
  return impl_->call(
      Type::Lookup,
      [&](ByteBuffer* buffer, std::uint64_t id) { wire::encode_lookup(buffer, id, {tenant, lease, keys}); },
      [&](std::span<const std::byte> payload) {
        wire::LookupReply reply{};
        if (!wire::decode_lookup_reply(payload, &reply) || reply.hit_chunks > keys.size()) return false;
        *out = {reply.lease, reply.hit_chunks, reply.pending_chunks};
        return true;
      });
}

Status Client::begin(LeaseId lease, std::vector<SlotRef>* out) {
  return impl_->call(
      Type::Begin,
      [&](ByteBuffer* buffer, std::uint64_t id) {
        wire::encode_u64(buffer, static_cast<std::uint16_t>(Type::Begin), id, lease);
      },
      [&](std::span<const std::byte> payload) {
        return wire::decode_slots_reply(payload, out) &&
               std::all_of(out->begin(), out->end(), [&](const SlotRef& slot) { return impl_->in_arena(slot); });
      });
}

Status Client::reserve(std::uint64_t tenant, const Key& parent, std::span<const Key> keys,
                       std::vector<Reservation>* out) {
  if (keys.size() > kChunksPerReserveMax) return Status::TooLarge;
  return impl_->call(
      Type::Reserve,
      [&](ByteBuffer* buffer, std::uint64_t id) { wire::encode_reserve(buffer, id, {tenant, parent, keys}); },
      [&](std::span<const std::byte> payload) {
        return wire::decode_reserve_reply(payload, out) && out->size() == keys.size() &&
               std::all_of(out->begin(), out->end(), [&](const Reservation& item) {
                 return item.status != ReserveStatus::Granted || impl_->in_arena(item.slot);
               });
      });
}

Status Client::commit(std::span<const CommitItem> items, std::uint32_t* accepted) {
  const auto too_many = [](const CommitItem& item) { return item.text_keys.size() > kTextKeysPerChunkMax; };
  if (items.size() > kChunksPerReserveMax || std::any_of(items.begin(), items.end(), too_many)) return Status::TooLarge;
  std::size_t bytes = sizeof(wire::CountPrefix);
  for (const CommitItem& item : items) bytes += sizeof(wire::CommitEntry) + item.text_keys.size_bytes();
  if (bytes > kFrameBytesMax) return Status::TooLarge;
  return impl_->call(
      Type::Commit, [&](ByteBuffer* buffer, std::uint64_t id) { wire::encode_commit(buffer, id, items); },
      [&](std::span<const std::byte> payload) { return wire::decode_commit_reply(payload, accepted); });
}

namespace {
constexpr auto kEmptyReply = [](std::span<const std::byte> payload) { return payload.empty(); };
}  // namespace

Status Client::abort(std::span<const SlotRef> slots) {
  if (slots.size() > kKeysPerFrameMax) return Status::TooLarge;
  return impl_->call(
      Type::Abort,
      [&](ByteBuffer* buffer, std::uint64_t id) {
        wire::encode_slots(buffer, static_cast<std::uint16_t>(Type::Abort), id, slots);
      },
      kEmptyReply);
}

Status Client::release(LeaseId lease) {
  return impl_->call(
      Type::Release,
      [&](ByteBuffer* buffer, std::uint64_t id) {
        wire::encode_u64(buffer, static_cast<std::uint16_t>(Type::Release), id, lease);
      },
      kEmptyReply);
}

Status Client::touch(std::span<const Key> keys) {
  if (keys.size() > kKeysPerFrameMax) return Status::TooLarge;
  return impl_->call(
      Type::Touch,
      [&](ByteBuffer* buffer, std::uint64_t id) {
        wire::encode_keys(buffer, static_cast<std::uint16_t>(Type::Touch), id, keys);
      },
      kEmptyReply);
}

Status Client::feedback(std::string_view json) {
  std::string_view checked;
  if (!wire::decode_feedback(std::as_bytes(std::span(json)), &checked)) {
    impl_->set_error("feedback must be one JSON object of at most 4096 bytes of UTF-8");
    return Status::TooLarge;
  }
  return impl_->call(
      Type::Feedback,
      [&](ByteBuffer* buffer, std::uint64_t id) {
        wire::encode_text(buffer, static_cast<std::uint16_t>(Type::Feedback), id, json);
      },
      kEmptyReply);
}

Status Client::stat(std::string* json) {
  return impl_->call(
      Type::Stat,
      [](ByteBuffer* buffer, std::uint64_t id) {
        wire::encode_text(buffer, static_cast<std::uint16_t>(Type::Stat), id, {});
      },
      [&](std::span<const std::byte> payload) {
        json->assign(reinterpret_cast<const char*>(payload.data()), payload.size());
        return true;
      });
}

}  // namespace kvcommons
