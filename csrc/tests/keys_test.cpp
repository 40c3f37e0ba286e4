// Token keys and segment keys against values computed by another implementation of SHA-256.
#include "keys.h"

#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "hex.h"

namespace kvcommons {
namespace {

using testing::hex;

constexpr std::uint32_t kChunkTokens = 16;

Key root() {
  Key key;
  std::iota(key.bytes.begin(), key.bytes.end(), std::uint8_t{0});
  return key;
}

// Forty ids: two whole chunks and half of one, which gets no key.
std::vector<std::uint32_t> tokens() {
  std::vector<std::uint32_t> out(40);
  for (std::uint32_t i = 0; i < out.size(); ++i) out[i] = i * 2654435761u;
  return out;
}

TEST(a_chain_has_the_known_keys) {
  std::vector<Key> keys(2);
  chain_keys(root(), tokens(), kChunkTokens, {}, keys);
  CHECK_EQ(hex(keys[0]), std::string("667bbeabed6ae3423baf72bf2bb5a419a0d9a1d83ba7ecc61770171abe990fbf"));
  CHECK_EQ(hex(keys[1]), std::string("f5e7e053fddd78c8d5950a167a1076d3ee374f1542c840b857c9a48ead0c2768"));
}

TEST(an_identity_changes_its_own_chunk_and_none_before) {
  const std::vector<std::uint8_t> lora = {'L', 3, 0, 'a', 'b', 'c'};
  const ChunkIdentity identities[] = {{.chunk = 1, .bytes = lora}, {.chunk = 2, .bytes = lora}};
  std::vector<Key> keys(2);
  chain_keys(root(), tokens(), kChunkTokens, identities, keys);
  CHECK_EQ(hex(keys[0]), std::string("667bbeabed6ae3423baf72bf2bb5a419a0d9a1d83ba7ecc61770171abe990fbf"));
  CHECK_EQ(hex(keys[1]), std::string("5281c0bb6d40e689235773be37b21a2bb9f810ff5a0f93e1c9baeb3c5168ec1e"));
}

TEST(a_chain_continued_from_a_key_equals_the_chain_in_one_call) {
  const auto ids = tokens();
  std::vector<Key> whole(2), second(1);
  chain_keys(root(), ids, kChunkTokens, {}, whole);
  chain_keys(whole[0], std::span(ids).subspan(kChunkTokens), kChunkTokens, {}, second);
  CHECK(second[0] == whole[1]);
}

TEST(a_segment_key_ignores_where_the_text_stands_and_is_no_chain_key) {
  const auto ids = tokens();
  std::vector<Key> segments(2), chain(2), alone(1);
  segment_keys(root(), ids, kChunkTokens, segments);
  segment_keys(root(), std::span(ids).subspan(kChunkTokens), kChunkTokens, alone);
  chain_keys(root(), ids, kChunkTokens, {}, chain);
  CHECK_EQ(hex(segments[0]), std::string("b7c9305e2a1fc10495087c88959b9299aab5a4ee8f70544376a5773785600a49"));
  CHECK_EQ(hex(segments[1]), std::string("923d4b98f671fb0543ff55ed42279feab7b1b8a7add03a63fea21b168f5c5e1b"));
  CHECK(alone[0] == segments[1]);
  CHECK(segments[0] != chain[0]);
}

}  // namespace
}  // namespace kvcommons

TEST_MAIN()
