// Keys and checksums for Python: whole prompts a call, the GIL released while hashing.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/buffers.h"
#include "core/cpu.h"
#include "core/keys.h"
#include "core/sha256.h"
#include "core/xxh3.h"

namespace nb = nanobind;

namespace {

using kvcommons::Key;
using kvcommons::bindings::Buffer;
using kvcommons::bindings::key_argument;
using kvcommons::bindings::U32Array;

using Identities = std::vector<kvcommons::ChunkIdentity>;

std::uint32_t chunk_tokens_argument(std::int64_t chunk_tokens) {
  constexpr std::int64_t kChunkTokensMax = 1 << 20;
  if (chunk_tokens < 1 || chunk_tokens > kChunkTokensMax) {
    throw nb::value_error(("chunk_tokens is " + std::to_string(chunk_tokens) + ", outside 1.." +
                           std::to_string(kChunkTokensMax) + ": pass the pool's chunk size, e.g. 256")
                              .c_str());
  }
  return static_cast<std::uint32_t>(chunk_tokens);
}

// The spans point into the bytes objects of `source`, which the caller keeps alive.
Identities identities_argument(const nb::sequence& source) {
  Identities out;
  std::int64_t before = -1;
  for (const nb::handle item : source) {
    std::pair<std::int64_t, nb::bytes> entry;
    if (!nb::isinstance<nb::tuple>(item) || nb::len(item) != 2 || !nb::isinstance<nb::int_>(item[0]) ||
        !nb::isinstance<nb::bytes>(item[1])) {
      throw nb::value_error(
          ("identities holds " + std::string(nb::repr(item).c_str()) + ": pass (chunk index, identity bytes) tuples")
              .c_str());
    }
    entry = {nb::cast<std::int64_t>(item[0]), nb::cast<nb::bytes>(item[1])};
    if (entry.first <= before) {
      throw nb::value_error(("identities names chunk " + std::to_string(entry.first) + " after " +
                             std::to_string(before) + ": pass each chunk once, in ascending order")
                                .c_str());
    }
    before = entry.first;
    out.push_back({.chunk = static_cast<std::uint64_t>(entry.first),
                   .bytes = {reinterpret_cast<const std::uint8_t*>(entry.second.c_str()), entry.second.size()}});
  }
  return out;
}

nb::bytes bytes_of(const std::vector<Key>& keys) {
  return nb::bytes(reinterpret_cast<const char*>(keys.data()), keys.size() * sizeof(Key));
}

nb::bytes chain_keys(const nb::bytes& root, const nb::object& tokens, std::int64_t chunk_tokens,
                     const nb::sequence& identities, const std::optional<nb::bytes>& parent) {
  const Key before = parent ? key_argument("parent", *parent) : key_argument("root", root);
  const std::uint32_t per_chunk = chunk_tokens_argument(chunk_tokens);
  const U32Array ids("tokens", tokens);
  const Identities named = identities_argument(identities);
  std::vector<Key> keys(ids.values().size() / per_chunk);
  {
    const nb::gil_scoped_release released;
    kvcommons::chain_keys(before, ids.values(), per_chunk, named, keys);
  }
  return bytes_of(keys);
}

nb::bytes segment_keys(const nb::bytes& root, const nb::object& tokens, std::int64_t chunk_tokens) {
  const Key key = key_argument("root", root);
  const std::uint32_t per_chunk = chunk_tokens_argument(chunk_tokens);
  const U32Array ids("tokens", tokens);
  std::vector<Key> keys(ids.values().size() / per_chunk);
  {
    const nb::gil_scoped_release released;
    kvcommons::segment_keys(key, ids.values(), per_chunk, keys);
  }
  return bytes_of(keys);
}

nb::bytes sha256(const nb::object& data) {
  const Buffer buffer("data", data);
  Key key;
  {
    const nb::gil_scoped_release released;
    key = kvcommons::sha256(buffer.data(), buffer.bytes());
  }
  return nb::bytes(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

std::uint64_t xxh3_64(const nb::object& data, std::uint64_t seed) {
  const Buffer buffer("data", data);
  const nb::gil_scoped_release released;
  return kvcommons::xxh3_64(buffer.data(), buffer.bytes(), seed);
}

nb::dict cpu_features() {
  const auto& features = kvcommons::cpu_features();
  nb::dict out;
  out["avx2"] = features.avx2;
  out["avx512"] = features.avx512;
  out["sha"] = features.sha;
  out["armv8_sha2"] = features.armv8_sha2;
  return out;
}

}  // namespace

void bind_hash(nb::module_& module);
void bind_hash(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("chain_keys", &chain_keys, "root"_a, "tokens"_a, "chunk_tokens"_a, "identities"_a = nb::make_tuple(),
             "parent"_a.none() = nb::none());
  module.def("segment_keys", &segment_keys, "root"_a, "tokens"_a, "chunk_tokens"_a);
  module.def("sha256", &sha256, "data"_a);
  module.def("xxh3_64", &xxh3_64, "data"_a, "seed"_a = std::uint64_t{0});
  module.def("cpu_features", &cpu_features);
}
