// XXH3-64 against values of the reference implementation, in every instruction set that this machine has.
#include "xxh3.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "check.h"

namespace kvcommons {
namespace {

constexpr std::array<std::uint64_t, 4> kSeeds = {0, 1, 0x123456789abcdef0u, 0xffffffffffffffffu};

struct Vector {
  std::size_t bytes;
  std::array<std::uint64_t, 4> hashes;  // one a seed
};

// Made by the reference library over the bytes of pattern().
constexpr Vector kVectors[] = {
    {0, {0x2d06800538d394c2u, 0x4dc5b0cc826f6703u, 0x8aa56c2c3d8317f6u, 0x4c093276ae47a555u}},
    {1, {0x74d3766ca02423f3u, 0x33556ab70c1b16fbu, 0x3fe57f589b380f70u, 0x46b6502628934601u}},
    {2, {0x52a4e47d9348fa36u, 0xc59777a38b9152dbu, 0xcb1803fa9b03a125u, 0xd63fddcb4031cc20u}},
    {3, {0x9e77e470a7018920u, 0x9b6ed4960bf6290du, 0x6c9a718d1e94f73du, 0xeffce0a3c102db39u}},
    {4, {0x093645744145d7e3u, 0xd0b7b7e629198940u, 0xdc086d7e4dbff407u, 0x0d9ce83cf933911bu}},
    {5, {0x8030fd917e4cbf5au, 0xd23363bdf378a328u, 0xb8acef660c2732f1u, 0x2cf2d85a8a72b159u}},
    {8, {0x854c59bc83f9a7b7u, 0x308bef17722b02b9u, 0xfc2630560b9d87c5u, 0x47c20e1922e5963au}},
    {9, {0xfb2102f80bd05046u, 0x829a424532cc760cu, 0x8819635afd8fb4e1u, 0x5b7a500a03880cc6u}},
    {12, {0x144939e7611fe0a5u, 0xe21985dd8a227821u, 0x302b001e2eda18d3u, 0x7633fc3015d050e3u}},
    {16, {0x294d5381d3d9f990u, 0x9dc6ab8ce238fd8fu, 0x4d00d71c235056b8u, 0x2664cf980c089ebbu}},
    {17, {0x79770199644b19d3u, 0xd571ab1a4f9c0cb0u, 0xbfa7d4c02b6761f3u, 0x45bab9cd1bca3086u}},
    {32, {0x01adb610690b30e5u, 0xa95a0eda45e430d7u, 0x1f6aaa78ed74ef93u, 0x705ebf1e294de770u}},
    {33, {0x47485c2c29c37a79u, 0x83426623c065aeddu, 0xaee6c7e44e78dcd8u, 0xefd3a4eaf860d651u}},
    {64, {0xe64d3d0ef69415a8u, 0x38cbde6502c4f26du, 0x3dda8dacfe9dcc85u, 0xd7d2ebe745006ff9u}},
    {65, {0xfa0c3fffe196c471u, 0xdcbd159bf204af5fu, 0x5b145ae93b7606a7u, 0x6c066c13e1c3dd7bu}},
    {96, {0xbd031f5852866924u, 0x0196819535175a60u, 0xaa4bcfd916847970u, 0x9b8a69d24157146cu}},
    {97, {0x26be75dcd91851cbu, 0x5d06aa3fe85671afu, 0x520a84686b449adau, 0x25a4591a48f8c00fu}},
    {127, {0xcfb7fd194d2ac875u, 0x8fc1e6c7bf1cd52bu, 0x7706a512494bb7c2u, 0xd75723024adc18a2u}},
    {128, {0x7a255dc3181c5edeu, 0x9fdcc0cf82265214u, 0x88a8865ba86a846au, 0x32c0f84f5c23a255u}},
    {129, {0x074f486ff94b8e7du, 0xbbda096af93d7e79u, 0x57e56a7e62db71bfu, 0x3c1a28ad77d7cb88u}},
    {143, {0x786e56e3cc71b8e7u, 0xd720ca55b81ea428u, 0x1efd3bdbdc469682u, 0x5983b74aed73b17fu}},
    {144, {0xa161d6f8544ca8eeu, 0xbbde4f9828f7c343u, 0x440276f06246f0cdu, 0x3c9820b1e36cbf99u}},
    {200, {0x824457698592d2e0u, 0xe17e4eb8bf5f126au, 0x6fbfd74efd5b9aaeu, 0xb72dd44df1318521u}},
    {239, {0x040dcfa50e41eafeu, 0x1397dfcb6540ae2du, 0xdbc6b1a0fbe818c0u, 0x4cf615709094b68fu}},
    {240, {0x414bbb0678ea02e0u, 0xa4ba2cb9235e2f04u, 0x616109e3327f8bcbu, 0xf6bab7bb977ba7c1u}},
    {241, {0xef60a4fc8b25f1ccu, 0x95be12b1f9eaba22u, 0x53e640d98ea55635u, 0x2c66687df516145eu}},
    {255, {0x65c755610182b9c9u, 0x85b3767678990d41u, 0xa778dd53d447b2d7u, 0x7c1bf4751ab49d32u}},
    {256, {0xddf43fdda4785f38u, 0xd5e6a53fb9d10138u, 0x85bb73341adf936cu, 0x5c9ce5c5bf405c70u}},
    {257, {0x200c6e72861d52c6u, 0x980577dc915f1006u, 0x8c31a064141098c5u, 0x3105d63d6ba23ceeu}},
    {320, {0x3ceb07e77c1dbd3au, 0x3ff8064a6d0bd3a5u, 0xbdcfb939172d407au, 0xe0ac3d136ce5024bu}},
    {511, {0x7cdb8118cd14fdd9u, 0x4025059704ed2351u, 0x9758813cfecdf73cu, 0x452fe3cc1c108a52u}},
    {512, {0xb68df51d0f0b428bu, 0xfb2f3c93119ec424u, 0x1aff497637cbf162u, 0x70d4fae38f65ae3bu}},
    {1023, {0x78d83b4028b26105u, 0xbd8c87ba1071bd52u, 0x75de7013b29ddf6du, 0x642548abfd80e6b9u}},
    {1024, {0x53de00d98ba8bad5u, 0x620968ed14a5ab10u, 0x10ec4e680616a0c6u, 0x6289d8628842e550u}},
    {1025, {0xde126c62f3f1d23eu, 0x671a6f6426033588u, 0xf891945b184b0188u, 0x81b8dbd2b7c230dfu}},
    {1088, {0x3e236c374f22b41bu, 0x81271e8bf6b0d133u, 0xa4578f377403f187u, 0x634938c05bb101d7u}},
    {2048, {0x317d259e9c5489f8u, 0x76e3ff61c6876842u, 0x9b8eb04ded46b3ebu, 0x99f59a50b6094312u}},
    {2049, {0x7d64a65c9a497324u, 0x44a97b4571f61e70u, 0x8120d2ada789021du, 0x286ea3a2426d357cu}},
    {4096, {0xacf8c0a7adc95ae3u, 0x3ea21dec56960fe6u, 0x35d93986bc94bc10u, 0x3eed4862053afa7eu}},
    {10000, {0xb6910dfd4077246bu, 0xcaf9b2ac03af3ca9u, 0xbd5158cac73bf63au, 0x0ce675c4de92faa3u}},
    {65537, {0x1c0a4936f84435ceu, 0x7ee5220eeaf1ffc0u, 0x60c56f1c9c526600u, 0x1d194dec2dea2abeu}},
};

std::vector<std::uint8_t> pattern(std::size_t bytes) {
  std::vector<std::uint8_t> out(bytes);
  std::uint32_t x = 0x9E3779B1u;
  for (auto& byte : out) {
    x = x * 1664525u + 1013904223u;
    byte = static_cast<std::uint8_t>(x >> 24);
  }
  return out;
}

constexpr Xxh3Isa kAllIsas[] = {Xxh3Isa::Scalar, Xxh3Isa::Avx2, Xxh3Isa::Avx512};

TEST(every_length_class_gives_the_reference_value) {
  for (const Vector& vector : kVectors) {
    const auto data = pattern(vector.bytes);
    for (std::size_t s = 0; s < kSeeds.size(); ++s) {
      CHECK_EQ(xxh3_64(data.data(), data.size(), kSeeds[s]), vector.hashes[s]);
      for (const Xxh3Isa isa : kAllIsas) {
        if (xxh3_has(isa)) CHECK_EQ(xxh3_64_isa(isa, data.data(), data.size(), kSeeds[s]), vector.hashes[s]);
      }
    }
  }
}

TEST(all_instruction_sets_agree_at_every_alignment) {
  const auto data = pattern(9000);
  for (std::size_t offset = 0; offset < 64; offset += 7) {
    for (std::size_t bytes = 241; bytes + offset < data.size(); bytes += 173) {
      const auto want = xxh3_64_isa(Xxh3Isa::Scalar, data.data() + offset, bytes, bytes);
      for (const Xxh3Isa isa : kAllIsas) {
        if (xxh3_has(isa)) CHECK_EQ(xxh3_64_isa(isa, data.data() + offset, bytes, bytes), want);
      }
    }
  }
}

TEST(a_stream_cut_anywhere_gives_the_value_of_the_whole) {
  constexpr std::uint32_t kRandomSeed = 7;  // fixed: a failure repeats
  std::mt19937 random(kRandomSeed);
  const auto data = pattern(20'000);
  for (int round = 0; round < 2'000; ++round) {
    const std::size_t bytes = random() % (round % 2 == 0 ? 600u : 20'000u);
    const std::uint64_t seed = random();
    Xxh3Stream stream(seed);
    for (std::size_t done = 0; done < bytes;) {
      const std::size_t piece = std::min<std::size_t>(bytes - done, random() % (round % 3 == 0 ? 70u : 3'000u));
      stream.update(data.data() + done, piece);
      done += piece;
    }
    CHECK_EQ(stream.digest(), xxh3_64(data.data(), bytes, seed));
    CHECK_EQ(stream.digest(), xxh3_64(data.data(), bytes, seed));  // a digest does not end the stream
  }
}

TEST(no_bytes_may_come_from_a_null_pointer) { CHECK_EQ(xxh3_64(nullptr, 0), kVectors[0].hashes[0]); }

}  // namespace
}  // namespace kvcommons

TEST_MAIN()
