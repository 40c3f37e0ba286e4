// Frames of protocol 1 as values: pure functions over bytes. Decoders check every length, count and enumerator before
// they use it and touch nothing outside the bytes they were given; spans they return point into those bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "byte_buffer.h"
#include "kv_layouts.h"
#include "store.h"
#include "wire.h"

namespace kvcommons::wire {

inline constexpr std::size_t kMessageBytesMax = 1024;  // of a reply that is not Ok
inline constexpr std::size_t kFeedbackBytesMax = 4096;
inline constexpr std::size_t kNodeIdBytesMax = 255;
inline constexpr std::uint32_t kReadersPerShardMax = 1024;  // tensor-parallel ranks that share one shard
inline constexpr std::size_t kStatBytesMax = 64u << 10;
static_assert(kStatBytesMax < kFrameBytesMax);
static_assert(sizeof(Reserve) + std::size_t{kChunksPerReserveMax} * kKeyBytes < kFrameBytesMax);

// ---- frames -----------------------------------------------------------------------------------------------------

struct Frame {
  Header header{};
  std::span<const std::byte> payload;
  [[nodiscard]] std::size_t bytes() const noexcept { return sizeof(Header) + payload.size(); }
  [[nodiscard]] Type type() const noexcept { return static_cast<Type>(header.type & ~kReplyBit); }
};

enum class Parse : std::uint8_t {
  Complete,
  Incomplete,  // a proper beginning: wait for more
  Malformed,   // no continuation can mend it
};
Parse parse_request(std::span<const std::byte> bytes, Frame* out);
Parse parse_reply(std::span<const std::byte> bytes, Frame* out);

// The version both speak, or nothing. Each side serves its newest and the one before.
std::optional<std::uint16_t> negotiate(std::uint16_t own_min, std::uint16_t own_max, std::uint16_t peer_min,
                                       std::uint16_t peer_max);

[[nodiscard]] bool valid_utf8(std::string_view text);

// ---- requests, decoded by the node ------------------------------------------------------------------------------

struct HelloRequest {
  Role role = Role::Tool;
  std::uint16_t version_min = 0, version_max = 0;
  SessionId drained_session = 0;
  SessionSpec spec;
  bool exact = false;
};
// Ok, BadFrame, or BadVersion (then only the versions are set: the rest may have another shape).
Status decode_hello(std::span<const std::byte> payload, HelloRequest* out);

struct LookupRequest {
  std::uint64_t tenant = 0;
  bool lease = false;
  std::span<const Key> keys;
};
bool decode_lookup(std::span<const std::byte> payload, LookupRequest* out);

struct ReserveRequest {
  std::uint64_t tenant = 0;
  Key parent;
  std::span<const Key> keys;
  std::uint32_t hints = 0;
};
bool decode_reserve(std::span<const std::byte> payload, ReserveRequest* out);

// The text keys are copied to `storage` (a frame may lie unaligned); the items' spans point into it.
bool decode_commit(std::span<const std::byte> payload, std::vector<CommitItem>* out,
                   std::vector<std::uint64_t>* storage);
bool decode_slots(std::span<const std::byte> payload, std::vector<SlotRef>* out);
bool decode_keys(std::span<const std::byte> payload, std::span<const Key>* out);
bool decode_u64(std::span<const std::byte> payload, std::uint64_t* out);  // BEGIN, RELEASE, DRAINED
bool decode_feedback(std::span<const std::byte> payload, std::string_view* out);
bool decode_describe(std::span<const std::byte> payload, KvForm* out);

// ---- replies, decoded by the client -----------------------------------------------------------------------------

struct HelloAnswer {
  HelloReply fixed{};
  std::string node_id;
};
bool decode_hello_reply(std::span<const std::byte> payload, HelloAnswer* out);
bool decode_lookup_reply(std::span<const std::byte> payload, LookupReply* out);
bool decode_slots_reply(std::span<const std::byte> payload, std::vector<SlotRef>* out);
bool decode_reserve_reply(std::span<const std::byte> payload, std::vector<Reservation>* out);
bool decode_commit_reply(std::span<const std::byte> payload, std::uint32_t* accepted);

// ---- encoders ---------------------------------------------------------------------------------------------------

// Appends one frame to `out`; the header's length is set by finish(), which must be called.
class FrameWriter {
 public:
  FrameWriter(ByteBuffer* out, std::uint16_t type, Status status, std::uint64_t request_id);
  template <typename T>
  FrameWriter& put(const T& value) {
    out_->append_pod(value);
    return *this;
  }
  FrameWriter& put_bytes(std::span<const std::byte> bytes) {
    out_->append(bytes);
    return *this;
  }
  void finish() noexcept;

 private:
  ByteBuffer* out_;
  std::size_t start_;
};

void encode_status(ByteBuffer* out, const Header& request, Status status, std::string_view message);
void encode_hello(ByteBuffer* out, std::uint64_t request_id, const HelloRequest& hello);
void encode_hello_reply(ByteBuffer* out, const Header& request, const HelloAnswer& answer);
void encode_lookup(ByteBuffer* out, std::uint64_t request_id, const LookupRequest& lookup);
void encode_reserve(ByteBuffer* out, std::uint64_t request_id, const ReserveRequest& reserve);
void encode_commit(ByteBuffer* out, std::uint64_t request_id, std::span<const CommitItem> items);
void encode_slots(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::span<const SlotRef> slots);
void encode_reserve_reply(ByteBuffer* out, const Header& request, std::span<const Reservation> reservations);
void encode_keys(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::span<const Key> keys);
void encode_u64(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::uint64_t value);
void encode_describe(ByteBuffer* out, std::uint64_t request_id, const KvForm& layout);
void encode_text(ByteBuffer* out, std::uint16_t type, std::uint64_t request_id, std::string_view text);

}  // namespace kvcommons::wire
