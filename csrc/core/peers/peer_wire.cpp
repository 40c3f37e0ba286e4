#include "peers/peer_wire.h"

#include <cstring>

namespace kvcommons::peers::wire {
namespace {

// Takes from the front; whatever was said before decides how much.
class Reader {
 public:
  explicit Reader(Bytes bytes) : bytes_(bytes) {}
  template <typename T>
  bool take(T* out) {
    if (bytes_.size() < sizeof(T)) return false;
    std::memcpy(out, bytes_.data(), sizeof(T));
    bytes_ = bytes_.subspan(sizeof(T));
    return true;
  }
  template <typename T>
  bool take(std::vector<T>* out, std::size_t count, std::size_t max) {
    if (count > max || bytes_.size() / sizeof(T) < count) return false;
    out->resize(count);
    if (count != 0) std::memcpy(out->data(), bytes_.data(), count * sizeof(T));
    bytes_ = bytes_.subspan(count * sizeof(T));
    return true;
  }
  [[nodiscard]] bool over() const { return bytes_.empty(); }

 private:
  Bytes bytes_;
};

template <typename T>
bool decode_fixed(Bytes payload, T* out) {
  Reader reader(payload);
  return reader.take(out) && reader.over();
}

bool good_rect(const Rect& rect) { return rect.layer_begin < rect.layer_end && rect.head_begin < rect.head_end; }

bool good_layout(std::span<const ShardSpec> shards) {
  for (const ShardSpec& shard : shards) {
    if (!good_rect(shard.rect) || shard.slot_bytes == 0 || shard.slot_bytes > kSlabBytesMax) return false;
  }
  return true;
}

template <typename T>
Bytes bytes_of(std::span<const T> items) {
  return std::as_bytes(items);
}

void append(Out* out, Bytes bytes) { out->insert(out->end(), bytes.begin(), bytes.end()); }

void begin(Out* out, Type type, Answer answer, std::uint64_t request, std::size_t payload_bytes) {
  const Header header{static_cast<std::uint32_t>(payload_bytes), static_cast<std::uint16_t>(type),
                      static_cast<std::uint16_t>(answer), request};
  append(out, std::as_bytes(std::span(&header, 1)));
}

template <typename Head, typename... Lists>
void put(Out* out, Type type, std::uint64_t request, const Head& head, std::span<const Lists>... lists) {
  begin(out, type, Answer::Ok, request, sizeof(Head) + (lists.size_bytes() + ... + 0));
  append(out, std::as_bytes(std::span(&head, 1)));
  (append(out, bytes_of(lists)), ...);
}

}  // namespace

bool decode_header(Bytes bytes, Header* out) {
  if (!decode_fixed(bytes, out)) return false;
  return out->payload_bytes <= kFrameBytesMax && out->type >= static_cast<std::uint16_t>(Type::Hello) &&
         out->type <= static_cast<std::uint16_t>(Type::Removed) &&
         out->answer <= static_cast<std::uint16_t>(Answer::Bad);
}

bool decode(Bytes payload, Hello* out) {
  return decode_fixed(payload, out) && out->magic == kMagic && out->version_min <= out->version_max;
}
bool decode(Bytes payload, Challenge* out) { return decode_fixed(payload, out) && out->magic == kMagic; }
bool decode(Bytes payload, Welcome* out) { return decode_fixed(payload, out) && out->epoch <= kAnyEpoch; }

bool decode(Bytes payload, LocateRequest* out) {
  Reader reader(payload);
  return reader.take(&out->head) && out->head.shards != 0 && out->head.epoch <= kAnyEpoch &&
         reader.take(&out->shards, out->head.shards, kShardsPerChunkMax) && good_layout(out->shards) &&
         reader.take(&out->keys, out->head.keys, keys_max(out->shards.size())) && reader.over();
}

bool decode(Bytes payload, std::size_t shards, std::size_t keys_max, LocatedReply* out) {
  Reader reader(payload);
  return reader.take(&out->head) && out->head.chunks <= keys_max && out->head.coming <= keys_max &&
         reader.take(&out->places, out->head.chunks * shards, kFrameBytesMax / sizeof(Place)) && reader.over();
}

bool decode(Bytes payload, FetchRequest* out) {
  Reader reader(payload);
  return reader.take(&out->head) && out->head.items != 0 && out->head.epoch <= kAnyEpoch &&
         reader.take(&out->items, out->head.items, kItemsMax) && reader.over();
}

bool decode(Bytes payload, RemoveRequest* out) {
  Reader reader(payload);
  return reader.take(&out->head) && reader.take(&out->items, out->head.items, kItemsMax) && reader.over();
}

bool decode_shard(Bytes payload, bool push, ShardHead* out) {
  Reader reader(payload);
  Meta m{};
  if (!reader.take(&m) || !good_rect(m.rect) || m.payload_bytes == 0 || m.payload_bytes > kSlabBytesMax ||
      (!push && m.shards != 0)) {
    return false;
  }
  out->meta = {
      {m.fingerprint, m.key, m.rect}, m.parent, m.tenant, m.payload_bytes, m.checksum, m.chunk_tokens, m.codec, {}};
  return reader.take(&out->layout, m.shards, kShardsPerChunkMax) && good_layout(out->layout) &&
         reader.take(&out->meta.text_keys, m.text_keys, kTextKeysPerChunkMax) && reader.over();
}

void put_frame(Out* out, Type type, Answer answer, std::uint64_t request, Bytes payload) {
  begin(out, type, answer, request, payload.size());
  append(out, payload);
}

void put_locate(Out* out, std::uint64_t request, const Locate& head, std::span<const ShardSpec> shards,
                std::span<const Key> keys) {
  put(out, Type::Locate, request, head, shards, keys);
}
void put_located(Out* out, std::uint64_t request, const Located& head, std::span<const Place> places) {
  put(out, Type::Located, request, head, places);
}
void put_fetch(Out* out, std::uint64_t request, const Fetch& head, std::span<const Item> items) {
  put(out, Type::Fetch, request, head, items);
}
void put_remove(Out* out, std::uint64_t request, const Remove& head, std::span<const Item> items) {
  put(out, Type::Remove, request, head, items);
}

void put_shard(Out* out, Type type, std::uint64_t request, const ShardMeta& meta, std::span<const ShardSpec> layout) {
  Meta m{};
  m.fingerprint = meta.id.fingerprint;
  m.key = meta.id.key;
  m.parent = meta.parent;
  m.rect = meta.id.rect;
  m.tenant = meta.tenant;
  m.payload_bytes = meta.payload_bytes;
  m.checksum = meta.checksum;
  m.chunk_tokens = meta.chunk_tokens;
  m.codec = meta.codec;
  m.text_keys = static_cast<std::uint16_t>(meta.text_keys.size());
  m.shards = static_cast<std::uint16_t>(layout.size());
  put(out, type, request, m, layout, std::span<const std::uint64_t>(meta.text_keys));
}

}  // namespace kvcommons::peers::wire
