#include "xxh3.h"

#include <bit>
#include <cstring>

#include "cpu.h"
#include "xxh3_impl.h"

namespace kvcommons {
namespace {

using xxh3_detail::ConsumeFn;
using xxh3_detail::kStripesPerBlock;

constexpr std::size_t kStripe = xxh3_detail::kStripeBytes;
constexpr std::size_t kSecretBytes = 192;
constexpr std::size_t kShortBytesMax = 240;
constexpr std::size_t kLastStripeAt = kSecretBytes - kStripe - 7;
constexpr std::size_t kMergeAt = 11;
static_assert(xxh3_detail::kScrambleAt == kSecretBytes - kStripe);
static_assert(kStripesPerBlock == (kSecretBytes - kStripe) / 8);

constexpr std::uint64_t kPrime32B = 0x85EBCA77u, kPrime32C = 0xC2B2AE3Du;
constexpr std::uint64_t kPrime64A = 0x9E3779B185EBCA87u, kPrime64B = 0xC2B2AE3D27D4EB4Fu,
                        kPrime64C = 0x165667B19E3779F9u, kPrime64D = 0x85EBCA77C2B2AE63u,
                        kPrime64E = 0x27D4EB2F165667C5u;
constexpr std::array<std::uint64_t, 8> kAccStart = {kPrime32C, kPrime64A, kPrime64B, kPrime64C,
                                                    kPrime64D, kPrime32B, kPrime64E, xxh3_detail::kPrime32A};

constexpr std::array<std::uint8_t, kSecretBytes> kSecret = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

std::uint64_t read64(const std::uint8_t* p) noexcept {
  std::uint64_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return v;
}

std::uint32_t read32(const std::uint8_t* p) noexcept {
  std::uint32_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return v;
}

std::uint64_t fold128(std::uint64_t a, std::uint64_t b) noexcept {
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
}

std::uint64_t avalanche(std::uint64_t h) noexcept {
  h ^= h >> 37;
  h *= 0x165667919E3779F9u;
  return h ^ (h >> 32);
}

std::uint64_t avalanche64(std::uint64_t h) noexcept {  // XXH64's, used for the shortest inputs
  h ^= h >> 33;
  h *= kPrime64B;
  h ^= h >> 29;
  h *= kPrime64C;
  return h ^ (h >> 32);
}

std::uint64_t mix16(const std::uint8_t* in, const std::uint8_t* secret, std::uint64_t seed) noexcept {
  return fold128(read64(in) ^ (read64(secret) + seed), read64(in + 8) ^ (read64(secret + 8) - seed));
}

std::uint64_t hash_upto16(const std::uint8_t* in, std::size_t n, std::uint64_t seed) noexcept {
  const std::uint8_t* s = kSecret.data();
  if (n > 8) {
    const std::uint64_t low = read64(in) ^ ((read64(s + 24) ^ read64(s + 32)) + seed);
    const std::uint64_t high = read64(in + n - 8) ^ ((read64(s + 40) ^ read64(s + 48)) - seed);
    return avalanche(n + __builtin_bswap64(low) + high + fold128(low, high));
  }
  if (n >= 4) {
    seed ^= static_cast<std::uint64_t>(__builtin_bswap32(static_cast<std::uint32_t>(seed))) << 32;
    const std::uint64_t value = read32(in + n - 4) + (static_cast<std::uint64_t>(read32(in)) << 32);
    std::uint64_t h = value ^ ((read64(s + 8) ^ read64(s + 16)) - seed);
    h ^= std::rotl(h, 49) ^ std::rotl(h, 24);
    h *= 0x9FB21C651E98DF25u;
    h ^= (h >> 35) + n;
    h *= 0x9FB21C651E98DF25u;
    return h ^ (h >> 28);
  }
  if (n > 0) {
    const std::uint32_t combined = (static_cast<std::uint32_t>(in[0]) << 16) |
                                   (static_cast<std::uint32_t>(in[n >> 1]) << 24) | in[n - 1] |
                                   (static_cast<std::uint32_t>(n) << 8);
    return avalanche64(combined ^ ((read32(s) ^ read32(s + 4)) + seed));
  }
  return avalanche64(seed ^ read64(s + 56) ^ read64(s + 64));
}

std::uint64_t hash_upto128(const std::uint8_t* in, std::size_t n, std::uint64_t seed) noexcept {
  const std::uint8_t* s = kSecret.data();
  std::uint64_t acc = n * kPrime64A;
  // Pairs from the outside in: 16 bytes from the front and 16 from the back for each 32 bytes begun.
  for (std::size_t i = (n - 1) / 32 + 1; i-- > 0;) {
    acc += mix16(in + 16 * i, s + 32 * i, seed);
    acc += mix16(in + n - 16 * (i + 1), s + 32 * i + 16, seed);
  }
  return avalanche(acc);
}

std::uint64_t hash_upto240(const std::uint8_t* in, std::size_t n, std::uint64_t seed) noexcept {
  const std::uint8_t* s = kSecret.data();
  std::uint64_t acc = n * kPrime64A;
  for (std::size_t i = 0; i < 8; ++i) acc += mix16(in + 16 * i, s + 16 * i, seed);
  acc = avalanche(acc);
  for (std::size_t i = 8; i < n / 16; ++i) acc += mix16(in + 16 * i, s + 16 * (i - 8) + 3, seed);
  return avalanche(acc + mix16(in + n - 16, s + 136 - 17, seed));
}

std::uint64_t hash_short(const std::uint8_t* in, std::size_t n, std::uint64_t seed) noexcept {
  if (n <= 16) return hash_upto16(in, n, seed);
  return n <= 128 ? hash_upto128(in, n, seed) : hash_upto240(in, n, seed);
}

void accumulate_stripe(std::uint64_t* acc, const std::uint8_t* in, const std::uint8_t* secret) noexcept {
  for (std::size_t i = 0; i < 8; ++i) {
    const std::uint64_t data = read64(in + 8 * i);
    const std::uint64_t key = data ^ read64(secret + 8 * i);
    acc[i ^ 1] += data;
    acc[i] += (key & 0xFFFFFFFFu) * (key >> 32);
  }
}

std::array<std::uint8_t, kSecretBytes> seeded_secret(std::uint64_t seed) noexcept {
  std::array<std::uint8_t, kSecretBytes> out = kSecret;
  for (std::size_t i = 0; seed != 0 && i < kSecretBytes; i += 16) {
    const std::uint64_t low = read64(kSecret.data() + i) + seed;
    const std::uint64_t high = read64(kSecret.data() + i + 8) - seed;
    std::memcpy(out.data() + i, &low, sizeof low);
    std::memcpy(out.data() + i + 8, &high, sizeof high);
  }
  return out;
}

// last: the final 64 bytes of the input, which may overlap what was consumed.
std::uint64_t finish(std::array<std::uint64_t, 8> acc, const std::uint8_t* last, std::uint64_t total,
                     const std::uint8_t* secret) noexcept {
  accumulate_stripe(acc.data(), last, secret + kLastStripeAt);
  std::uint64_t result = total * kPrime64A;
  for (std::size_t i = 0; i < 4; ++i) {
    const std::uint8_t* key = secret + kMergeAt + 16 * i;
    result += fold128(acc[2 * i] ^ read64(key), acc[2 * i + 1] ^ read64(key + 8));
  }
  return avalanche(result);
}

ConsumeFn consume_of(Xxh3Isa isa) noexcept {
#if defined(__x86_64__)
  if (isa == Xxh3Isa::Avx512) return xxh3_detail::consume_avx512;
  if (isa == Xxh3Isa::Avx2) return xxh3_detail::consume_avx2;
#else
  (void)isa;
#endif
  return xxh3_detail::consume_scalar;
}

ConsumeFn best_consume() noexcept {
  static const ConsumeFn best = consume_of(xxh3_has(Xxh3Isa::Avx512) ? Xxh3Isa::Avx512
                                           : xxh3_has(Xxh3Isa::Avx2) ? Xxh3Isa::Avx2
                                                                     : Xxh3Isa::Scalar);
  return best;
}

std::uint64_t hash_long(const std::uint8_t* in, std::size_t n, std::uint64_t seed, ConsumeFn consume) noexcept {
  const auto secret = seeded_secret(seed);
  auto acc = kAccStart;
  consume(acc.data(), in, (n - 1) / kStripe, 0, secret.data());
  return finish(acc, in + n - kStripe, n, secret.data());
}

}  // namespace

void xxh3_detail::consume_scalar(std::uint64_t* acc, const std::uint8_t* in, std::size_t stripes, std::size_t first,
                                 const std::uint8_t* secret) {
  for (std::size_t at = first; stripes != 0; --stripes, in += kStripeBytes) {
    accumulate_stripe(acc, in, secret + 8 * at);
    if (++at != kStripesPerBlock) continue;
    at = 0;
    for (std::size_t i = 0; i < 8; ++i) {
      acc[i] = (acc[i] ^ (acc[i] >> 47) ^ read64(secret + kScrambleAt + 8 * i)) * kPrime32A;
    }
  }
}

bool xxh3_has(Xxh3Isa isa) noexcept {
  if (isa == Xxh3Isa::Avx512) return cpu_features().avx512;
  return isa == Xxh3Isa::Scalar || cpu_features().avx2;
}

std::uint64_t xxh3_64_isa(Xxh3Isa isa, const void* data, std::size_t bytes, std::uint64_t seed) noexcept {
  const auto* in = static_cast<const std::uint8_t*>(data);
  return bytes <= kShortBytesMax ? hash_short(in, bytes, seed) : hash_long(in, bytes, seed, consume_of(isa));
}

std::uint64_t xxh3_64(const void* data, std::size_t bytes, std::uint64_t seed) noexcept {
  const auto* in = static_cast<const std::uint8_t*>(data);
  return bytes <= kShortBytesMax ? hash_short(in, bytes, seed) : hash_long(in, bytes, seed, best_consume());
}

Xxh3Stream::Xxh3Stream(std::uint64_t seed) noexcept : acc_(kAccStart), secret_(seeded_secret(seed)), seed_(seed) {}

void Xxh3Stream::consume(const std::uint8_t* data, std::size_t stripes) noexcept {
  if (stripes == 0) return;
  best_consume()(acc_.data(), data, stripes, stripes_ % kStripesPerBlock, secret_.data());
  stripes_ += stripes;
  std::memcpy(last_.data(), data + (stripes - 1) * kStripe, kStripe);
}

void Xxh3Stream::update(const void* data, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  const auto* in = static_cast<const std::uint8_t*>(data);
  total_bytes_ += bytes;
  // Something is always held back, so that the last stripe is never consumed before it is known to be the last.
  if (held_bytes_ + bytes <= kHeldBytesMax) {
    std::memcpy(held_.data() + held_bytes_, in, bytes);
    held_bytes_ += bytes;
    return;
  }
  if (held_bytes_ != 0) {
    const std::size_t fill = kHeldBytesMax - held_bytes_;
    std::memcpy(held_.data() + held_bytes_, in, fill);
    consume(held_.data(), kHeldBytesMax / kStripe);
    in += fill;
    bytes -= fill;
  }
  const std::size_t stripes = (bytes - 1) / kStripe;
  consume(in, stripes);
  held_bytes_ = bytes - stripes * kStripe;
  std::memcpy(held_.data(), in + stripes * kStripe, held_bytes_);
}

std::uint64_t Xxh3Stream::digest() const noexcept {
  if (total_bytes_ <= kShortBytesMax) return hash_short(held_.data(), held_bytes_, seed_);
  auto acc = acc_;
  const std::size_t stripes = (held_bytes_ - 1) / kStripe;
  best_consume()(acc.data(), held_.data(), stripes, stripes_ % kStripesPerBlock, secret_.data());
  if (held_bytes_ >= kStripe) return finish(acc, held_.data() + held_bytes_ - kStripe, total_bytes_, secret_.data());
  std::array<std::uint8_t, kStripe> tail{};
  const std::size_t before = kStripe - held_bytes_;
  std::memcpy(tail.data(), last_.data() + held_bytes_, before);
  std::memcpy(tail.data() + before, held_.data(), held_bytes_);
  return finish(acc, tail.data(), total_bytes_, secret_.data());
}

}  // namespace kvcommons
