#include "tiers/remote_object.h"

#include <algorithm>
#include <cstring>

#include "xxh3.h"

namespace kvcommons::tiers {
namespace {

constexpr char kMagic[] = "KVCOBJ01";
constexpr std::uint16_t kVersion = 1;

struct Header {
  char magic[8];
  std::uint64_t header_checksum;
  std::uint16_t version, codec, text_keys, reserved;
  Key fingerprint, key, parent;
  Rect rect;
  std::uint64_t tenant, payload_bytes, checksum, expires_unix_ms;
  std::uint32_t chunk_tokens, reserved_2;
  std::uint64_t text[kTextKeysPerChunkMax];
};
static_assert(sizeof(Header) <= kObjectHeaderBytes && std::is_trivially_copyable_v<Header>);
static_assert(sizeof(Header) == 8 + 8 + 8 + 96 + 8 + 32 + 8 + 8 * kTextKeysPerChunkMax, "a header without holes");

std::uint64_t sum_of(std::span<const std::byte> header) {
  std::byte copy[kObjectHeaderBytes];
  std::memcpy(copy, header.data(), sizeof copy);
  std::memset(copy + offsetof(Header, header_checksum), 0, sizeof(std::uint64_t));
  return xxh3_64(copy, sizeof copy);
}

void put_hex(const Key& key, std::string* out) {
  constexpr char kDigits[] = "0123456789abcdef";
  for (const std::uint8_t byte : key.bytes) {
    out->push_back(kDigits[byte >> 4]);
    out->push_back(kDigits[byte & 15]);
  }
}

}  // namespace

std::string object_prefix(const std::string& prefix, const Key* fingerprint) {
  std::string name = prefix;
  if (fingerprint != nullptr) {
    put_hex(*fingerprint, &name);
    name.push_back('/');
  }
  return name;
}

std::string object_name(const std::string& prefix, const ShardId& id) {
  std::string name = object_prefix(prefix, &id.fingerprint);
  put_hex(id.key, &name);
  const Rect& r = id.rect;
  return name + "/" + std::to_string(r.layer_begin) + "-" + std::to_string(r.layer_end) + "." +
         std::to_string(r.head_begin) + "-" + std::to_string(r.head_end);
}

void encode_object_header(const ShardMeta& meta, std::uint64_t expires_unix_ms, std::byte* out) {
  Header h{};
  std::memcpy(h.magic, kMagic, sizeof h.magic);
  h.version = kVersion;
  h.codec = meta.codec;
  h.text_keys = static_cast<std::uint16_t>(std::min<std::size_t>(meta.text_keys.size(), kTextKeysPerChunkMax));
  h.fingerprint = meta.id.fingerprint;
  h.key = meta.id.key;
  h.parent = meta.parent;
  h.rect = meta.id.rect;
  h.tenant = meta.tenant;
  h.payload_bytes = meta.payload_bytes;
  h.checksum = meta.checksum;
  h.expires_unix_ms = expires_unix_ms;
  h.chunk_tokens = meta.chunk_tokens;
  std::copy_n(meta.text_keys.begin(), h.text_keys, h.text);
  std::memset(out, 0, kObjectHeaderBytes);
  std::memcpy(out, &h, sizeof h);
  h.header_checksum = sum_of({out, kObjectHeaderBytes});
  std::memcpy(out, &h, sizeof h);
}

ObjectVerdict check_object(std::span<const std::byte> object, const ShardId& id, std::uint64_t now_unix_ms,
                           ShardMeta* meta) {
  Header h{};
  if (object.size() < kObjectHeaderBytes) return ObjectVerdict::Wrong;
  std::memcpy(&h, object.data(), sizeof h);
  if (std::memcmp(h.magic, kMagic, sizeof h.magic) != 0) return ObjectVerdict::Wrong;
  if (h.header_checksum != sum_of(object.first(kObjectHeaderBytes))) return ObjectVerdict::Wrong;
  if (h.version != kVersion) return ObjectVerdict::Foreign;
  const ShardId said{h.fingerprint, h.key, h.rect};
  const std::span<const std::byte> payload = object.subspan(kObjectHeaderBytes);
  if (!(said == id) || h.text_keys > kTextKeysPerChunkMax || h.payload_bytes != payload.size()) {
    return ObjectVerdict::Wrong;
  }
  if (h.expires_unix_ms <= now_unix_ms) return ObjectVerdict::Foreign;
  if (xxh3_64(payload.data(), payload.size()) != h.checksum) return ObjectVerdict::Wrong;
  *meta = {id,         h.parent,       h.tenant, h.payload_bytes,
           h.checksum, h.chunk_tokens, h.codec,  {h.text, h.text + h.text_keys}};
  return ObjectVerdict::Right;
}

}  // namespace kvcommons::tiers
