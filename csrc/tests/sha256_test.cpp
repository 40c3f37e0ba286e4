// SHA-256 against published values, by every implementation that this machine has.
#include "sha256.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "hex.h"

namespace kvcommons {
namespace {

using testing::hex;

struct Vector {
  std::size_t bytes;
  const char* digest;
};

// Of the bytes (7 i + bytes) mod 256: every way in which padding can fall.
constexpr Vector kVectors[] = {
    {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
    {1, "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a"},
    {55, "81afe5b788dc2ce138ff83d9b20164db75a94d75d2b2432eea4a0ef605088c72"},
    {56, "2aba54f0ac632420a2b502431408866e40e1d5e430df4cd822642c78ab2eb9c1"},
    {63, "733d3d4ee79ee67145bf73da13588f6f235d37414fc64b14a2f00f1762792f5e"},
    {64, "79322907b3e9d013d7dc2c2f256674dbf733045cde01df3539271c6f5605feb8"},
    {65, "d85c007c6eb440f085afa2b84f6f2bce4658b240e9f62cb1364bf0485a57e720"},
    {119, "6c87eedf096b345de205b702e5223b73b447a3207791ded3ea007ba15ed6736e"},
    {120, "42500cf6a1e3936d6b9e0bcfe296d654b63255e525487d3634d0b15fde591c4d"},
    {128, "489d55fea9a73af36b6dd0be7b4117d8e5683386d39544e8a44c99a87f368707"},
    {1000, "6b0df76627243d095b0c4400cb658b7e804dd03461cc03aee8fc8fe0bcada168"},
};

std::vector<std::uint8_t> pattern(std::size_t bytes) {
  std::vector<std::uint8_t> out(bytes);
  for (std::size_t i = 0; i < bytes; ++i) out[i] = static_cast<std::uint8_t>(7 * i + bytes);
  return out;
}

std::vector<Sha256::Compress> implementations() {
  std::vector<Sha256::Compress> out;
  for (const Sha256Isa isa : {Sha256Isa::Portable, Sha256Isa::ShaNi, Sha256Isa::Armv8}) {
    if (const auto compress = sha256_compress(isa)) out.push_back(compress);
  }
  return out;
}

TEST(every_implementation_gives_the_published_digests) {
  for (const auto compress : implementations()) {
    for (const Vector& vector : kVectors) {
      const auto data = pattern(vector.bytes);
      Sha256 hash(compress);
      hash.update(data.data(), data.size());
      CHECK_EQ(hex(hash.finish()), std::string(vector.digest));
    }
    const std::string million(1'000'000, 'a');  // FIPS 180-2, appendix B.3
    Sha256 hash(compress);
    hash.update(million.data(), million.size());
    CHECK_EQ(hex(hash.finish()), std::string("cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"));
  }
}

TEST(pieces_of_any_size_give_the_digest_of_the_whole) {
  std::mt19937 random(11);  // fixed: a failure repeats
  const auto data = pattern(5'000);
  for (int round = 0; round < 500; ++round) {
    const std::size_t bytes = random() % data.size();
    for (const auto compress : implementations()) {
      Sha256 hash(compress);
      for (std::size_t done = 0; done < bytes;) {
        const std::size_t piece = std::min<std::size_t>(bytes - done, random() % 200);
        hash.update(data.data() + done, piece);
        done += piece;
      }
      CHECK(hash.finish() == sha256(data.data(), bytes));
    }
  }
}

}  // namespace
}  // namespace kvcommons

TEST_MAIN()
