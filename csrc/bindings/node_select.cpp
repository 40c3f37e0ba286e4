// Some of the chunks, for the control API. Each call releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/buffers.h"
#include "bindings/node_object.h"

namespace nb = nanobind;

namespace kvcommons::bindings {
namespace {

using RectTuple = std::tuple<std::uint16_t, std::uint16_t, std::uint16_t, std::uint16_t>;
using Shards = std::vector<std::pair<RectTuple, std::uint64_t>>;

constexpr std::size_t kPlacesMax = 8;  // what a byte has room for

std::vector<std::string> place_names(NodeCore& core) {
  std::vector<std::string> names{"memory"};
  if (core.tiers() == nullptr) return names;
  for (const auto& tier : core.tiers()->manager().tiers()) {
    if (names.size() < kPlacesMax) names.emplace_back(tier->name());
  }
  return names;
}

// (names of the places, one byte for each key: bit i is names[i]).
nb::tuple places(Node& node, const nb::bytes& fingerprint, const nb::bytes& keys) {
  const Key of = key_argument("fingerprint", fingerprint);
  const std::vector<Key> list = keys_argument("keys", keys);
  std::vector<std::string> names;
  std::string bits;
  node.with([&](auto& core) {
    names = place_names(core);
    for (const Places one : core.places(of, list)) bits.push_back(static_cast<char>(one & 0xff));
  });
  return nb::make_tuple(names, nb::bytes(bits.data(), bits.size()));
}

// fingerprint, tenant: None for any. keys: empty for any. places: names; empty for all of them, unknown ones are
// passed over. Returns (chunks that memory had, {tier: shards}).
nb::tuple clear_some(Node& node, const nb::object& fingerprint, const nb::object& tenant, const nb::bytes& keys,
                     std::uint64_t age_ms_min, const std::vector<std::string>& from) {
  Selection selection;
  if (!fingerprint.is_none()) selection.fingerprint = key_argument("fingerprint", nb::cast<nb::bytes>(fingerprint));
  if (!tenant.is_none()) selection.tenant = nb::cast<std::uint64_t>(tenant);
  selection.keys = keys_argument("keys", keys);
  selection.age_ms_min = age_ms_min;
  std::vector<std::string> names;
  std::vector<std::uint64_t> shards;
  std::uint64_t chunks = 0;
  node.with([&](auto& core) {
    names = place_names(core);
    Places places = from.empty() ? kEverywhere : 0;
    for (std::size_t i = 0; i < names.size(); ++i) {
      if (std::find(from.begin(), from.end(), names[i]) != from.end()) places |= Places{1} << i;
    }
    chunks = core.clear(selection, places, &shards);
  });
  nb::dict of_tiers;
  for (std::size_t i = 0; i < shards.size() && i + 1 < names.size(); ++i) of_tiers[names[i + 1].c_str()] = shards[i];
  return nb::make_tuple(chunks, of_tiers);
}

// Of the node's own accord, as after a commit: shards that were put into the queue of writes.
std::uint64_t write_behind(Node& node, const nb::bytes& fingerprint, const nb::bytes& keys) {
  const Key of = key_argument("fingerprint", fingerprint);
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with(
      [&](auto& core) { return core.tiers() == nullptr ? std::uint64_t{0} : core.tiers()->manager().write(of, list); });
}

// Chunks that are on their way into memory now.
std::uint32_t bring(Node& node, const nb::bytes& fingerprint, const nb::bytes& keys) {
  const Key of = key_argument("fingerprint", fingerprint);
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with([&](auto& core) {
    return core.tiers() == nullptr ? std::uint32_t{0} : core.tiers()->manager().bring(of, list).chunks;
  });
}

// How this node has a chunk: (chunk_tokens, tenant, [((layers, heads), slot_bytes)]); None: it has it not.
nb::object layout_of(Node& node, const nb::bytes& fingerprint, const nb::bytes& key) {
  const Key of = key_argument("fingerprint", fingerprint);
  const Key chunk = key_argument("key", key);
  SessionSpec spec;
  std::uint64_t tenant = 0;
  const bool here = node.with([&](auto& core) {
    return core.tiers() != nullptr && core.tiers()->manager().layout_of(of, chunk, &spec, &tenant);
  });
  if (!here) return nb::none();
  Shards shards;
  for (const auto& [rect, slot_bytes] : spec.shards) {
    shards.push_back({{rect.layer_begin, rect.layer_end, rect.head_begin, rect.head_end}, slot_bytes});
  }
  return nb::make_tuple(spec.chunk_tokens, tenant, shards);
}

// As bring(), from the peer of this name, in the layout that its layout_of() tells.
std::uint32_t bring_from(Node& node, const std::string& peer, const nb::bytes& fingerprint, const nb::bytes& keys,
                         std::uint32_t chunk_tokens, std::uint64_t tenant, const Shards& shards) {
  SessionSpec spec;
  spec.fingerprint = key_argument("fingerprint", fingerprint);
  spec.chunk_tokens = chunk_tokens;
  for (const auto& [rect, slot_bytes] : shards) {
    const auto& [layer_begin, layer_end, head_begin, head_end] = rect;
    if (layer_begin >= layer_end || head_begin >= head_end || slot_bytes == 0 || slot_bytes > kSlabBytesMax) {
      throw std::invalid_argument("shards: an empty rectangle, or a slot of 0 or more than " +
                                  std::to_string(kSlabBytesMax) + " bytes: pass what layout_of() told");
    }
    spec.shards.push_back({{layer_begin, layer_end, head_begin, head_end}, slot_bytes});
  }
  if (spec.shards.empty() || spec.shards.size() > kShardsPerChunkMax || chunk_tokens == 0) {
    throw std::invalid_argument("shards: pass 1 to " + std::to_string(kShardsPerChunkMax) + " and chunk_tokens");
  }
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with([&](auto& core) {
    if (core.tiers() == nullptr) return std::uint32_t{0};
    return core.tiers()->manager().bring_from(peer, spec, tenant, list).chunks;
  });
}

// Chunks that memory let go of: the end of what is named, as far as nobody reads, pins or builds upon it.
std::uint32_t let_go(Node& node, const nb::bytes& fingerprint, const nb::bytes& keys) {
  const Key of = key_argument("fingerprint", fingerprint);
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with([&](auto& core) { return core.store().let_go(of, list); });
}

// Shards removed from one tier.
std::uint64_t remove_behind(Node& node, const std::string& tier, const nb::bytes& fingerprint, const nb::bytes& keys) {
  const Key of = key_argument("fingerprint", fingerprint);
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with([&](auto& core) {
    const std::vector<std::string> names = place_names(core);
    const auto at = std::find(names.begin() + 1, names.end(), tier);
    if (at == names.end()) return std::uint64_t{0};
    return core.tiers()->manager().remove(static_cast<std::size_t>(at - names.begin()) - 1, of, list);
  });
}

}  // namespace

void bind_node_select(nb::class_<Node>& node) {
  using namespace nb::literals;
  node.def("places", &places, "fingerprint"_a, "keys"_a)
      .def("clear_some", &clear_some, "fingerprint"_a = nb::none(), "tenant"_a = nb::none(),
           "keys"_a = nb::bytes("", 0), "age_ms_min"_a = 0, "places"_a = std::vector<std::string>{})
      .def("write_behind", &write_behind, "fingerprint"_a, "keys"_a)
      .def("bring", &bring, "fingerprint"_a, "keys"_a)
      .def("layout_of", &layout_of, "fingerprint"_a, "key"_a)
      .def("bring_from", &bring_from, "peer"_a, "fingerprint"_a, "keys"_a, "chunk_tokens"_a, "tenant"_a, "shards"_a)
      .def("let_go", &let_go, "fingerprint"_a, "keys"_a)
      .def("remove_behind", &remove_behind, "tier"_a, "fingerprint"_a, "keys"_a);
}

}  // namespace kvcommons::bindings
