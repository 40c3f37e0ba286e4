// The header of a payload, and what its numbers may be. Every product is checked before it is used.
#include <cstring>

#include "kv_codec.h"
#include "sha256.h"
#include "xxh3.h"

namespace kvcommons::kvcodec {
namespace {

constexpr std::uint32_t kMagic = 0x4343564Bu;  // "KVCC"
constexpr std::size_t kCheckOffset = 72;

// Little-endian, without padding; reserved fields are zero.
struct HeaderWire {
  std::uint32_t magic;
  std::uint16_t version, header_bytes;
  std::uint16_t codec;
  std::uint8_t element, order;
  std::uint32_t group;
  std::uint32_t layers, blocks, block_tokens, heads, k_size, v_size;
  std::uint32_t reserved0, reserved1;
  std::uint64_t raw_bytes, body_bytes, raw_checksum;
  std::uint64_t check;  // XXH3-64 of what stands before
};
static_assert(sizeof(HeaderWire) == kHeaderBytes && offsetof(HeaderWire, check) == kCheckOffset);

std::string field(const char* name, std::uint64_t value, const std::string& remedy) {
  return std::string(name) + " is " + std::to_string(value) + ": " + remedy;
}

std::string range(const char* name, std::uint64_t value, std::uint64_t low, std::uint64_t high) {
  if (value >= low && value <= high) return {};
  return field(name, value, "give " + std::to_string(low) + ".." + std::to_string(high));
}

std::string why_not_spec(const CodecSpec& spec) {
  if (codec_info(spec.id) == nullptr) {
    return field("codec", static_cast<std::uint64_t>(spec.id), "use one that this build names");
  }
  if (spec.id != CodecId::Int4)
    return spec.group == 0 ? "" : field("group", spec.group, "only int4 has groups: give 0");
  const bool power = spec.group != 0 && (spec.group & (spec.group - 1)) == 0;
  if (power && spec.group >= kGroupMin && spec.group <= kGroupMax) return {};
  return field("group", spec.group,
               "give a power of two in " + std::to_string(kGroupMin) + ".." + std::to_string(kGroupMax));
}

std::string why_not_shape(const KvShape& shape) {
  const auto element = static_cast<std::uint64_t>(shape.element), order = static_cast<std::uint64_t>(shape.order);
  for (const std::string& why :
       {range("element", element, 1, 3), range("order", order, 0, 5), range("layers", shape.layers, 1, 4'096),
        range("blocks", shape.blocks, 1, 65'536), range("block_tokens", shape.block_tokens, 1, kBlockTokensMax),
        range("heads", shape.heads, 1, kHeadsMax), range("k_size", shape.k_size, 1, kHeadSizeMax),
        range("v_size", shape.v_size, 0, kHeadSizeMax)}) {
    if (!why.empty()) return why;
  }
  // Each factor is bounded by 2^16: the first product by 2^34, so only the last ones can overflow.
  std::uint64_t bytes = std::uint64_t{shape.heads} * (shape.k_size + shape.v_size) * 4;
  for (const std::uint64_t factor : {shape.block_tokens, shape.blocks, shape.layers}) {
    if (__builtin_mul_overflow(bytes, factor, &bytes)) bytes = ~std::uint64_t{0};
  }
  if (bytes / 4 * kernels::element_bytes(shape.element) > kSlabBytesMax) {
    return field("raw_bytes", bytes / 4 * kernels::element_bytes(shape.element),
                 "a slot has at most " + std::to_string(kSlabBytesMax) + " bytes: choose a smaller chunk");
  }
  return {};
}

CodecResult refused(std::string why) { return {.status = CodecStatus::Refused, .bytes = 0, .why = std::move(why)}; }

}  // namespace

const CodecInfo* codec_info(CodecId id) noexcept {
  for (const CodecInfo& info : kCodecs) {
    if (info.id == id) return &info;
  }
  return nullptr;
}

const CodecInfo* codec_named(std::string_view name) noexcept {
  for (const CodecInfo& info : kCodecs) {
    if (info.name == name) return &info;
  }
  return nullptr;
}

std::string why_not(const CodecSpec& spec, const KvShape& shape) {
  if (std::string why = why_not_spec(spec); !why.empty()) return why;
  if (std::string why = why_not_shape(shape); !why.empty()) return why;
  if (spec.id == CodecId::K16V8 && shape.v_size == 0) {
    return field("v_size", 0, "k16v8 keeps K and a latent has no V: choose int8 or lossless");
  }
  if (spec.id == CodecId::Int4 && shape.v_size % 2 != 0) {
    return field("v_size", shape.v_size, "int4 packs channels in pairs: choose int8");
  }
  return {};
}

void write_header(const PayloadHeader& header, std::byte* out) {
  const KvShape& shape = header.shape;
  HeaderWire wire{.magic = kMagic,
                  .version = kCodecVersion,
                  .header_bytes = kHeaderBytes,
                  .codec = static_cast<std::uint16_t>(header.spec.id),
                  .element = static_cast<std::uint8_t>(shape.element),
                  .order = static_cast<std::uint8_t>(shape.order),
                  .group = header.spec.group,
                  .layers = shape.layers,
                  .blocks = shape.blocks,
                  .block_tokens = shape.block_tokens,
                  .heads = shape.heads,
                  .k_size = shape.k_size,
                  .v_size = shape.v_size,
                  .reserved0 = 0,
                  .reserved1 = 0,
                  .raw_bytes = header.raw_bytes,
                  .body_bytes = header.body_bytes,
                  .raw_checksum = header.raw_checksum,
                  .check = 0};
  wire.check = xxh3_64(&wire, kCheckOffset);
  std::memcpy(out, &wire, sizeof wire);
}

CodecResult parse_header(std::span<const std::byte> payload, PayloadHeader* out) {
  HeaderWire wire;
  if (payload.size() < sizeof wire) {
    return refused(field("payload", payload.size(), "shorter than a header; it was cut"));
  }
  std::memcpy(&wire, payload.data(), sizeof wire);
  if (wire.magic != kMagic) return refused(field("magic", wire.magic, "no payload of a codec"));
  if (wire.version != kCodecVersion) {
    return refused(field("version", wire.version, "this build reads " + std::to_string(kCodecVersion)));
  }
  if (wire.header_bytes != kHeaderBytes) return refused(field("header_bytes", wire.header_bytes, "80 in version 1"));
  if (wire.check != xxh3_64(&wire, kCheckOffset)) return refused("check is wrong: the header was damaged; drop it");
  if (wire.reserved0 != 0 || wire.reserved1 != 0)
    return refused("reserved fields are not zero: written by another version");
  const PayloadHeader header{.spec = {.id = static_cast<CodecId>(wire.codec), .group = wire.group},
                             .shape = {.element = static_cast<Element>(wire.element),
                                       .order = static_cast<BlockOrder>(wire.order),
                                       .layers = wire.layers,
                                       .blocks = wire.blocks,
                                       .block_tokens = wire.block_tokens,
                                       .heads = wire.heads,
                                       .k_size = wire.k_size,
                                       .v_size = wire.v_size},
                             .raw_bytes = wire.raw_bytes,
                             .body_bytes = wire.body_bytes,
                             .raw_checksum = wire.raw_checksum};
  if (std::string why = why_not(header.spec, header.shape); !why.empty()) return refused(std::move(why));
  if (header.raw_bytes != header.shape.raw_bytes()) {
    return refused(field("raw_bytes", header.raw_bytes, "the shape has " + std::to_string(header.shape.raw_bytes())));
  }
  const std::uint64_t most = encoded_bytes_max(header.spec, header.shape) - kHeaderBytes;
  if (header.spec.id == CodecId::Lossless ? header.body_bytes > most : header.body_bytes != most) {
    return refused(field("body_bytes", header.body_bytes, "the shape allows " + std::to_string(most)));
  }
  if (header.spec.id != CodecId::Lossless && header.raw_checksum != 0) {
    return refused(field("raw_checksum", header.raw_checksum, "0 where bytes are not kept"));
  }
  *out = header;
  return {};
}

Key lossy_fingerprint(const Key& fingerprint, const CodecSpec& spec) {
  const CodecInfo* info = codec_info(spec.id);
  if (info == nullptr || !info->lossy) return fingerprint;
  constexpr std::string_view kWord = "kvcommons.lossy.v1";
  Sha256 hash;
  hash.update(kWord.data(), kWord.size());
  hash.update(fingerprint.bytes.data(), fingerprint.bytes.size());
  const auto id = static_cast<std::uint16_t>(spec.id);
  hash.update(&id, sizeof id);
  hash.update(&kCodecVersion, sizeof kCodecVersion);
  hash.update(&spec.group, sizeof spec.group);
  return hash.finish();
}

}  // namespace kvcommons::kvcodec
