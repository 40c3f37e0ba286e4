#include "client.h"

#include <algorithm>

#include "client_link.h"
#include "codec.h"

namespace kvcommons {

using wire::Type;

class Client::Impl : public ClientLink {
  using ClientLink::ClientLink;
};

Client::Client(ClientConfig config) : impl_(std::make_unique<Impl>(std::move(config))) {}
Client::~Client() = default;

bool Client::ensure_connected() { return impl_->ensure_connected(); }
bool Client::connected() const noexcept { return impl_->connected(); }
std::string Client::last_error() const { return impl_->get(&ClientLink::Shared::last_error); }
std::uint32_t Client::hello_flags() const noexcept { return impl_->get(&ClientLink::Shared::flags); }
Key Client::namespace_secret() const noexcept { return impl_->get(&ClientLink::Shared::secret); }
Key Client::fingerprint() const noexcept { return impl_->fingerprint(); }
std::string Client::node_id() const { return impl_->get(&ClientLink::Shared::node_id); }
std::uint64_t Client::attach_count() const noexcept { return impl_->get(&ClientLink::Shared::attach_count); }
Client::ArenaRef Client::arena() const { return impl_->get(&ClientLink::Shared::arena); }
std::uint64_t Client::arena_bytes() const noexcept { return impl_->get(&ClientLink::Shared::arena_bytes); }
std::uint64_t Client::slot_bytes() const noexcept { return impl_->slot_bytes(); }
void Client::copy_started() { impl_->copy_started(); }
void Client::copy_finished() { impl_->copy_finished(); }
void Client::upkeep() { impl_->upkeep(); }
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
                       std::vector<Reservation>* out, std::uint32_t hints) {
  if (keys.size() > kChunksPerReserveMax) return Status::TooLarge;
  return impl_->call(
      Type::Reserve,
      [&](ByteBuffer* buffer, std::uint64_t id) { wire::encode_reserve(buffer, id, {tenant, parent, keys, hints}); },
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
