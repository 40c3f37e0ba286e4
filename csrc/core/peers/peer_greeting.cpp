#include "peers/peer_greeting.h"

#include <sys/random.h>

#include <array>
#include <cstring>

#include "sha256.h"

namespace kvcommons::peers {
namespace {

constexpr std::string_view kDomain = "kvcommons.peer.v1";
constexpr std::string_view kServer = "kvcommons.peer.v1.server", kClient = "kvcommons.peer.v1.client";
constexpr std::size_t kGreetingBytesMax = 1'024;  // before the proof nobody is given more memory than this

bool random_nonce(wire::Nonce* out) {
  return ::getrandom(out->bytes.data(), out->bytes.size(), 0) == static_cast<ssize_t>(out->bytes.size());
}

Key proof_of(const Key& key, std::string_view side, const wire::Nonce& client, const wire::Nonce& server) {
  std::vector<std::byte> said;
  const auto add = [&](const void* data, std::size_t bytes) {
    const auto* begin = static_cast<const std::byte*>(data);
    said.insert(said.end(), begin, begin + bytes);
  };
  add(side.data(), side.size());
  add(client.bytes.data(), client.bytes.size());
  add(server.bytes.data(), server.bytes.size());
  return hmac_sha256(key, said);
}

// In the same time wherever they differ.
bool equal(const Key& a, const Key& b) {
  unsigned differs = 0;
  for (std::size_t i = 0; i < kKeyBytes; ++i) differs |= static_cast<unsigned>(a.bytes[i] ^ b.bytes[i]);
  return differs == 0;
}

template <typename T>
bool send(Stream& stream, wire::Type type, wire::Answer answer, const T& fixed, Deadline deadline) {
  wire::Out out;
  wire::put_frame(&out, type, answer, 0, fixed);
  return stream.write(out, deadline);
}

bool receive_small(Stream& stream, Deadline deadline, wire::Type type, Received* out) {
  std::array<std::byte, sizeof(wire::Header)> head{};
  if (!stream.read(head, deadline) || !wire::decode_header(head, &out->header)) return false;
  if (out->header.type != static_cast<std::uint16_t>(type) || out->header.payload_bytes > kGreetingBytesMax) {
    return false;
  }
  out->payload.resize(out->header.payload_bytes);
  return stream.read(out->payload, deadline);
}

}  // namespace

Key hmac_sha256(const Key& key, std::span<const std::byte> bytes) {
  std::array<std::uint8_t, Sha256::kBlockBytes> inner{}, outer{};
  for (std::size_t i = 0; i < inner.size(); ++i) {
    const std::uint8_t k = i < kKeyBytes ? key.bytes[i] : std::uint8_t{0};
    inner[i] = k ^ 0x36;
    outer[i] = k ^ 0x5c;
  }
  Sha256 first, second;
  first.update(inner.data(), inner.size());
  first.update(bytes.data(), bytes.size());
  const Key digest = first.finish();
  second.update(outer.data(), outer.size());
  second.update(digest.bytes.data(), digest.bytes.size());
  return second.finish();
}

Key greeting_key(const Key& pool_secret) {
  return hmac_sha256(pool_secret, std::as_bytes(std::span(kDomain.data(), kDomain.size())));
}

bool receive(Stream& stream, Deadline deadline, Received* out) {
  std::array<std::byte, sizeof(wire::Header)> head{};
  if (!stream.read(head, deadline) || !wire::decode_header(head, &out->header)) return false;
  out->payload.resize(out->header.payload_bytes);
  return stream.read(out->payload, deadline);
}

std::optional<std::uint32_t> greet_server(Stream& stream, const Key& key, Deadline deadline, std::string* why) {
  wire::Hello hello{wire::kMagic, wire::kVersion, wire::kVersion, {}};
  wire::Challenge challenge{};
  wire::Welcome welcome{};
  Received got;
  *why = "it is no cache node, or speaks another version";
  if (!random_nonce(&hello.nonce) || !send(stream, wire::Type::Hello, wire::Answer::Ok, hello, deadline) ||
      !receive_small(stream, deadline, wire::Type::Challenge, &got) || !wire::decode(got.payload, &challenge) ||
      challenge.version != wire::kVersion) {
    return std::nullopt;
  }
  *why = "it does not know this pool's secret: give all nodes of a pool one namespace_secret_file";
  if (!equal(challenge.proof, proof_of(key, kServer, hello.nonce, challenge.nonce)) ||
      !send(stream, wire::Type::Proof, wire::Answer::Ok, proof_of(key, kClient, hello.nonce, challenge.nonce),
            deadline) ||
      !receive_small(stream, deadline, wire::Type::Welcome, &got) ||
      got.header.answer != static_cast<std::uint16_t>(wire::Answer::Ok) || !wire::decode(got.payload, &welcome)) {
    return std::nullopt;
  }
  why->clear();
  return welcome.epoch;
}

bool greet_client(Stream& stream, const Key& key, std::uint32_t epoch, Deadline deadline) {
  wire::Hello hello{};
  Received got;
  if (!receive_small(stream, deadline, wire::Type::Hello, &got) || !wire::decode(got.payload, &hello) ||
      hello.version_min > wire::kVersion || hello.version_max < wire::kVersion) {
    return false;
  }
  wire::Challenge challenge{wire::kMagic, wire::kVersion, 0, {}, {}};
  if (!random_nonce(&challenge.nonce)) return false;
  challenge.proof = proof_of(key, kServer, hello.nonce, challenge.nonce);
  Key proof;
  if (!send(stream, wire::Type::Challenge, wire::Answer::Ok, challenge, deadline) ||
      !receive_small(stream, deadline, wire::Type::Proof, &got) || got.payload.size() != sizeof proof) {
    return false;
  }
  std::memcpy(&proof, got.payload.data(), sizeof proof);
  const bool known = equal(proof, proof_of(key, kClient, hello.nonce, challenge.nonce));
  const wire::Welcome welcome{epoch, 0};
  const bool sent =
      send(stream, wire::Type::Welcome, known ? wire::Answer::Ok : wire::Answer::Denied, welcome, deadline);
  return known && sent;
}

}  // namespace kvcommons::peers
