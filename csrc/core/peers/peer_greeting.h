// The beginning of a connection: both sides prove that they know the pool's secret, and neither tells it.
//
//   client -> Hello(its nonce)    server -> Challenge(its nonce, its proof)    client -> Proof    server -> Welcome
//
// A proof is HMAC-SHA256 under a key made from the pool's secret for this alone, over the side's name and both nonces:
// another side's or another connection's proof is none. It says who is there, not that nobody in between changes bytes:
// where the network is not trusted, TLS goes around it.
#pragma once

#include <optional>
#include <string>

#include "peers/peer_stream.h"
#include "peers/peer_wire.h"

namespace kvcommons::peers {

[[nodiscard]] Key hmac_sha256(const Key& key, std::span<const std::byte> bytes);
[[nodiscard]] Key greeting_key(const Key& pool_secret);

// One frame of the given type; nothing where another one came, it was malformed, or the deadline passed.
struct Received {
  wire::Header header{};
  std::vector<std::byte> payload;
};
[[nodiscard]] bool receive(Stream& stream, Deadline deadline, Received* out);

// The server's epoch (wire::kAnyEpoch: it has none); nothing where the other side is no peer. *why: for a person.
[[nodiscard]] std::optional<std::uint32_t> greet_server(Stream& stream, const Key& key, Deadline deadline,
                                                        std::string* why);
[[nodiscard]] bool greet_client(Stream& stream, const Key& key, std::uint32_t epoch, Deadline deadline);

}  // namespace kvcommons::peers
