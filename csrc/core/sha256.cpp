#include "sha256.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "cpu.h"
#include "sha256_impl.h"

namespace kvcommons {
namespace {

constexpr Sha256::State kStart = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
constexpr std::size_t kLengthBytes = 8;  // the message's length in bits closes the last block

std::uint32_t read_big_endian(const std::uint8_t* p) noexcept {
  std::uint32_t v = 0;
  std::memcpy(&v, p, sizeof v);
  return __builtin_bswap32(v);
}

Sha256::Compress best_compress() noexcept {
  static const Sha256::Compress best = [] {
    for (const Sha256Isa isa : {Sha256Isa::ShaNi, Sha256Isa::Armv8}) {
      if (const auto compress = sha256_compress(isa)) return compress;
    }
    return sha256_compress(Sha256Isa::Portable);
  }();
  return best;
}

}  // namespace

void sha256_detail::compress_portable(std::uint32_t* state, const std::uint8_t* data, std::size_t blocks) {
  for (; blocks != 0; --blocks, data += Sha256::kBlockBytes) {
    std::array<std::uint32_t, 64> w{};
    for (std::size_t i = 0; i < 16; ++i) w[i] = read_big_endian(data + 4 * i);
    for (std::size_t i = 16; i < 64; ++i) {
      const std::uint32_t s0 = std::rotr(w[i - 15], 7) ^ std::rotr(w[i - 15], 18) ^ (w[i - 15] >> 3);
      const std::uint32_t s1 = std::rotr(w[i - 2], 17) ^ std::rotr(w[i - 2], 19) ^ (w[i - 2] >> 10);
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    Sha256::State v{};
    std::copy_n(state, v.size(), v.begin());
    auto& [a, b, c, d, e, f, g, h] = v;
    for (std::size_t i = 0; i < 64; ++i) {
      const std::uint32_t s1 = std::rotr(e, 6) ^ std::rotr(e, 11) ^ std::rotr(e, 25);
      const std::uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + kRound[i] + w[i];
      const std::uint32_t s0 = std::rotr(a, 2) ^ std::rotr(a, 13) ^ std::rotr(a, 22);
      const std::uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
      h = g, g = f, f = e, e = d + t1, d = c, c = b, b = a, a = t1 + t2;
    }
    for (std::size_t i = 0; i < v.size(); ++i) state[i] += v[i];
  }
}

Sha256::Compress sha256_compress(Sha256Isa isa) noexcept {
  if (isa == Sha256Isa::Portable) return sha256_detail::compress_portable;
#if defined(__x86_64__)
  if (isa == Sha256Isa::ShaNi && cpu_features().sha) return sha256_detail::compress_shani;
#elif defined(__aarch64__)
  if (isa == Sha256Isa::Armv8 && cpu_features().armv8_sha2) return sha256_detail::compress_armv8;
#endif
  return nullptr;
}

Sha256::Sha256() noexcept : Sha256(best_compress()) {}
Sha256::Sha256(Compress compress) noexcept : state_(kStart), compress_(compress) {}

void Sha256::update(const void* data, std::size_t bytes) noexcept {
  if (bytes == 0) return;
  const auto* in = static_cast<const std::uint8_t*>(data);
  const std::size_t held = total_bytes_ % kBlockBytes;
  total_bytes_ += bytes;
  if (held != 0) {
    const std::size_t take = std::min(bytes, kBlockBytes - held);
    std::memcpy(held_.data() + held, in, take);
    if (held + take < kBlockBytes) return;
    compress_(state_.data(), held_.data(), 1);
    in += take;
    bytes -= take;
  }
  const std::size_t blocks = bytes / kBlockBytes;
  if (blocks != 0) compress_(state_.data(), in, blocks);
  if (bytes % kBlockBytes != 0) std::memcpy(held_.data(), in + blocks * kBlockBytes, bytes % kBlockBytes);
}

Key Sha256::finish() noexcept {
  const std::size_t held = total_bytes_ % kBlockBytes;
  std::array<std::uint8_t, 2 * kBlockBytes> tail{};
  std::memcpy(tail.data(), held_.data(), held);
  tail[held] = 0x80;
  const std::size_t blocks = held + 1 + kLengthBytes <= kBlockBytes ? 1 : 2;
  const std::uint64_t bits = __builtin_bswap64(total_bytes_ * 8);
  std::memcpy(tail.data() + blocks * kBlockBytes - kLengthBytes, &bits, sizeof bits);
  compress_(state_.data(), tail.data(), blocks);
  Key key;
  for (std::size_t i = 0; i < state_.size(); ++i) {
    const std::uint32_t word = __builtin_bswap32(state_[i]);
    std::memcpy(key.bytes.data() + 4 * i, &word, sizeof word);
  }
  return key;
}

Key sha256(const void* data, std::size_t bytes) noexcept {
  Sha256 hash;
  hash.update(data, bytes);
  return hash.finish();
}

}  // namespace kvcommons
