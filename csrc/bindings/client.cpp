// The client of protocol 1 for Python: each call releases the GIL while it waits.
#include "core/client.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/buffers.h"
#include "bindings/kv_names.h"
#include "bindings/names.h"

namespace nb = nanobind;

namespace {

using kvcommons::Client;
using kvcommons::ClientConfig;
using kvcommons::Key;
using kvcommons::Status;
using kvcommons::bindings::key_argument;
using kvcommons::bindings::reserve_status_name;
using kvcommons::bindings::status_name;

using Rect = std::tuple<std::uint16_t, std::uint16_t, std::uint16_t, std::uint16_t>;
using Shards = std::vector<std::pair<Rect, std::uint64_t>>;
using Layout = std::tuple<std::string, std::string, std::uint32_t, std::uint32_t, std::uint32_t>;
using Slots = std::vector<std::pair<std::uint64_t, std::uint32_t>>;
using CommitTuples = std::vector<std::tuple<std::uint64_t, std::uint32_t, std::uint64_t, std::vector<std::uint64_t>>>;

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

// Keys where they lie in the bytes object, which the caller's arguments keep alive.
std::span<const Key> keys_view(const nb::bytes& keys) {
  if (keys.size() % sizeof(Key) != 0) {
    refuse("keys has " + std::to_string(keys.size()) + " bytes: pass whole keys of 32 bytes, concatenated");
  }
  return {reinterpret_cast<const Key*>(keys.c_str()), keys.size() / sizeof(Key)};
}

kvcommons::wire::Role role_argument(const std::string& role) {
  if (role == "scheduler") return kvcommons::wire::Role::Scheduler;
  if (role == "worker") return kvcommons::wire::Role::Worker;
  if (role == "tool") return kvcommons::wire::Role::Tool;
  refuse("role is '" + role + "': pass 'scheduler', 'worker' or 'tool'");
}

ClientConfig config_of(const std::string& socket_path, const std::string& role, const nb::bytes& fingerprint,
                       std::uint32_t chunk_tokens, const Shards& shards, std::int64_t own_shard) {
  ClientConfig config;
  config.socket_path = socket_path;
  config.role = role_argument(role);
  if (fingerprint.size() != 0) config.fingerprint = key_argument("fingerprint", fingerprint);
  config.chunk_tokens = chunk_tokens;
  for (const auto& [rect, slot_bytes] : shards) {
    const auto& [layer_begin, layer_end, head_begin, head_end] = rect;
    config.shards.push_back({{layer_begin, layer_end, head_begin, head_end}, slot_bytes});
  }
  if (own_shard >= static_cast<std::int64_t>(shards.size())) {
    refuse("own_shard is " + std::to_string(own_shard) + " of " + std::to_string(shards.size()) +
           " shards: pass an index into shards, or -1 for none");
  }
  if (own_shard >= 0) config.own_shard = static_cast<std::uint32_t>(own_shard);
  const bool tool = config.role == kvcommons::wire::Role::Tool;
  if (!tool && (config.shards.empty() || config.shards.size() > kvcommons::kShardsPerChunkMax || chunk_tokens == 0 ||
                fingerprint.size() == 0)) {
    refuse("a " + role + " needs fingerprint, chunk_tokens and 1 to " + std::to_string(kvcommons::kShardsPerChunkMax) +
           " shards; " + std::to_string(shards.size()) + " shards and chunk_tokens " + std::to_string(chunk_tokens) +
           " were passed");
  }
  if (tool && !config.shards.empty()) refuse("a tool stores nothing: pass no shards");
  if (config.role == kvcommons::wire::Role::Worker && own_shard < 0)
    refuse("a worker needs own_shard, the shard it stores");
  return config;
}

kvcommons::KvForm layout_argument(const Layout& layout) {
  const auto& [element, order, block_tokens, k_size, v_size] = layout;
  return {kvcommons::bindings::element_named(element), kvcommons::bindings::order_named(order), block_tokens, k_size,
          v_size};
}

// Runs a call without the GIL.
template <typename Call>
auto released(Call call) {
  nb::gil_scoped_release release;
  return call();
}

nb::tuple lookup_keys(Client& client, const nb::bytes& keys, std::uint64_t tenant, bool lease) {
  const auto view = keys_view(keys);
  Client::Hit hit;
  const Status status = released([&] { return client.lookup(view, tenant, lease, &hit); });
  return nb::make_tuple(status_name(status), hit.lease, hit.hit_chunks, hit.pending_chunks);
}

nb::tuple begin_lease(Client& client, std::uint64_t lease) {
  std::vector<kvcommons::SlotRef> slots;
  const Status status = released([&] { return client.begin(lease, &slots); });
  nb::list out;
  for (const auto& slot : slots) out.append(nb::make_tuple(slot.offset_bytes, slot.generation));
  return nb::make_tuple(status_name(status), out);
}

nb::tuple reserve_slots(Client& client, std::uint64_t tenant, const nb::bytes& parent, const nb::bytes& keys) {
  const auto view = keys_view(keys);
  const Key before = parent.size() == 0 ? Key{} : key_argument("parent", parent);
  std::vector<kvcommons::Reservation> reservations;
  const Status status = released([&] { return client.reserve(tenant, before, view, &reservations); });
  nb::list out;
  for (const auto& item : reservations) {
    out.append(nb::make_tuple(reserve_status_name(item.status), item.slot.offset_bytes, item.slot.generation));
  }
  return nb::make_tuple(status_name(status), out);
}

nb::tuple commit_slots(Client& client, const CommitTuples& tuples) {
  std::vector<kvcommons::CommitItem> items;
  for (const auto& [offset, generation, checksum, text_keys] : tuples) {
    items.push_back({{offset, generation}, checksum, text_keys});
  }
  std::uint32_t accepted = 0;
  const Status status = released([&] { return client.commit(items, &accepted); });
  return nb::make_tuple(status_name(status), accepted);
}

const char* abort_slots(Client& client, const Slots& slots) {
  std::vector<kvcommons::SlotRef> refs;
  for (const auto& [offset, generation] : slots) refs.push_back({offset, generation});
  return status_name(released([&] { return client.abort(refs); }));
}

const char* touch(Client& client, const nb::bytes& keys) {
  const auto view = keys_view(keys);
  return status_name(released([&] { return client.touch(view); }));
}

nb::tuple counters(Client& client) {
  std::string json;
  const Status status = released([&] { return client.stat(&json); });
  return nb::make_tuple(status_name(status), json);
}

// The arena with `bytes` from `offset` on inside it.
Client::ArenaRef arena_range(const Client& client, std::uint64_t offset, std::uint64_t bytes) {
  Client::ArenaRef arena = client.arena();
  const std::uint64_t arena_bytes = client.arena_bytes();
  if (!arena) refuse("no arena is mapped: attach first (ensure_connected)");
  if (bytes > arena_bytes || offset > arena_bytes - bytes) {
    refuse("offset_bytes " + std::to_string(offset) + " and " + std::to_string(bytes) + " bytes leave the arena of " +
           std::to_string(arena_bytes));
  }
  return arena;
}

nb::bytes read_arena(const Client& client, std::uint64_t offset, std::uint64_t bytes) {
  const auto arena = arena_range(client, offset, bytes);
  return nb::bytes(reinterpret_cast<const char*>(arena.get() + offset), bytes);
}

void write_arena(const Client& client, std::uint64_t offset, nb::handle data) {
  const kvcommons::bindings::Buffer buffer("data", data);
  const auto arena = arena_range(client, offset, buffer.bytes());
  std::memcpy(arena.get() + offset, buffer.data(), buffer.bytes());
}

nb::bytes secret(const Client& client) {
  const Key key = client.namespace_secret();
  return nb::bytes(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

nb::bytes session_fingerprint(const Client& client) {
  const Key key = client.fingerprint();
  return nb::bytes(reinterpret_cast<const char*>(key.bytes.data()), key.bytes.size());
}

}  // namespace

void bind_client(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<Client>(module, "Client")
      .def(
          "__init__",
          [](Client* self, const std::string& socket_path, const std::string& role, const nb::bytes& fingerprint,
             std::uint32_t chunk_tokens, const Shards& shards, std::int64_t own_shard, std::uint32_t call_ms_max,
             std::uint32_t reconnect_ms_min, std::uint32_t reconnect_ms_max, std::uint32_t readers_per_shard,
             std::uint32_t arena_kept_ms, const nb::object& layout, bool exact) {
            ClientConfig config = config_of(socket_path, role, fingerprint, chunk_tokens, shards, own_shard);
            if (!layout.is_none()) config.layout = layout_argument(nb::cast<Layout>(layout));
            config.exact = exact;
            config.call_ms_max = call_ms_max;
            config.reconnect_ms_min = reconnect_ms_min;
            config.reconnect_ms_max = reconnect_ms_max;
            config.readers_per_shard = readers_per_shard;
            config.arena_kept_ms = arena_kept_ms;
            new (self) Client(std::move(config));
          },
          nb::kw_only(), "socket_path"_a, "role"_a, "fingerprint"_a = nb::bytes("", 0), "chunk_tokens"_a = 0,
          "shards"_a = Shards{}, "own_shard"_a = -1, "call_ms_max"_a = 250, "reconnect_ms_min"_a = 100,
          "reconnect_ms_max"_a = 2'000, "readers_per_shard"_a = 1, "arena_kept_ms"_a = ClientConfig{}.arena_kept_ms,
          "layout"_a = nb::none(), "exact"_a = false)
      .def("ensure_connected", &Client::ensure_connected, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("connected", &Client::connected)
      .def_prop_ro("last_error", &Client::last_error)
      .def_prop_ro("multi_tenant",
                   [](const Client& client) { return (client.hello_flags() & kvcommons::wire::kFlagMultiTenant) != 0; })
      .def_prop_ro("has_tiers",
                   [](const Client& client) { return (client.hello_flags() & kvcommons::wire::kFlagTiers) != 0; })
      .def_prop_ro("namespace_secret", &secret)
      .def_prop_ro("fingerprint", &session_fingerprint)
      .def_prop_ro("node_id", &Client::node_id)
      .def_prop_ro("attach_count", &Client::attach_count)
      .def_prop_ro("arena_bytes", &Client::arena_bytes)
      .def("lookup", &lookup_keys, "keys"_a, "tenant"_a = 0, "lease"_a = false)
      .def("begin", &begin_lease, "lease"_a)
      .def("reserve", &reserve_slots, "tenant"_a, "parent"_a, "keys"_a)
      .def("commit", &commit_slots, "items"_a)
      .def("abort", &abort_slots, "slots"_a)
      .def(
          "release",
          [](Client& client, std::uint64_t lease) {
            return status_name(released([&] { return client.release(lease); }));
          },
          "lease"_a)
      .def("touch", &touch, "keys"_a)
      .def(
          "feedback",
          [](Client& client, const std::string& json) {
            return status_name(released([&] { return client.feedback(json); }));
          },
          "json"_a)
      .def("stat", &counters)
      .def("copy_started", &Client::copy_started)
      .def("copy_finished", &Client::copy_finished, nb::call_guard<nb::gil_scoped_release>())
      .def("read_arena", &read_arena, "offset_bytes"_a, "nbytes"_a)
      .def("write_arena", &write_arena, "offset_bytes"_a, "data"_a)
      .def("close", &Client::close, nb::call_guard<nb::gil_scoped_release>());
}
