// Chunks of KV, made smaller: pure functions from the bytes of a slot to a payload that says itself what it is, and
// back. (codec.h beside this one is the wire's.) docs/codecs.md describes every field.
//
// A slot is layers, each of blocks, each of a K and a V part for every head and token, in one of six orders. A latent
// (MLA) is a K part of one head without a V. What is quantised never answers an exact lookup: see lossy_fingerprint.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "kernels/cpu/quant.h"
#include "types.h"

namespace kvcommons::kvcodec {

using kernels::Element;

// Values are part of the format, and of ShardMeta.codec.
enum class CodecId : std::uint16_t {
  None = 0,      // the engine's own bytes, without a header
  Fp8E4m3 = 1,   // one scale for each layer, head and part
  Int8 = 2,      // K: a scale a channel; V: a scale a token
  Int4 = 3,      // K: groups of tokens of a channel; V: groups of channels of a token
  K16V8 = 4,     // K as it is, V as in Int8
  Lossless = 5,  // planes of bytes, each through zstd where that helps
};
inline constexpr std::uint16_t kCodecVersion = 1;  // of what the ids above mean
inline constexpr std::uint32_t kGroupDefault = 32;
inline constexpr std::uint32_t kGroupMin = 8, kGroupMax = 256;  // a power of two

struct CodecSpec {
  CodecId id = CodecId::None;
  std::uint32_t group = 0;  // Int4 only: elements of a group; 0 elsewhere
  friend bool operator==(const CodecSpec&, const CodecSpec&) = default;
};

// What every build can do, by id; the names are those of settings and labels.
struct CodecInfo {
  CodecId id;
  std::string_view name;
  bool lossy;
};
inline constexpr std::array<CodecInfo, 5> kCodecs = {{{CodecId::Fp8E4m3, "fp8-e4m3", true},
                                                      {CodecId::Int8, "int8", true},
                                                      {CodecId::Int4, "int4", true},
                                                      {CodecId::K16V8, "k16v8", true},
                                                      {CodecId::Lossless, "lossless", false}}};
[[nodiscard]] const CodecInfo* codec_info(CodecId id) noexcept;  // nullptr: not a codec
[[nodiscard]] const CodecInfo* codec_named(std::string_view name) noexcept;

// Order of a block's axes, outermost first: P = K or V, H = head, N = token; a head's channels always lie together.
enum class BlockOrder : std::uint8_t { PHN = 0, PNH = 1, HPN = 2, HNP = 3, NPH = 4, NHP = 5 };

inline constexpr std::uint32_t kHeadsMax = 65'535;
inline constexpr std::uint32_t kHeadSizeMax = 8'192;
inline constexpr std::uint32_t kBlockTokensMax = 65'536;

struct KvShape {
  Element element = Element::Bf16;
  BlockOrder order = BlockOrder::PHN;
  std::uint32_t layers = 0;
  std::uint32_t blocks = 0;  // of a chunk
  std::uint32_t block_tokens = 0;
  std::uint32_t heads = 0;   // of this shard
  std::uint32_t k_size = 0;  // channels of a head's K, or of the latent
  std::uint32_t v_size = 0;  // 0: a latent, no V
  friend bool operator==(const KvShape&, const KvShape&) = default;

  [[nodiscard]] std::uint64_t tokens() const noexcept { return std::uint64_t{blocks} * block_tokens; }
  [[nodiscard]] std::uint64_t block_bytes() const noexcept {
    return std::uint64_t{heads} * block_tokens * (k_size + v_size) * kernels::element_bytes(element);
  }
  [[nodiscard]] std::uint64_t raw_bytes() const noexcept { return std::uint64_t{layers} * blocks * block_bytes(); }
};

// Why this can't be encoded: field, value and remedy; empty where it can. Nothing below is called with what this
// refuses.
[[nodiscard]] std::string why_not(const CodecSpec& spec, const KvShape& shape);

inline constexpr std::size_t kHeaderBytes = 80;
inline constexpr std::size_t kSectionAlignBytes = 64;

struct PayloadHeader {
  CodecSpec spec;
  KvShape shape;
  std::uint64_t raw_bytes = 0, body_bytes = 0;
  std::uint64_t raw_checksum = 0;  // XXH3-64 of the slot's bytes, Lossless only: what is decoded is checked against it
};

enum class CodecStatus : std::uint8_t {
  Ok,
  Refused,    // header or body are not what this version writes; `why` says what
  Mismatch,   // a proper payload of another shape
  NotFinite,  // Inf, NaN or a magnitude from 2^100 on: the chunk stays as it is
  NoRoom,     // the buffer is smaller than encoded_bytes_max() or than the slot
  NoLibrary,  // zstd is not on this machine
};
struct CodecResult {
  CodecStatus status = CodecStatus::Ok;
  std::uint64_t bytes = 0;  // written
  std::string why;          // where not Ok, for a person
};

// Known before encoding. Exact for all but Lossless, which never exceeds it. Precondition: why_not() is empty.
[[nodiscard]] std::uint64_t encoded_bytes_max(const CodecSpec& spec, const KvShape& shape);

// raw: a slot, shape.raw_bytes() long. out: at least encoded_bytes_max() long; not aliasing raw.
CodecResult encode(const CodecSpec& spec, const KvShape& shape, std::span<const std::byte> raw,
                   std::span<std::byte> out, kernels::QuantIsa isa = kernels::quant_best());
// payload: exactly what encode() wrote. raw: shape.raw_bytes() long; its content is undefined unless Ok.
CodecResult decode(std::span<const std::byte> payload, const KvShape& shape, std::span<std::byte> raw,
                   kernels::QuantIsa isa = kernels::quant_best());

// Checks everything that can be checked without the body; payload may be longer than the header alone or just that.
CodecResult parse_header(std::span<const std::byte> payload, PayloadHeader* out);
void write_header(const PayloadHeader& header, std::byte* out);  // kHeaderBytes

// Identity of what a lossy codec makes of an engine's KV: SHA-256 of a word of its own, the engine's fingerprint, and
// codec, version and parameters. Lossless codecs change no identity: the fingerprint itself.
[[nodiscard]] Key lossy_fingerprint(const Key& fingerprint, const CodecSpec& spec);

namespace detail {

CodecResult encode_lossless(const KvShape& shape, std::span<const std::byte> raw, std::span<std::byte> body);
CodecResult decode_lossless(const PayloadHeader& header, std::span<const std::byte> body, std::span<std::byte> raw);
[[nodiscard]] std::uint64_t lossless_bytes_max(const KvShape& shape);

}  // namespace detail
}  // namespace kvcommons::kvcodec
