// One packet of the holder's protocol.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include "holder.h"

namespace kvcommons::holder {

enum class Op : std::uint8_t {
  Attach = 1,
  Put = 2,
  Remove = 3,
  Stop = 4,
  Entry = 16,
  End = 17,
  InUse = 18,
  Denied = 19
};

struct PacketHeader {
  std::uint8_t op;
  std::uint8_t name_bytes;
  std::uint16_t meta_bytes;
};
inline constexpr std::size_t kPacketBytesMax = sizeof(PacketHeader) + kHeldNameBytesMax + kHeldMetaBytesMax;
static_assert(kHeldNameBytesMax <= 0xff && kHeldMetaBytesMax <= 0xffff, "lengths must fit the header");

using PacketBytes = std::array<std::byte, kPacketBytesMax>;

struct Packet {
  Op op{};
  std::string_view name;
  std::span<const std::byte> meta;
};

// The caller has checked the lengths of name and meta.
inline std::span<const std::byte> write_packet(PacketBytes* out, const Packet& packet) {
  const PacketHeader header{static_cast<std::uint8_t>(packet.op), static_cast<std::uint8_t>(packet.name.size()),
                            static_cast<std::uint16_t>(packet.meta.size())};
  std::byte* at = out->data();
  std::memcpy(at, &header, sizeof header);
  at += sizeof header;
  if (!packet.name.empty()) std::memcpy(at, packet.name.data(), packet.name.size());
  at += packet.name.size();
  if (!packet.meta.empty()) std::memcpy(at, packet.meta.data(), packet.meta.size());
  return std::span(*out).first(sizeof header + packet.name.size() + packet.meta.size());
}

inline std::optional<Packet> read_packet(std::span<const std::byte> bytes) {
  PacketHeader header{};
  if (bytes.size() < sizeof header) return std::nullopt;
  std::memcpy(&header, bytes.data(), sizeof header);
  if (header.name_bytes > kHeldNameBytesMax || header.meta_bytes > kHeldMetaBytesMax) return std::nullopt;
  if (bytes.size() != sizeof header + header.name_bytes + header.meta_bytes) return std::nullopt;
  const auto rest = bytes.subspan(sizeof header);
  return Packet{static_cast<Op>(header.op),
                {reinterpret_cast<const char*>(rest.data()), header.name_bytes},
                rest.subspan(header.name_bytes)};
}

}  // namespace kvcommons::holder
