// Recorded streams of requests through the store's policies, for the benchmark.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "bindings/buffers.h"
#include "core/eviction/replay.h"

namespace nb = nanobind;

namespace {

using kvcommons::bindings::Buffer;

template <typename T>
std::span<const T> items_of(const char* argument, const Buffer& buffer) {
  if (buffer.item_bytes() != sizeof(T)) {
    throw nb::value_error((std::string(argument) + " has items of " + std::to_string(buffer.item_bytes()) +
                           " bytes: pass an array of unsigned integers of " + std::to_string(sizeof(T)) + " bytes")
                              .c_str());
  }
  return {static_cast<const T*>(buffer.data()), buffer.bytes() / sizeof(T)};
}

nb::tuple eviction_replay(const std::string& policy, const nb::object& lengths, const nb::object& keys,
                          std::uint64_t capacity_chunks) {
  const Buffer length_buffer("lengths", lengths), key_buffer("keys", keys);
  const kvcommons::eviction::Trace trace{items_of<std::uint32_t>("lengths", length_buffer),
                                         items_of<std::uint64_t>("keys", key_buffer)};
  std::optional<kvcommons::eviction::Replayed> result;
  {
    const nb::gil_scoped_release released;
    result = kvcommons::eviction::replay(trace, policy, capacity_chunks);
  }
  if (!result) {
    throw nb::value_error(
        ("policy is \"" + policy + "\": pass lru, s3fifo, cost, auto or belady, and lengths that add up to the keys")
            .c_str());
  }
  return nb::make_tuple(result->hits, result->evicted, result->switches);
}

}  // namespace

void bind_eviction(nb::module_& module);
void bind_eviction(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("eviction_replay", &eviction_replay, "policy"_a, "lengths"_a, "keys"_a, "capacity_chunks"_a);
}
