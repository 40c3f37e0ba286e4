#include "codec.h"

#include <algorithm>
#include <cstring>

namespace kvcommons::wire {
namespace {

using Bytes = std::span<const std::byte>;

// Reads fixed structures off the front; never past the end.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(bytes) {}
  template <typename T>
  [[nodiscard]] bool take(T* out) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (bytes_.size() < sizeof(T)) return false;
    std::memcpy(out, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
    return true;
  }
  // The rest, if it is exactly `count` keys.
  [[nodiscard]] bool rest_is_keys(std::uint32_t count, std::uint32_t count_max, std::span<const Key>* out) const {
    static_assert(alignof(Key) == 1, "keys are read where they lie");
    if (count > count_max || bytes_.size() != std::size_t{count} * sizeof(Key)) return false;
    *out = {reinterpret_cast<const Key*>(bytes_.data()), count};
    return true;
  }
  [[nodiscard]] std::size_t left() const noexcept { return bytes_.size(); }
  [[nodiscard]] Bytes rest() const noexcept { return bytes_; }

 private:
  Bytes bytes_;
};

Parse parse(Bytes bytes, Frame* out) {
  if (bytes.size() < sizeof(Header)) return Parse::Incomplete;
  std::memcpy(&out->header, bytes.data(), sizeof(Header));
  if (out->header.payload_bytes > kFrameBytesMax) return Parse::Malformed;
  const auto type = static_cast<std::uint16_t>(out->header.type & ~kReplyBit);
  if (type < static_cast<std::uint16_t>(Type::Hello) || type > static_cast<std::uint16_t>(Type::Describe)) {
    return Parse::Malformed;
  }
  if (bytes.size() - sizeof(Header) < out->header.payload_bytes) return Parse::Incomplete;
  out->payload = bytes.subspan(sizeof(Header), out->header.payload_bytes);
  return Parse::Complete;
}

bool overlaps(const Rect& a, const Rect& b) {
  return a.layer_begin < b.layer_end && b.layer_begin < a.layer_end && a.head_begin < b.head_end &&
         b.head_begin < a.head_end;
}

bool valid_shards(std::span<const ShardSpec> shards) {
  for (std::size_t i = 0; i < shards.size(); ++i) {
    const Rect& rect = shards[i].rect;
    if (rect.layer_begin >= rect.layer_end || rect.head_begin >= rect.head_end) return false;
    if (shards[i].slot_bytes == 0 || shards[i].slot_bytes > kSlabBytesMax) return false;
    for (std::size_t j = 0; j < i; ++j) {
      if (overlaps(rect, shards[j].rect)) return false;
    }
  }
  return true;
}

// What follows the fixed part of a HELLO. Tools have no shards; every engine has some, and a worker is one of them.
bool take_shards(Reader* reader, const Hello& fixed, HelloRequest* out) {
  if (fixed.shards > kShardsPerChunkMax || reader->left() != fixed.shards * sizeof(HelloShard)) return false;
  for (std::uint16_t i = 0; i < fixed.shards; ++i) {
    HelloShard shard{};
    if (!reader->take(&shard)) return false;
    out->spec.shards.push_back({shard.rect, shard.slot_bytes});
  }
  out->spec.readers_per_shard = std::max(fixed.readers_per_shard, 1u);
  const bool tool = out->role == Role::Tool;
  if (fixed.readers_per_shard > kReadersPerShardMax) return false;
  if (tool != (fixed.shards == 0) || (!tool && fixed.chunk_tokens == 0)) return false;
  if (fixed.own_shard != 0xffffffffu) {
    if (fixed.own_shard >= fixed.shards) return false;
    out->spec.own_shard = fixed.own_shard;
  }
  if (out->role == Role::Worker && !out->spec.own_shard) return false;
  return valid_shards(out->spec.shards);
}

// Bytes of the UTF-8 sequence that starts with `lead`; 0 if none can.
std::size_t sequence_bytes(unsigned char lead) {
  if (lead < 0x80) return 1;
  if (lead >= 0xc2 && lead <= 0xdf) return 2;
  if ((lead & 0xf0) == 0xe0) return 3;
  return lead >= 0xf0 && lead <= 0xf4 ? 4 : 0;
}

}  // namespace

Parse parse_request(Bytes bytes, Frame* out) {
  const Parse parsed = parse(bytes, out);
  if (bytes.size() >= sizeof(Header) && ((out->header.type & kReplyBit) != 0 || out->header.status != 0)) {
    return Parse::Malformed;
  }
  return parsed;
}

Parse parse_reply(Bytes bytes, Frame* out) {
  const Parse parsed = parse(bytes, out);
  if (bytes.size() >= sizeof(Header) && (out->header.type & kReplyBit) == 0) return Parse::Malformed;
  return parsed;
}

std::optional<std::uint16_t> negotiate(std::uint16_t own_min, std::uint16_t own_max, std::uint16_t peer_min,
                                       std::uint16_t peer_max) {
  const std::uint16_t version = std::min(own_max, peer_max);
  if (own_min > own_max || peer_min > peer_max || version < std::max(own_min, peer_min)) return std::nullopt;
  return version;
}

bool valid_utf8(std::string_view text) {
  for (std::size_t i = 0; i < text.size();) {
    const auto byte = [&](std::size_t k) { return static_cast<unsigned char>(text[i + k]); };
    const std::size_t length = sequence_bytes(byte(0));
    if (length == 0 || text.size() - i < length) return false;
    for (std::size_t k = 1; k < length; ++k) {
      if ((byte(k) & 0xc0) != 0x80) return false;
    }
    // Overlong forms, surrogates and what is above U+10FFFF show in the second byte.
    if (byte(0) == 0xe0 && byte(1) < 0xa0) return false;
    if (byte(0) == 0xed && byte(1) > 0x9f) return false;
    if (byte(0) == 0xf0 && byte(1) < 0x90) return false;
    if (byte(0) == 0xf4 && byte(1) > 0x8f) return false;
    i += length;
  }
  return true;
}

Status decode_hello(Bytes payload, HelloRequest* out) {
  struct Versions {  // what every version of HELLO begins with
    std::uint32_t magic;
    std::uint16_t min, max;
  } versions{};
  if (!Reader(payload).take(&versions) || versions.magic != kMagic) return Status::BadFrame;
  out->version_min = versions.min;
  out->version_max = versions.max;
  if (!negotiate(kVersionMin, kVersionMax, versions.min, versions.max)) return Status::BadVersion;
  Reader reader(payload);
  Hello fixed{};
  if (!reader.take(&fixed) || fixed.role > static_cast<std::uint8_t>(Role::Tool)) return Status::BadFrame;
  out->role = static_cast<Role>(fixed.role);
  out->drained_session = fixed.drained_session;
  out->exact = (fixed.options & kOptionExact) != 0;
  out->spec.chunk_tokens = fixed.chunk_tokens;
  std::memcpy(out->spec.fingerprint.bytes.data(), fixed.fingerprint, kKeyBytes);
  return take_shards(&reader, fixed, out) ? Status::Ok : Status::BadFrame;
}

bool decode_lookup(Bytes payload, LookupRequest* out) {
  Reader reader(payload);
  Lookup fixed{};
  if (!reader.take(&fixed) || (fixed.flags & ~std::uint32_t{kLookupLease}) != 0) return false;
  out->tenant = fixed.tenant;
  out->lease = (fixed.flags & kLookupLease) != 0;
  return reader.rest_is_keys(fixed.count, kKeysPerFrameMax, &out->keys);
}

bool decode_reserve(Bytes payload, ReserveRequest* out) {
  Reader reader(payload);
  Reserve fixed{};
  if (!reader.take(&fixed)) return false;
  out->tenant = fixed.tenant;
  out->hints = fixed.hints;
  std::memcpy(out->parent.bytes.data(), fixed.parent, kKeyBytes);
  return reader.rest_is_keys(fixed.count, kChunksPerReserveMax, &out->keys);
}

bool decode_commit(Bytes payload, std::vector<CommitItem>* out, std::vector<std::uint64_t>* storage) {
  Reader reader(payload);
  CountPrefix prefix{};
  if (!reader.take(&prefix) || prefix.count > kChunksPerReserveMax) return false;
  if (reader.left() < prefix.count * sizeof(CommitEntry)) return false;
  Reader entries(reader.rest().first(prefix.count * sizeof(CommitEntry)));
  const Bytes text = reader.rest().subspan(prefix.count * sizeof(CommitEntry));
  if (text.size() % sizeof(std::uint64_t) != 0) return false;
  storage->resize(text.size() / sizeof(std::uint64_t));
  if (!text.empty()) std::memcpy(storage->data(), text.data(), text.size());
  out->clear();
  std::size_t used = 0;
  for (std::uint32_t i = 0; i < prefix.count; ++i) {
    CommitEntry entry{};
    if (!entries.take(&entry)) return false;
    if (entry.text_keys > kTextKeysPerChunkMax || storage->size() - used < entry.text_keys) return false;
    out->push_back({{entry.offset_bytes, entry.generation},
                    entry.checksum,
                    std::span<const std::uint64_t>(storage->data() + used, entry.text_keys)});
    used += entry.text_keys;
  }
  return used == storage->size();
}

bool decode_slots(Bytes payload, std::vector<SlotRef>* out) {
  Reader reader(payload);
  CountPrefix prefix{};
  if (!reader.take(&prefix) || prefix.count > kKeysPerFrameMax) return false;
  if (reader.left() != prefix.count * sizeof(SlotWire)) return false;
  out->clear();
  for (std::uint32_t i = 0; i < prefix.count; ++i) {
    SlotWire slot{};
    if (!reader.take(&slot)) return false;
    out->push_back({slot.offset_bytes, slot.generation});
  }
  return true;
}

bool decode_keys(Bytes payload, std::span<const Key>* out) {
  Reader reader(payload);
  CountPrefix prefix{};
  return reader.take(&prefix) && reader.rest_is_keys(prefix.count, kKeysPerFrameMax, out);
}

bool decode_u64(Bytes payload, std::uint64_t* out) {
  Reader reader(payload);
  return reader.take(out) && reader.left() == 0;
}

bool decode_feedback(Bytes payload, std::string_view* out) {
  if (payload.size() < 2 || payload.size() > kFeedbackBytesMax) return false;
  *out = {reinterpret_cast<const char*>(payload.data()), payload.size()};
  return out->front() == '{' && out->back() == '}' && valid_utf8(*out);
}

bool decode_describe(Bytes payload, KvForm* out) {
  Reader reader(payload);
  Describe fixed{};
  if (!reader.take(&fixed) || reader.left() != 0 || fixed.element < 1 || fixed.element > 3 || fixed.order > 5) {
    return false;
  }
  const auto in = [](std::uint32_t value, std::uint32_t most) { return value >= 1 && value <= most; };
  if (!in(fixed.block_tokens, kvcodec::kBlockTokensMax) || !in(fixed.k_size, kvcodec::kHeadSizeMax)) return false;
  if (fixed.v_size > kvcodec::kHeadSizeMax) return false;
  *out = {static_cast<kernels::Element>(fixed.element), static_cast<kvcodec::BlockOrder>(fixed.order),
          fixed.block_tokens, fixed.k_size, fixed.v_size};
  return true;
}

bool decode_hello_reply(Bytes payload, HelloAnswer* out) {
  Reader reader(payload);
  if (!reader.take(&out->fixed) || out->fixed.node_id_bytes > kNodeIdBytesMax) return false;
  if (reader.left() != out->fixed.node_id_bytes) return false;
  out->node_id.assign(reinterpret_cast<const char*>(reader.rest().data()), reader.left());
  return valid_utf8(out->node_id);
}

bool decode_lookup_reply(Bytes payload, LookupReply* out) {
  Reader reader(payload);
  return reader.take(out) && reader.left() == 0;
}

bool decode_slots_reply(Bytes payload, std::vector<SlotRef>* out) { return decode_slots(payload, out); }

bool decode_reserve_reply(Bytes payload, std::vector<Reservation>* out) {
  Reader reader(payload);
  CountPrefix prefix{};
  if (!reader.take(&prefix) || prefix.count > kChunksPerReserveMax) return false;
  if (reader.left() != prefix.count * sizeof(SlotWire)) return false;
  out->clear();
  for (std::uint32_t i = 0; i < prefix.count; ++i) {
    SlotWire slot{};
    if (!reader.take(&slot) || slot.status > static_cast<std::uint32_t>(ReserveStatus::ParentMissing)) return false;
    out->push_back({static_cast<ReserveStatus>(slot.status), {slot.offset_bytes, slot.generation}});
  }
  return true;
}

bool decode_commit_reply(Bytes payload, std::uint32_t* accepted) {
  Reader reader(payload);
  CountPrefix prefix{};
  if (!reader.take(&prefix) || reader.left() != 0) return false;
  *accepted = prefix.count;
  return true;
}

}  // namespace kvcommons::wire
