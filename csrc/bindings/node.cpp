// The node's core and the holder for Python. No thread of the core takes the GIL; each call here releases it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <exception>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "bindings/buffers.h"
#include "bindings/disk_config.h"
#include "bindings/node_object.h"
#include "bindings/peer_config.h"
#include "bindings/remote_config.h"
#include "core/holder.h"
#include "core/node_core.h"
#include "core/stats_json.h"
#include "core/wire.h"

namespace nb = nanobind;

namespace {

using kvcommons::Event;
using kvcommons::InventoryItem;
using kvcommons::Key;
using kvcommons::NodeConfig;
using kvcommons::bindings::bytes_of;
using kvcommons::bindings::key_argument;
using kvcommons::bindings::keys_argument;
using kvcommons::bindings::Node;

nb::tuple tuple_of(const std::vector<std::uint64_t>& values) {
  nb::list list;
  for (const std::uint64_t value : values) list.append(value);
  return nb::tuple(list);
}

const char* kind_name(Event::Kind kind) {
  switch (kind) {
    case Event::Kind::Committed:
      return "committed";
    case Event::Kind::Freed:
      return "freed";
    case Event::Kind::Feedback:
      return "feedback";
    case Event::Kind::SessionOpened:
      return "session_opened";
    case Event::Kind::SessionClosed:
      return "session_closed";
    case Event::Kind::Moved:
      return "moved";
  }
  return "unknown";
}

nb::tuple drain_events(Node& node, std::size_t events_max) {
  bool gap = false;
  const std::vector<Event> events = node.with([&](auto& core) { return core.drain_events(events_max, &gap); });
  nb::list out;
  for (const Event& event : events) {
    out.append(nb::make_tuple(kind_name(event.kind), bytes_of(event.key), bytes_of(event.fingerprint),
                              tuple_of(event.text_keys), event.json, event.age_ms, event.tier));
  }
  return nb::make_tuple(out, gap);
}

nb::tuple inventory(Node& node, std::uint64_t cursor, std::size_t items_max) {
  const std::vector<InventoryItem> items =
      node.with([&](auto& core) { return core.store().inventory(&cursor, items_max); });
  nb::list out;
  for (const InventoryItem& item : items) {
    out.append(nb::make_tuple(bytes_of(item.key), bytes_of(item.fingerprint), tuple_of(item.text_keys)));
  }
  return nb::make_tuple(out, cursor);
}

// ([(key, fingerprint, text_keys, tier)], cursor): what is on a tier and not in memory.
nb::tuple tier_inventory(Node& node, std::uint64_t cursor, std::size_t items_max) {
  std::vector<kvcommons::NodeTiers::Item> items;
  node.with([&](auto& core) {
    if (core.tiers() != nullptr) {
      items = core.tiers()->inventory(&cursor, items_max);
    } else {
      cursor = 0;
    }
  });
  nb::list out;
  for (const auto& [item, tier] : items) {
    out.append(nb::make_tuple(bytes_of(item.key), bytes_of(item.fingerprint), tuple_of(item.text_keys), tier));
  }
  return nb::make_tuple(out, cursor);
}

const char* health_name(kvcommons::TierHealth health) {
  switch (health) {
    case kvcommons::TierHealth::Serving:
      return "serving";
    case kvcommons::TierHealth::Degraded:
      return "degraded";
    case kvcommons::TierHealth::Gone:
      return "gone";
  }
  return "unknown";
}

// [(name, health, why, counters)] of each tier, in the order in which they are asked.
nb::list tiers(Node& node) {
  struct Told {
    std::string name, why;
    kvcommons::TierHealth health;
    kvcommons::TierStats stats;
  };
  std::vector<Told> all;
  node.with([&](auto& core) {
    if (core.tiers() == nullptr) return;
    for (const auto& tier : core.tiers()->manager().tiers()) {
      Told told{std::string(tier->name()), {}, kvcommons::TierHealth::Serving, tier->stats()};
      told.health = tier->health(&told.why);
      all.push_back(std::move(told));
    }
  });
  nb::list out;
  for (const Told& told : all) {
    nb::dict counters;
    visit_counters(told.stats, [&](std::string_view name, std::uint64_t value) {
      counters[nb::str(name.data(), name.size())] = value;
    });
    out.append(nb::make_tuple(told.name, health_name(told.health), told.why, counters));
  }
  return out;
}

nb::list fingerprints(Node& node) {
  const auto known = node.with([](auto& core) { return core.store().fingerprints(); });
  nb::list out;
  for (const auto& one : known) {
    nb::list pids;
    for (const std::uint32_t pid : one.pids) pids.append(pid);
    out.append(nb::make_tuple(bytes_of(one.key), one.chunks, one.used_bytes, pids));
  }
  return out;
}

nb::dict stats(Node& node) {
  std::vector<std::pair<std::string, std::uint64_t>> counters;
  node.with([&](auto& core) {
    const auto add = [&](std::string_view name, std::uint64_t value) { counters.emplace_back(name, value); };
    visit_counters(core.store().stats(), add);
    visit_counters(core.server().stats(), add);
    if (core.tiers() != nullptr) {
      visit_counters(core.tiers()->manager().stats(), add);
      for (const auto& tier : core.tiers()->codecs()) visit_counters(tier->codec_stats(), add);
    }
    if (core.tiers() != nullptr && core.tiers()->peer_tier() != nullptr) {
      add("tokens_per_second", static_cast<std::uint64_t>(core.tiers()->manager().tokens_per_second()));
      visit_counters(core.tiers()->peer_tier()->peer_stats(), add);
      visit_counters(core.tiers()->peer_server()->stats(), add);
    }
  });
  nb::dict out;
  for (const auto& [name, value] : counters) out[nb::str(name.c_str())] = value;
  return out;
}

std::uint32_t lookup(Node& node, const nb::bytes& fingerprint, const nb::bytes& keys) {
  const Key of = key_argument("fingerprint", fingerprint);
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with([&](auto& core) { return core.store().lookup_any(of, list); });
}

std::uint32_t pin(Node& node, const nb::bytes& keys, bool pinned) {
  const std::vector<Key> list = keys_argument("keys", keys);
  return node.with([&](auto& core) { return core.store().pin(list, pinned); });
}

std::uint64_t clear(Node& node, const nb::object& fingerprint) {
  if (fingerprint.is_none()) return node.with([](auto& core) { return core.clear(nullptr); });
  const Key of = key_argument("fingerprint", nb::cast<nb::bytes>(fingerprint));
  return node.with([&](auto& core) { return core.clear(&of); });
}

kvcommons::tiers::Recoder& recoder_of(kvcommons::NodeCore& core) {
  if (core.tiers() == nullptr || core.tiers()->recoder() == nullptr) {
    throw std::invalid_argument("this node has no tier behind memory: there is nothing to compress");
  }
  return *core.tiers()->recoder();
}

std::uint64_t recode_start(Node& node, const std::string& codec, const nb::object& fingerprint, const nb::bytes& keys,
                           const std::string& tier, bool from_memory, std::uint64_t bytes_per_second_max) {
  kvcommons::tiers::RecodeRequest request;
  request.codec = kvcommons::bindings::codec_argument(codec);
  if (!fingerprint.is_none()) request.fingerprint = key_argument("fingerprint", nb::cast<nb::bytes>(fingerprint));
  request.keys = keys_argument("keys", keys);
  request.from_memory = from_memory;
  request.bytes_per_second_max = bytes_per_second_max;
  return node.with([&](auto& core) { return recoder_of(core).start(request, tier); });
}

const char* state_name(kvcommons::tiers::RecodeProgress::State state) {
  using State = kvcommons::tiers::RecodeProgress::State;
  switch (state) {
    case State::Running:
      return "running";
    case State::Done:
      return "done";
    case State::Cancelled:
      return "cancelled";
    case State::Failed:
      return "failed";
  }
  return "unknown";
}

// None: another run has begun since.
nb::object recode_progress(Node& node, std::uint64_t run) {
  const auto p = node.with([&](auto& core) { return recoder_of(core).progress(run); });
  if (!p) return nb::none();
  nb::dict out;
  out["state"] = state_name(p->state);
  out["why"] = p->why;
  out["shards_total"] = p->shards_total;
  out["shards_seen"] = p->shards_seen;
  out["offered"] = p->offered;
  out["rewritten"] = p->rewritten;
  out["unchanged"] = p->unchanged;
  out["refused"] = p->refused;
  out["gone"] = p->gone;
  out["failed"] = p->failed;
  out["bytes_before"] = p->bytes_before;
  out["bytes_after"] = p->bytes_after;
  return out;
}

bool recode_cancel(Node& node, std::uint64_t run) {
  return node.with([&](auto& core) { return recoder_of(core).cancel(run); });
}

// Python's signal handlers run between two waits of the holder; one that raises ends it.
void holder_serve(const std::string& socket_path, std::uint32_t idle_seconds_max) {
  bool raised = false;
  const auto interrupted = [&raised] {
    nb::gil_scoped_acquire acquire;
    raised = PyErr_CheckSignals() != 0;
    return raised;
  };
  {
    nb::gil_scoped_release release;
    kvcommons::holder_serve(socket_path, idle_seconds_max, interrupted);
  }
  if (raised) throw nb::python_error();
}

// std::system_error is Python's OSError, with its number.
void translate_errors(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const std::system_error& e) {
    nb::object arguments = nb::make_tuple(e.code().value(), e.what());
    PyErr_SetObject(PyExc_OSError, arguments.ptr());
  }
}

void init_node(Node* self, const std::string& socket_path, std::uint64_t arena_bytes, const std::string& node_id,
               const nb::bytes& namespace_secret, std::uint64_t slab_bytes, const std::string& holder_socket,
               bool multi_tenant, std::uint32_t lease_pending_ms_max, std::uint32_t sessions_max,
               std::uint32_t leases_max, std::uint32_t events_max, std::uint32_t verify_one_in, bool populate,
               bool huge_pages, const std::vector<std::uint32_t>& allowed_uids,
               const std::vector<std::uint32_t>& allowed_gids, std::uint32_t socket_mode, const nb::dict& disk,
               const nb::list& remotes, std::uint64_t tier_write_queue_max, const std::string& eviction,
               std::uint32_t shadow_chunks_max, std::uint32_t tenant_percent_max, const nb::dict& peer_settings) {
  NodeConfig config;
  config.socket_path = socket_path;
  config.node_id = node_id;
  config.namespace_secret = key_argument("namespace_secret", namespace_secret);
  config.holder_socket = holder_socket;
  config.multi_tenant = multi_tenant;
  config.populate = populate;
  config.huge_pages = huge_pages;
  config.allowed_uids.assign(allowed_uids.begin(), allowed_uids.end());
  config.allowed_gids.assign(allowed_gids.begin(), allowed_gids.end());
  config.socket_mode = socket_mode;
  config.store.arena_bytes = arena_bytes;
  if (slab_bytes != 0) config.store.slab_bytes = slab_bytes;
  config.store.lease_pending_ms_max = lease_pending_ms_max;
  config.store.sessions_max = sessions_max;
  config.store.leases_max = leases_max;
  config.store.events_max = events_max;
  config.store.verify_one_in = verify_one_in;
  config.tiers.disk = kvcommons::bindings::disk_config(disk);
  config.tiers.peers = kvcommons::bindings::peers_config(peer_settings, config.namespace_secret);
  config.tiers.disk_codec = kvcommons::bindings::disk_codec(disk);
  config.tiers.allow_lossy = kvcommons::bindings::disk_allows_lossy(disk);
  config.tiers.remotes = kvcommons::bindings::remote_configs(remotes);
  config.tiers.write_queue_max = tier_write_queue_max;
  config.store.eviction = eviction;
  config.store.shadow_chunks_max = shadow_chunks_max;
  config.store.tenant_percent_max = tenant_percent_max;
  new (self) Node(std::move(config));
}

}  // namespace

void bind_node(nb::module_& module) {
  using namespace nb::literals;
  nb::register_exception_translator(translate_errors);
  const kvcommons::StoreConfig defaults;
  nb::class_<Node> bound(module, "NodeCore");
  bound
      .def("__init__", &init_node, nb::kw_only(), "socket_path"_a, "arena_bytes"_a, "node_id"_a, "namespace_secret"_a,
           "slab_bytes"_a = 0, "holder_socket"_a = "", "multi_tenant"_a = false,
           "lease_pending_ms_max"_a = defaults.lease_pending_ms_max, "sessions_max"_a = defaults.sessions_max,
           "leases_max"_a = defaults.leases_max, "events_max"_a = defaults.events_max,
           "verify_one_in"_a = defaults.verify_one_in, "populate"_a = true, "huge_pages"_a = false,
           "allowed_uids"_a = std::vector<std::uint32_t>{}, "allowed_gids"_a = std::vector<std::uint32_t>{},
           "socket_mode"_a = 0, "disk"_a = nb::dict(), "remotes"_a = nb::list(),
           "tier_write_queue_max"_a = kvcommons::NodeTiersConfig{}.write_queue_max, "eviction"_a = defaults.eviction,
           "shadow_chunks_max"_a = defaults.shadow_chunks_max, "tenant_percent_max"_a = defaults.tenant_percent_max,
           "peers"_a = nb::dict())
      .def("start", &Node::start)
      .def("stop", &Node::stop)
      .def_prop_ro("adopted", [](Node& node) { return node.with([](auto& core) { return core.adopted(); }); })
      .def_prop_ro("notes", [](Node& node) { return node.with([](auto& core) { return core.notes(); }); })
      .def_prop_ro("remarks", [](Node& node) { return node.with([](auto& core) { return core.remarks(); }); })
      .def_prop_ro("arena_id",
                   [](Node& node) {
                     const auto id = node.with([](auto& core) { return core.arena_id(); });
                     return nb::bytes(reinterpret_cast<const char*>(id.data()), id.size());
                   })
      .def("event_fd", [](Node& node) { return node.with([](auto& core) { return core.event_fd(); }); })
      .def("drain_events", &drain_events, "events_max"_a)
      .def("inventory", &inventory, "cursor"_a, "items_max"_a)
      .def("tier_inventory", &tier_inventory, "cursor"_a, "items_max"_a)
      .def("tiers", &tiers)
      .def("remote_ports",
           [](Node& node) {
             return node.with([](auto& core) {
               return core.tiers() == nullptr ? std::vector<std::shared_ptr<kvcommons::tiers::RemotePort>>{}
                                              : core.tiers()->ports();
             });
           })
      .def("stats", &stats)
      .def("fingerprints", &fingerprints)
      .def("lookup", &lookup, "fingerprint"_a, "keys"_a)
      .def("pin", &pin, "keys"_a, "pinned"_a)
      .def("clear", &clear, "fingerprint"_a = nb::none())
      .def("recode_start", &recode_start, nb::kw_only(), "codec"_a, "fingerprint"_a = nb::none(),
           "keys"_a = nb::bytes("", 0), "tier"_a = "", "from_memory"_a = true, "bytes_per_second_max"_a = 0)
      .def("recode_progress", &recode_progress, "run"_a)
      .def("recode_cancel", &recode_cancel, "run"_a);
  kvcommons::bindings::bind_node_select(bound);
  kvcommons::bindings::bind_node_peers(bound);
  module.def("holder_serve", &holder_serve, "socket_path"_a, "idle_seconds_max"_a);
  module.def(
      "holder_stop",
      [](const std::string& socket_path) {
        nb::gil_scoped_release release;
        kvcommons::holder_stop(socket_path);
      },
      "socket_path"_a);
  module.attr("PROTOCOL_VERSION_MIN") = static_cast<int>(kvcommons::wire::kVersionMin);
  module.attr("PROTOCOL_VERSION_MAX") = static_cast<int>(kvcommons::wire::kVersionMax);
}
