// What must hold for any bytes at all: shared by the libFuzzer target and the seeded run within the tests.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <span>
#include <string>
#include <vector>

#include "core/codec.h"

namespace kvcommons::testing {

inline void must(bool holds) {
  if (!holds) std::abort();  // both a fuzzer and a test see this
}

inline bool inside(std::span<const std::byte> part, std::span<const std::byte> whole) {
  return part.empty() || (part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size());
}

// Every decoder over one payload, whatever its type says: a forged type must not reach past the payload either.
inline void decode_all(std::span<const std::byte> payload) {
  namespace w = kvcommons::wire;
  w::HelloRequest hello;
  if (w::decode_hello(payload, &hello) == Status::Ok) {
    must(hello.spec.shards.size() <= kShardsPerChunkMax);
    must(!hello.spec.own_shard || *hello.spec.own_shard < hello.spec.shards.size());
    ByteBuffer again;
    w::encode_hello(&again, 1, hello);
    must(again.size() == sizeof(w::Header) + payload.size());
  }
  w::LookupRequest lookup;
  if (w::decode_lookup(payload, &lookup)) must(inside(std::as_bytes(lookup.keys), payload));
  w::ReserveRequest reserve;
  if (w::decode_reserve(payload, &reserve)) must(inside(std::as_bytes(reserve.keys), payload));
  std::vector<CommitItem> items;
  std::vector<std::uint64_t> text_keys;
  if (w::decode_commit(payload, &items, &text_keys)) {
    std::size_t named = 0;
    for (const CommitItem& item : items) {
      must(inside(std::as_bytes(item.text_keys), std::as_bytes(std::span(text_keys))));
      named += item.text_keys.size();
    }
    must(named == text_keys.size() && items.size() <= kChunksPerReserveMax);
  }
  std::vector<SlotRef> slots;
  if (w::decode_slots(payload, &slots)) must(slots.size() * sizeof(w::SlotWire) < payload.size());
  std::span<const Key> keys;
  if (w::decode_keys(payload, &keys)) must(inside(std::as_bytes(keys), payload));
  std::uint64_t number = 0;
  if (w::decode_u64(payload, &number)) must(payload.size() == sizeof number);
  std::string_view json;
  if (w::decode_feedback(payload, &json)) must(json.size() == payload.size() && w::valid_utf8(json));
  KvForm form;
  if (w::decode_describe(payload, &form)) must(payload.size() == sizeof(w::Describe) && form.block_tokens > 0);
  w::HelloAnswer answer;
  if (w::decode_hello_reply(payload, &answer)) must(answer.node_id.size() <= w::kNodeIdBytesMax);
  w::LookupReply hit{};
  (void)w::decode_lookup_reply(payload, &hit);
  std::vector<Reservation> reservations;
  (void)w::decode_reserve_reply(payload, &reservations);
  std::uint32_t accepted = 0;
  (void)w::decode_commit_reply(payload, &accepted);
}

// A stream of frames, as a server and as a client read it.
inline void read_stream(std::span<const std::byte> bytes) {
  namespace w = kvcommons::wire;
  for (const auto parse : {&w::parse_request, &w::parse_reply}) {
    std::span<const std::byte> rest = bytes;
    w::Frame frame;
    while (parse(rest, &frame) == w::Parse::Complete) {
      must(frame.bytes() <= rest.size() && inside(frame.payload, rest));
      must(frame.payload.size() <= kFrameBytesMax);
      decode_all(frame.payload);
      rest = rest.subspan(frame.bytes());
    }
  }
  decode_all(bytes);
}

}  // namespace kvcommons::testing
