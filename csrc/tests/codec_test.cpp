// Frames: what is encoded decodes to the same, and nothing that was forged gets through or reads past its bytes.
#include "core/codec.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "check.h"
#include "fuzz_codec.h"

namespace {

using namespace kvcommons;
using namespace kvcommons::wire;
using kvcommons::testing::read_stream;

Key key_of(std::uint8_t seed) {
  Key key;
  key.bytes.fill(seed);
  return key;
}

HelloRequest worker_hello() {
  HelloRequest hello;
  hello.role = Role::Worker;
  hello.version_min = kVersionMin;
  hello.version_max = kVersionMax;
  hello.drained_session = 77;
  hello.spec.fingerprint = key_of(9);
  hello.spec.chunk_tokens = 256;
  hello.spec.shards = {{{0, 4, 0, 2}, 8192}, {{0, 4, 2, 4}, 8192}};
  hello.spec.own_shard = 1;
  return hello;
}

std::span<const std::byte> payload_of(const ByteBuffer& frame) { return frame.bytes().subspan(sizeof(Header)); }

// A HELLO's payload with `change` applied to its fixed part.
template <typename Change>
Status decoded_after(Change change) {
  ByteBuffer buffer;
  encode_hello(&buffer, 1, worker_hello());
  Hello fixed{};
  std::memcpy(&fixed, buffer.at(sizeof(Header)), sizeof fixed);
  change(fixed);
  std::memcpy(buffer.at(sizeof(Header)), &fixed, sizeof fixed);
  HelloRequest out;
  return decode_hello(payload_of(buffer), &out);
}

ByteBuffer lookup_frame(std::size_t count) {
  const std::vector<Key> keys(count, key_of(3));
  ByteBuffer buffer;
  encode_lookup(&buffer, 5, {42, true, keys});
  return buffer;
}

}  // namespace

TEST(a_hello_decodes_to_what_was_encoded) {
  ByteBuffer buffer;
  const HelloRequest hello = worker_hello();
  encode_hello(&buffer, 11, hello);
  Frame frame;
  CHECK(parse_request(buffer.bytes(), &frame) == Parse::Complete);
  CHECK_EQ(frame.header.request_id, 11u);
  HelloRequest out;
  CHECK(decode_hello(frame.payload, &out) == Status::Ok);
  CHECK(out.role == hello.role);
  CHECK(out.spec.fingerprint == hello.spec.fingerprint);
  CHECK(out.spec.shards == hello.spec.shards);
  CHECK_EQ(*out.spec.own_shard, 1u);
  CHECK_EQ(out.drained_session, 77u);
  CHECK_EQ(out.spec.readers_per_shard, 1u);
}

TEST(a_hello_that_contradicts_itself_is_malformed) {
  CHECK(decoded_after([](Hello&) {}) == Status::Ok);
  CHECK(decoded_after([](Hello& h) { h.magic = 0x47455420; }) == Status::BadFrame);
  CHECK(decoded_after([](Hello& h) { h.role = 3; }) == Status::BadFrame);
  CHECK(decoded_after([](Hello& h) { h.shards = 3; }) == Status::BadFrame);
  CHECK(decoded_after([](Hello& h) { h.shards = 0xffff; }) == Status::BadFrame);
  CHECK(decoded_after([](Hello& h) { h.own_shard = 2; }) == Status::BadFrame);
  CHECK(decoded_after([](Hello& h) { h.own_shard = 0xffffffff; }) == Status::BadFrame);  // a worker is some shard
  CHECK(decoded_after([](Hello& h) { h.chunk_tokens = 0; }) == Status::BadFrame);
  CHECK(decoded_after([](Hello& h) { h.role = 2; }) == Status::BadFrame);  // a tool has no shards
  CHECK(decoded_after([](Hello& h) { h.readers_per_shard = 1u << 20; }) == Status::BadFrame);
}

TEST(a_hello_with_overlapping_or_empty_shards_is_malformed) {
  const std::vector<std::vector<ShardSpec>> wrong = {
      {{{0, 4, 0, 2}, 4096}, {{3, 5, 1, 3}, 4096}},  // overlap
      {{{0, 0, 0, 2}, 4096}},                        // no layer
      {{{0, 4, 2, 1}, 4096}},                        // backwards
      {{{0, 4, 0, 2}, 0}},                           // nothing in a slot
      {{{0, 4, 0, 2}, ~0ull}},                       // more than any slab holds
  };
  for (const auto& shards : wrong) {
    HelloRequest hello = worker_hello();
    hello.spec.shards = shards;
    hello.spec.own_shard = 0;
    ByteBuffer buffer;
    encode_hello(&buffer, 1, hello);
    HelloRequest out;
    CHECK(decode_hello(payload_of(buffer), &out) == Status::BadFrame);
  }
}

TEST(versions_are_the_newest_that_both_serve) {
  CHECK_EQ(*negotiate(1, 1, 1, 1), 1);
  CHECK_EQ(*negotiate(2, 3, 1, 2), 2);  // the node serves N and N-1: an engine one release behind goes on
  CHECK_EQ(*negotiate(1, 2, 2, 3), 2);  // and one ahead
  CHECK(!negotiate(2, 3, 1, 1));
  CHECK(!negotiate(1, 1, 2, 3));
  CHECK(!negotiate(1, 1, 3, 2));  // forged
  CHECK(decoded_after([](Hello& h) { h.version_min = h.version_max = 9; }) == Status::BadVersion);
}

TEST(a_frame_is_read_only_when_it_is_whole) {
  const ByteBuffer buffer = lookup_frame(8);
  Frame frame;
  for (std::size_t cut = 0; cut < buffer.size(); ++cut) {
    CHECK(parse_request(buffer.bytes().first(cut), &frame) == Parse::Incomplete);
  }
  CHECK(parse_request(buffer.bytes(), &frame) == Parse::Complete);
  LookupRequest lookup;
  CHECK(decode_lookup(frame.payload, &lookup));
  CHECK_EQ(lookup.keys.size(), 8u);
  CHECK_EQ(lookup.tenant, 42u);
  CHECK(lookup.lease);
}

TEST(forged_headers_are_refused_before_their_payload_comes) {
  Frame frame;
  const auto parsed = [&](Header header) { return parse_request(std::as_bytes(std::span(&header, 1)), &frame); };
  CHECK(parsed({kFrameBytesMax + 1, 2, 0, 1}) == Parse::Malformed);
  CHECK(parsed({0xffffffff, 2, 0, 1}) == Parse::Malformed);
  CHECK(parsed({0, 0, 0, 1}) == Parse::Malformed);
  CHECK(parsed({0, 13, 0, 1}) == Parse::Malformed);
  CHECK(parsed({16, 2, 5, 1}) == Parse::Malformed);              // a request has no status
  CHECK(parsed({16, 2 | kReplyBit, 0, 1}) == Parse::Malformed);  // and is no reply
  CHECK(parsed({kFrameBytesMax, 2, 0, 1}) == Parse::Incomplete);
}

TEST(a_count_that_its_bytes_do_not_bear_out_is_refused) {
  ByteBuffer buffer = lookup_frame(8);
  for (const std::uint32_t count : {0u, 7u, 9u, 0x08000000u, 0xffffffffu}) {
    std::memcpy(buffer.at(sizeof(Header) + offsetof(Lookup, count)), &count, sizeof count);
    LookupRequest lookup;
    CHECK(!decode_lookup(payload_of(buffer), &lookup));
  }
}

TEST(commits_carry_each_slot_with_its_own_text_keys) {
  const std::vector<std::uint64_t> first{1, 2, 3}, second{}, third{4};
  const std::vector<CommitItem> items{{{4096, 7}, 99, first}, {{8192, 8}, 0, second}, {{0, 9}, 5, third}};
  ByteBuffer buffer;
  encode_commit(&buffer, 1, items);
  std::vector<CommitItem> out;
  std::vector<std::uint64_t> storage;
  CHECK(decode_commit(payload_of(buffer), &out, &storage));
  CHECK_EQ(out.size(), items.size());
  for (std::size_t i = 0; i < items.size(); ++i) {
    CHECK(out[i].slot == items[i].slot);
    CHECK_EQ(out[i].checksum, items[i].checksum);
    CHECK(std::equal(out[i].text_keys.begin(), out[i].text_keys.end(), items[i].text_keys.begin(),
                     items[i].text_keys.end()));
  }
  buffer.append_pod(std::uint64_t{5});  // a text key that no slot names
  CHECK(!decode_commit(payload_of(buffer), &out, &storage));
}

TEST(a_reservation_carries_its_hints) {
  const std::vector<Key> keys{key_of(1), key_of(2)};
  const eviction::Hints hints{true, false, -2, 600};
  ByteBuffer buffer;
  encode_reserve(&buffer, 5, {42, key_of(7), keys, hints.packed()});
  ReserveRequest out;
  CHECK(decode_reserve(payload_of(buffer), &out));
  CHECK_EQ(out.tenant, 42u);
  CHECK(out.parent == key_of(7));
  CHECK_EQ(out.keys.size(), 2u);
  CHECK(eviction::Hints::unpacked(out.hints) == hints);
}

TEST(feedback_is_one_json_object_of_text) {
  std::string_view out;
  const auto ok = [&](std::string_view json) { return decode_feedback(std::as_bytes(std::span(json)), &out); };
  CHECK(ok(R"({"request_id":"r"})"));
  CHECK(!ok(""));
  CHECK(!ok("[]"));
  CHECK(!ok("{\xff}"));
  CHECK(!ok("{" + std::string(kFeedbackBytesMax, ' ') + "}"));
}

TEST(only_proper_utf8_is_text) {
  for (const char* good : {"", "a", "\u00e9", "\u20ac", "\U0001F600"}) CHECK(valid_utf8(good));
  for (const char* bad : {"\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\x80", "\xe2\x82", "\xf8"}) {
    CHECK(!valid_utf8(bad));
  }
}

TEST(an_error_message_is_cut_between_characters) {
  ByteBuffer buffer;
  std::string message;
  while (message.size() < 2 * kMessageBytesMax) message += "\u20ac";
  encode_status(&buffer, Header{0, 2, 0, 1}, Status::Gone, message);
  CHECK_LE(payload_of(buffer).size(), kMessageBytesMax);
  CHECK(valid_utf8({reinterpret_cast<const char*>(payload_of(buffer).data()), payload_of(buffer).size()}));
}

namespace {

std::vector<std::vector<std::byte>> corpus() {
  std::vector<std::vector<std::byte>> all;
  for (const auto& entry : std::filesystem::directory_iterator("tests/corpus")) {
    std::ifstream file(entry.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    const auto bytes = std::as_bytes(std::span(text));
    all.emplace_back(bytes.begin(), bytes.end());
  }
  return all;
}

// Flips, cuts, grows or splices: what a fuzzer does, from a seed.
void mutate(std::vector<std::byte>* bytes, const std::vector<std::vector<std::byte>>& seeds, std::mt19937_64* random) {
  const auto below = [&](std::size_t limit) { return limit == 0 ? 0 : (*random)() % limit; };
  switch (below(5)) {
    case 0:
      if (!bytes->empty()) (*bytes)[below(bytes->size())] ^= static_cast<std::byte>(1u << below(8));
      break;
    case 1:
      bytes->resize(below(bytes->size() + 1));
      break;
    case 2: {
      const std::uint32_t edges[] = {0, 1, 0x7fffffff, 0x80000000, 0xffffffff, kFrameBytesMax, kKeysPerFrameMax + 1};
      const std::uint32_t value = edges[below(std::size(edges))];
      if (bytes->size() >= 4) std::memcpy(bytes->data() + below(bytes->size() - 3), &value, sizeof value);
      break;
    }
    case 3:
      bytes->insert(bytes->end(), below(64), static_cast<std::byte>(below(256)));
      break;
    default: {
      const auto& other = seeds[below(seeds.size())];
      const auto from = static_cast<std::ptrdiff_t>(below(other.size() + 1));
      bytes->insert(bytes->end(), other.begin() + from, other.end());
      if (bytes->size() > 1u << 16) bytes->resize(1u << 16);
    }
  }
}

}  // namespace

// KVCOMMONS_FUZZ_ROUNDS and KVCOMMONS_FUZZ_SEED lengthen or repeat the run.
TEST(no_bytes_at_all_make_a_decoder_read_past_them) {
  const auto number = [](const char* name, std::uint64_t otherwise) {
    const char* text = std::getenv(name);
    return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
  };
  const std::uint64_t seed = number("KVCOMMONS_FUZZ_SEED", 20261123);
  const std::uint64_t rounds = number("KVCOMMONS_FUZZ_ROUNDS", 200'000);
  std::fprintf(stderr, "seed %llu, %llu rounds\n", static_cast<unsigned long long>(seed),
               static_cast<unsigned long long>(rounds));
  const auto seeds = corpus();
  CHECK_GE(seeds.size(), 10u);
  for (const auto& bytes : seeds) read_stream(bytes);
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes;
  for (std::uint64_t i = 0; i < rounds; ++i) {
    if (i % 8 == 0) bytes = seeds[random() % seeds.size()];
    mutate(&bytes, seeds, &random);
    // A copy of the exact size: the sanitizer sees one byte too far.
    const std::vector<std::byte> exact(bytes);
    read_stream(exact);
  }
}

TEST_MAIN()
