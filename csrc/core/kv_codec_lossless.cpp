// Lossless: each element rotated left by one bit, so that its exponent is one byte, and cut into planes of bytes. The
// exponents of KV take about three bits each; mantissas are noise and are stored as they are.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kv_codec.h"
#include "xxh3.h"
#include "zstd_library.h"

namespace kvcommons::kvcodec {
namespace {

constexpr int kLevel = 1;  // higher ones find nothing more in noise
constexpr std::uint32_t kStoredBit = 1u << 31;
constexpr std::size_t kProbeBytes = 16u << 10;
static_assert(kSlabBytesMax < kStoredBit, "a plane's length and the bit beside it fit 32 bits");

// Worth it: at least this much smaller. What saves less costs time at every load.
std::size_t worthwhile(std::size_t bytes) { return bytes - bytes / 32; }

// Plane p holds byte p of each element after the rotation, least significant first. Element i of `in` begins at byte i
// * sizeof(T).
template <typename T>
void split(const std::byte* in, std::size_t count, std::uint8_t* planes) {
  for (std::size_t i = 0; i < count; ++i) {
    T x;
    std::memcpy(&x, in + i * sizeof x, sizeof x);
    x = static_cast<T>((x << 1) | (x >> (8 * sizeof x - 1)));
    for (std::size_t p = 0; p < sizeof x; ++p) planes[p * count + i] = static_cast<std::uint8_t>(x >> (8 * p));
  }
}

template <typename T>
void join(const std::uint8_t* planes, std::size_t count, std::byte* out) {
  for (std::size_t i = 0; i < count; ++i) {
    T x = 0;
    for (std::size_t p = 0; p < sizeof x; ++p)
      x = static_cast<T>(x | static_cast<T>(T{planes[p * count + i]} << (8 * p)));
    x = static_cast<T>((x >> 1) | (x << (8 * sizeof x - 1)));
    std::memcpy(out + i * sizeof x, &x, sizeof x);
  }
}

// Bytes written to `out`, which holds plane.size(); the length's entry in the directory.
std::uint32_t put_plane(std::span<const std::byte> plane, std::byte* out) {
  const auto probe = plane.first(std::min(plane.size(), kProbeBytes));
  if (zstd_compress(probe, {out, worthwhile(probe.size())}, kLevel)) {
    if (const auto done = zstd_compress(plane, {out, worthwhile(plane.size())}, kLevel)) {
      return static_cast<std::uint32_t>(*done);
    }
  }
  std::memcpy(out, plane.data(), plane.size());
  return static_cast<std::uint32_t>(plane.size()) | kStoredBit;
}

std::uint64_t directory_bytes(const KvShape& shape) {
  return std::uint64_t{shape.layers} * kernels::element_bytes(shape.element) * sizeof(std::uint32_t);
}

CodecResult refused(const char* why) { return {.status = CodecStatus::Refused, .bytes = 0, .why = why}; }

}  // namespace

namespace detail {

std::uint64_t lossless_bytes_max(const KvShape& shape) { return directory_bytes(shape) + shape.raw_bytes(); }

CodecResult encode_lossless(const KvShape& shape, std::span<const std::byte> raw, std::span<std::byte> out) {
  if (const char* missing = zstd_missing()) return {.status = CodecStatus::NoLibrary, .bytes = 0, .why = missing};
  const std::size_t item = kernels::element_bytes(shape.element);
  const std::size_t layer_bytes = raw.size() / shape.layers, plane_bytes = layer_bytes / item;
  std::vector<std::uint8_t> planes(layer_bytes);
  std::byte* directory = out.data() + kHeaderBytes;
  std::byte* at = directory + directory_bytes(shape);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    const std::byte* in = raw.data() + layer * layer_bytes;
    item == 2 ? split<std::uint16_t>(in, plane_bytes, planes.data())
              : split<std::uint32_t>(in, plane_bytes, planes.data());
    for (std::size_t p = 0; p < item; ++p, directory += sizeof(std::uint32_t)) {
      const auto plane = std::as_bytes(std::span(planes)).subspan(p * plane_bytes, plane_bytes);
      const std::uint32_t entry = put_plane(plane, at);
      std::memcpy(directory, &entry, sizeof entry);
      at += entry & ~kStoredBit;
    }
  }
  const auto bytes = static_cast<std::uint64_t>(at - out.data());
  write_header({.spec = {.id = CodecId::Lossless, .group = 0},
                .shape = shape,
                .raw_bytes = raw.size(),
                .body_bytes = bytes - kHeaderBytes,
                .raw_checksum = xxh3_64(raw.data(), raw.size())},
               out.data());
  return {.status = CodecStatus::Ok, .bytes = bytes, .why = {}};
}

CodecResult decode_lossless(const PayloadHeader& header, std::span<const std::byte> body, std::span<std::byte> raw) {
  if (const char* missing = zstd_missing()) return {.status = CodecStatus::NoLibrary, .bytes = 0, .why = missing};
  const KvShape& shape = header.shape;
  const std::size_t item = kernels::element_bytes(shape.element);
  const std::size_t layer_bytes = raw.size() / shape.layers, plane_bytes = layer_bytes / item;
  if (body.size() < directory_bytes(shape)) return refused("the body is shorter than its directory: drop it");
  const std::byte* directory = body.data();
  std::span<const std::byte> rest = body.subspan(directory_bytes(shape));
  std::vector<std::uint8_t> planes(layer_bytes);
  for (std::uint32_t layer = 0; layer < shape.layers; ++layer) {
    for (std::size_t p = 0; p < item; ++p, directory += sizeof(std::uint32_t)) {
      std::uint32_t entry = 0;
      std::memcpy(&entry, directory, sizeof entry);
      const std::size_t bytes = entry & ~kStoredBit;
      const bool stored = (entry & kStoredBit) != 0;
      if (bytes > rest.size() || (stored && bytes != plane_bytes)) return refused("a plane's length is wrong: drop it");
      const auto plane = std::as_writable_bytes(std::span(planes)).subspan(p * plane_bytes, plane_bytes);
      if (stored) {
        std::memcpy(plane.data(), rest.data(), bytes);
      } else if (!zstd_decompress(rest.first(bytes), plane)) {
        return refused("a plane is no zstd frame of its length: drop it");
      }
      rest = rest.subspan(bytes);
    }
    std::byte* to = raw.data() + layer * layer_bytes;
    item == 2 ? join<std::uint16_t>(planes.data(), plane_bytes, to)
              : join<std::uint32_t>(planes.data(), plane_bytes, to);
  }
  if (!rest.empty()) return refused("bytes are left behind the last plane: drop it");
  if (xxh3_64(raw.data(), raw.size()) != header.raw_checksum)
    return refused("what came out is not what went in: drop it");
  return {.status = CodecStatus::Ok, .bytes = raw.size(), .why = {}};
}

}  // namespace detail
}  // namespace kvcommons::kvcodec
