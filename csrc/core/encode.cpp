// The writing half of codec.h.
#include <algorithm>
#include <cstring>

#include "codec.h"

namespace kvcommons::wire {
namespace {

constexpr std::uint16_t request_type(Type type) { return static_cast<std::uint16_t>(type); }
std::uint16_t reply_type(const Header& request) { return static_cast<std::uint16_t>(request.type | kReplyBit); }

std::span<const std::byte> text_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

template <typename T>
std::uint32_t count_of(const T& items) {
  return static_cast<std::uint32_t>(items.size());
}

// The longest beginning of at most bytes_max that does not cut a character in two.
std::string_view cut(std::string_view text, std::size_t bytes_max) {
  if (text.size() <= bytes_max) return text;
  std::size_t end = bytes_max;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return text.substr(0, end);
}

}  // namespace

FrameWriter::FrameWriter(ByteBuffer* out, std::uint16_t type, Status status, std::uint64_t request_id)
    : out_(out), start_(out->size()) {
  out_->append_pod(Header{0, type, static_cast<std::uint16_t>(status), request_id});
}

void FrameWriter::finish() noexcept {
  const auto payload_bytes = static_cast<std::uint32_t>(out_->size() - start_ - sizeof(Header));
  std::memcpy(out_->at(start_) + offsetof(Header, payload_bytes), &payload_bytes, sizeof payload_bytes);
}

void encode_status(ByteBuffer* out, const Header& request, Status status, std::string_view message) {
  FrameWriter(out, reply_type(request), status, request.request_id)
      .put_bytes(text_bytes(cut(message, kMessageBytesMax)))
      .finish();
}

void encode_hello(ByteBuffer* out, std::uint64_t request_id, const HelloRequest& hello) {
  Hello fixed{};
  fixed.magic = kMagic;
  fixed.version_min = hello.version_min;
  fixed.version_max = hello.version_max;
  fixed.role = static_cast<std::uint8_t>(hello.role);
  fixed.options = hello.exact ? std::uint8_t{kOptionExact} : std::uint8_t{0};
  fixed.shards = static_cast<std::uint16_t>(hello.spec.shards.size());
  fixed.own_shard = hello.spec.own_shard.value_or(0xffffffffu);
  fixed.chunk_tokens = hello.spec.chunk_tokens;
  std::memcpy(fixed.fingerprint, hello.spec.fingerprint.bytes.data(), kKeyBytes);
  fixed.readers_per_shard = hello.spec.readers_per_shard;
  fixed.drained_session = hello.drained_session;
  FrameWriter frame(out, request_type(Type::Hello), Status::Ok, request_id);
  frame.put(fixed);
  for (const ShardSpec& shard : hello.spec.shards) frame.put(HelloShard{shard.rect, shard.slot_bytes});
  frame.finish();
}

void encode_hello_reply(ByteBuffer* out, const Header& request, const HelloAnswer& answer) {
  HelloReply fixed = answer.fixed;
  const std::string_view id = cut(answer.node_id, kNodeIdBytesMax);
  fixed.node_id_bytes = static_cast<std::uint16_t>(id.size());
  FrameWriter(out, reply_type(request), Status::Ok, request.request_id).put(fixed).put_bytes(text_bytes(id)).finish();
}

void encode_lookup(ByteBuffer* out, std::uint64_t request_id, const LookupRequest& lookup) {
  FrameWriter(out, request_type(Type::Lookup), Status::Ok, request_id)
      .put(Lookup{lookup.tenant, lookup.lease ? std::uint32_t{kLookupLease} : 0u, count_of(lookup.keys)})
      .put_bytes(std::as_bytes(lookup.keys))
      .finish();
}

void encode_reserve(ByteBuffer* out, std::uint64_t request_id, const ReserveRequest& reserve) {
  Reserve fixed{};
  fixed.tenant = reserve.tenant;
  fixed.count = count_of(reserve.keys);
  fixed.hints = reserve.hints;
  std::memcpy(fixed.parent, reserve.parent.bytes.data(), kKeyBytes);
  FrameWriter(out, request_type(Type::Reserve), Status::Ok, request_id)
      .put(fixed)
      .put_bytes(std::as_bytes(reserve.keys))
      .finish();
}

void encode_commit(ByteBuffer* out, std::uint64_t request_id, std::span<const CommitItem> items) {
  FrameWriter frame(out, request_type(Type::Commit), Status::Ok, request_id);
  frame.put(CountPrefix{count_of(items), 0});
  for (const CommitItem& item : items) {
    frame.put(CommitEntry{item.slot.offset_bytes, item.slot.generation, count_of(item.text_keys), item.checksum});
  }
  for (const CommitItem& item : items) frame.put_bytes(std::as_bytes(item.text_keys));
  frame.finish();
}

void encode_slots(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::span<const SlotRef> slots) {
  FrameWriter frame(out, type, Status::Ok, request_id);
  frame.put(CountPrefix{count_of(slots), 0});
  for (const SlotRef& slot : slots) frame.put(SlotWire{slot.offset_bytes, slot.generation, 0});
  frame.finish();
}

void encode_reserve_reply(ByteBuffer* out, const Header& request, std::span<const Reservation> reservations) {
  FrameWriter frame(out, reply_type(request), Status::Ok, request.request_id);
  frame.put(CountPrefix{count_of(reservations), 0});
  for (const Reservation& item : reservations) {
    frame.put(SlotWire{item.slot.offset_bytes, item.slot.generation, static_cast<std::uint32_t>(item.status)});
  }
  frame.finish();
}

void encode_keys(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::span<const Key> keys) {
  FrameWriter(out, type, Status::Ok, request_id)
      .put(CountPrefix{count_of(keys), 0})
      .put_bytes(std::as_bytes(keys))
      .finish();
}

void encode_u64(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::uint64_t value) {
  FrameWriter(out, type, Status::Ok, request_id).put(value).finish();
}

void encode_describe(ByteBuffer* out, std::uint64_t request_id, const KvForm& layout) {
  FrameWriter(out, request_type(Type::Describe), Status::Ok, request_id)
      .put(Describe{static_cast<std::uint8_t>(layout.element), static_cast<std::uint8_t>(layout.order), 0,
                    layout.block_tokens, layout.k_size, layout.v_size})
      .finish();
}

void encode_text(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::string_view text) {
  FrameWriter(out, type, Status::Ok, request_id).put_bytes(text_bytes(text)).finish();
}

}  // namespace kvcommons::wire
